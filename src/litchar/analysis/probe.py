"""Probes of a trained model: how it predicts unseen text, what it writes, and whether it copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from litchar.analysis.attention import attention_maps, fixed_line
from litchar.analysis.copying import Copied, CopiedPassage, find_copied, longest_copied
from litchar.analysis.evaluate import splits_of
from litchar.analysis.surprise import Surprise, surprise
from litchar.checkpoints import Checkpoint
from litchar.data.splits import Splits
from litchar.errors import UserError, check_integer
from litchar.generation import generate
from litchar.models import block_size_of
from litchar.text import Vocabulary
from litchar.text.yardsticks import Yardstick, quick_yardsticks

SCORED = 8192  # tokens of validation text to score
TEXTS, TEXT_LENGTH = 4, 256  # samples to search for copies, and the tokens of each
LINE = 32  # the maximum tokens of the line whose attention is shown
QUICK = 20_000_000  # tokens of training text that can be searched in a second or two


@dataclass(frozen=True)
class Overlap:
    """How much of some texts occurs in the training text, and the longest passage that does."""

    copied: Copied
    longest: CopiedPassage | None


@dataclass(frozen=True)
class Probed:
    """What a model does.

    Attributes:
        vocabulary: the model's.
        texts: samples from the model: ids, each (N,)
        line: ids of the line whose attention is shown: (T,)
        maps: layer -> the attention weights of its heads: (H, T, T); empty without attention
        lack: why the model's own text is unavailable; then all fields below keep their defaults.
        surprise: the model's, on validation text.
        written: how much of `texts` occurs in the training text; None if it was not searched.
        held_out: the same for validation text, as the yardstick.
        train: the training split: (N,)
        yardsticks: what validation text costs predictors that only count.
        mixed: the text is a mixture, whose losses are weighted means; yardsticks are not.
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


def probe(path: Path, splits: Splits | None, device: torch.device) -> Probed:
    """Probe the model of the checkpoint at `path`.

    Args:
        splits: of its text, if that is open: then whatever takes more than seconds is skipped.

    Raises:
        UserError: the checkpoint cannot be loaded.
    """
    checkpoint = Checkpoint.load(path)
    model, vocabulary = checkpoint.build_model(device), checkpoint.vocabulary
    block_size = block_size_of(model)
    hurries = splits is not None
    texts = write(model)
    try:
        splits = splits or splits_of(checkpoint)
        batch_size = checkpoint.config["data"].get("val_batch_size")
        check_integer("data.val_batch_size", batch_size, 1)
    except (UserError, PermissionError) as error:  # another user's text
        line = texts[0][: min(LINE, block_size)]
        return Probed(vocabulary, texts, line, _attention(model, line, device), str(error))
    parts, train = beginnings(splits), splits["train"].numpy()
    val, held_out = torch.cat(parts), [part.numpy() for part in parts]
    line = fixed_line(vocabulary, val.numpy(), min(LINE, block_size))
    stride = block_size - block_size // 4  # the rest of each window is context only
    searched = not hurries or len(train) <= QUICK
    return Probed(
        vocabulary,
        texts,
        line,
        _attention(model, line, device),
        surprise=surprise(model, val, batch_size, device, stride),
        written=overlap(texts, train, len(vocabulary)) if searched else None,
        held_out=overlap(held_out, train, len(vocabulary)) if searched else None,
        train=train,
        yardsticks=quick_yardsticks(splits.text, splits.store),
        mixed=bool(splits.text.weights),
    )


def beginnings(splits: Splits) -> list[Tensor]:
    """Return the first `SCORED` tokens of validation text, or all if it has fewer; of a mixture,
    the first of each text in proportion to its weight. Ids, each (N,)."""
    weights = list(splits.text.weights.values()) or [1.0]
    return [
        splits["val"][start : min(stop, start + round(SCORED * weight))]
        for weight, (start, stop) in zip(weights, splits.parts("val"), strict=True)
    ]


def write(model: nn.Module) -> list[np.ndarray]:
    """Return samples from `model`, which begin as those in training do: ids, each (N,)."""
    start = np.zeros((TEXTS, 1), dtype=np.int64)
    steps = [step.ids for step in generate(model, start, TEXT_LENGTH)]
    return list(np.stack(steps, axis=1))


def overlap(texts: Sequence[np.ndarray], train: np.ndarray, vocab_size: int) -> Overlap:
    """Return how much of `texts` occurs in `train`, and the longest passage that does."""
    return Overlap(find_copied(texts, train, vocab_size), longest_copied(texts, train, vocab_size))


def _attention(model: nn.Module, line: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    idx = torch.from_numpy(line.astype(np.int64))[None].to(device)
    return {layer: maps.cpu() for layer, maps in attention_maps(model, idx).items()}
