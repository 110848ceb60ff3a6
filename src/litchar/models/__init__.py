"""Models: token ids in, logits out, in plain torch.

A model is an `nn.Module` that takes `vocab_size` and `block_size` beside its own settings, keeps
`block_size` (its context length) as an attribute, and whose `forward(idx)` maps (B, T) int64 ids
to (B, T, V) logits. A YAML file in `conf/model` names its class and settings.
"""

import contextlib
from collections.abc import Iterator

from torch import nn

from litchar.models.bigram import Bigram
from litchar.models.recurrent import Recurrent
from litchar.models.transformer import Transformer

__all__ = ["Bigram", "Recurrent", "Transformer", "block_size_of", "evaluating"]


def block_size_of(model: nn.Module) -> int:
    """Return the context length of `model`, from its `block_size` attribute.

    Raises:
        TypeError: the model has no integer `block_size`.
    """
    block_size = getattr(model, "block_size", None)
    if not isinstance(block_size, int):
        raise TypeError(f"{type(model).__name__} has no block_size, the longest context it reads")
    return block_size


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode within the context, then restore its previous mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
