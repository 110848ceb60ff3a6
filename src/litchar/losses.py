"""Losses of a model on batches of windows; and their sums as figures: means, bits, perplexity."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litchar.data.windows import IGNORED
from litchar.errors import UserError
from litchar.text import Vocabulary


def mean_loss(model: nn.Module, idx: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of a batch in nats per token: () float32."""
    logits = _flat_logits(model, idx)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED)


def summed_loss(model: nn.Module, idx: Tensor, targets: Tensor, sizes: Tensor) -> Tensor:
    """Return a batch's total loss in nats and its number of target tokens, characters and bytes.

    Args:
        sizes: from `size_table`

    Returns:
        (4,) float32
    """
    logits = _flat_logits(model, idx, len(sizes) - 1)
    loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return torch.cat((loss[None], (targets != IGNORED).sum()[None], sizes[targets].sum((0, 1))))


def _flat_logits(model: nn.Module, idx: Tensor, vocab_size: int | None = None) -> Tensor:
    """Return a model's logits in one row per target: (B, T) int64 -> (B T, V) float32.

    Args:
        vocab_size: V, if it is to be checked.

    Raises:
        UserError: the model, such as a user's own class, returns anything but (B, T, V).
    """
    logits = model(idx)
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 3 or shape[:2] != idx.shape or vocab_size not in (None, shape[2]):
        returned = f"a tensor of shape {shape}" if shape else f"a {type(logits).__name__}"
        raise UserError(
            f"model: {type(model).__name__}.forward returned {returned} for ids of shape "
            f"{tuple(idx.shape)}; it must return logits (B, T, V) for ids (B, T), with V the "
            "vocab_size that it was given (docs/models.md)"
        )
    flat: Tensor = logits.flatten(0, 1).float()
    return flat


def size_table(vocabulary: Vocabulary) -> Tensor:
    """Return how many characters and bytes of text each id stands for, one row per id.

    Returns:
        (V + 1, 2) int64; the last row, which the index `IGNORED` selects, is zero.
    """
    return F.pad(torch.from_numpy(vocabulary.sizes), (0, 0, 0, 1))


def figures_of(
    name: str, nats: float, tokens: float, characters: float, utf8_bytes: float
) -> dict[str, float]:
    """Return the mean loss under `name` and, if that ends in `/loss`, the bits as well."""
    figures = {name: nats / tokens}
    if name.endswith("/loss"):
        figures |= bits(nats, characters, utf8_bytes, name.removesuffix("loss"))
    return figures


def mixed_figures(
    name: str, totals: Sequence[Sequence[float]], weights: Mapping[str, float]
) -> dict[str, float]:
    """Return the metrics of a mixture: its corpora's, averaged with the weights of training.

    They include the loss of each corpus, `NAME_CORPUS`, and of all tokens together, `NAME_all`.

    Args:
        totals: of each corpus, as `summed_loss` returns them.
    """
    each = [figures_of(name, *total) for total in totals]
    mixed = {
        key: sum(
            weight * figures[key] for weight, figures in zip(weights.values(), each, strict=True)
        )
        for key in each[0]
    }
    own = {f"{name}_{corpus}": figures[name] for corpus, figures in zip(weights, each, strict=True)}
    nats, tokens, *_ = map(sum, zip(*totals, strict=True))
    return mixed | own | {f"{name}_all": nats / tokens}


def perplexity(loss: float) -> float:
    """Return exp(`loss`) for a loss in nats: as unsure as among so many equally likely tokens."""
    return math.exp(loss) if loss < 700 else math.inf  # exp would soon overflow


def bits(nats: float, characters: float, utf8_bytes: float, prefix: str = "") -> dict[str, float]:
    """Return a text's loss in bits per character (`bpc`) and bits per byte (`bpb`).

    Both divide the loss of the whole text, so they compare models whatever their tokens. A file
    that is not UTF-8 may have no characters; zero counts as one.
    """
    total = nats / math.log(2)
    return {f"{prefix}bpc": total / max(characters, 1), f"{prefix}bpb": total / utf8_bytes}
