"""Models: ids in, logits out, in plain torch.

A model is an `nn.Module` that is built with `vocab_size` and `block_size` beside its own settings,
keeps `block_size` (the longest context that it reads), and whose `forward(idx)` takes (B, T) int64
ids to (B, T, V) logits. A YAML file in `conf/model` names it.
"""

from litchar.models.bigram import Bigram
from litchar.models.recurrent import Recurrent
from litchar.models.transformer import Transformer

__all__ = ["Bigram", "Recurrent", "Transformer"]
