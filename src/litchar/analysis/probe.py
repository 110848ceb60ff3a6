"""What a trained model does: with text that it never saw, and when it writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from litchar.analysis.attention import attention_maps, fixed_line
from litchar.analysis.copying import Copied, CopiedPassage, find_copied, longest_copied
from litchar.analysis.evaluate import data_of
from litchar.analysis.surprise import Surprise, surprise
from litchar.checkpoints import Checkpoint
from litchar.data import TextDataModule
from litchar.errors import UserError
from litchar.generation import generate
from litchar.models import block_size_of
from litchar.text import Vocabulary
from litchar.text.yardsticks import Yardstick, quick_yardsticks

SCORED = 8192  # tokens of validation text that the model reads
TEXTS, TEXT_LENGTH = 4, 256  # that it writes, to see whether it copies; in tokens
LINE = 32  # tokens at most whose attention is looked at
QUICK = 20_000_000  # tokens of training text that are searched within a second or two


@dataclass(frozen=True)
class Overlap:
    """How much of some texts stands in the training text, and the longest passage that does."""

    copied: Copied
    longest: CopiedPassage | None


@dataclass(frozen=True)
class Probed:
    """What a model does.

    Attributes:
        vocabulary: the model's.
        texts: what it writes: ids, each (N,)
        line: ids whose attention is shown: (T,)
        maps: layer -> the attention weights of its heads: (H, T, T); empty without attention
        lack: why the model's own text is not to be had; then all below is None.
        surprise: of the model, by validation text.
        written: what it writes, looked for in the training text.
        held_out: the same of validation text, as the yardstick.
        train: the training split: (N,)
        yardsticks: what validation text costs those who only count.
        mixed: the text is a mixture: its losses are means by weight, and yardsticks are not.
    """

    vocabulary: Vocabulary
    texts: Sequence[np.ndarray]
    line: np.ndarray
    maps: dict[str, Tensor]
    lack: str = ""
    surprise: Surprise | None = None
    written: Overlap | None = None
    held_out: Overlap | None = None
    train: np.ndarray | None = None
    yardsticks: Sequence[Yardstick] = ()
    mixed: bool = False


def probe(path: Path, data: TextDataModule | None, device: torch.device) -> Probed:
    """Return what the model of the checkpoint at `path` does.

    Args:
        data: its text, if it is open already: then nothing is done that takes more than seconds.

    Raises:
        UserError: the checkpoint is unfit.
    """
    checkpoint = Checkpoint.load(path)
    model, vocabulary = checkpoint.build_model(device), checkpoint.vocabulary
    block_size = block_size_of(model)
    hurries = data is not None
    texts = write(model)
    try:
        data = data or data_of(checkpoint)
    except UserError as error:
        line = texts[0][: min(LINE, block_size)]
        return Probed(vocabulary, texts, line, _attention(model, line, device), str(error))
    parts, train = sample(data), data.splits["train"].numpy()
    val, held_out = torch.cat(parts), [part.numpy() for part in parts]
    line = fixed_line(vocabulary, val.numpy(), min(LINE, block_size))
    stride = block_size - block_size // 4  # the rest is context for each token
    searched = not hurries or len(train) <= QUICK
    return Probed(
        vocabulary,
        texts,
        line,
        _attention(model, line, device),
        surprise=surprise(model, val, data.val_batch_size, device, stride),
        written=overlap(texts, train, len(vocabulary)) if searched else None,
        held_out=overlap(held_out, train, len(vocabulary)) if searched else None,
        train=train,
        yardsticks=quick_yardsticks(data.text, data.store),
        mixed=bool(data.text.weights),
    )


def sample(data: TextDataModule) -> list[Tensor]:
    """Return `SCORED` tokens of validation text, or all if it has less: the first, and of a mixture
    the first of each text by its weight. Ids, each (N,)."""
    weights = list(data.text.weights.values()) or [1.0]
    return [
        data.splits["val"][start : min(stop, start + round(SCORED * weight))]
        for weight, (start, stop) in zip(weights, data.parts("val"), strict=True)
    ]


def write(model: nn.Module) -> list[np.ndarray]:
    """Return texts that `model` writes, begun as samples in training are: ids, each (N,)."""
    start = np.zeros((TEXTS, 1), dtype=np.int64)
    steps = [step.ids for step in generate(model, start, TEXT_LENGTH)]
    return list(np.stack(steps, axis=1))


def overlap(texts: Sequence[np.ndarray], train: np.ndarray, vocab_size: int) -> Overlap:
    """Return how much of `texts` stands in `train`."""
    return Overlap(find_copied(texts, train, vocab_size), longest_copied(texts, train, vocab_size))


def _attention(model: nn.Module, line: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    idx = torch.from_numpy(line.astype(np.int64))[None].to(device)
    return {layer: maps.cpu() for layer, maps in attention_maps(model, idx).items()}
