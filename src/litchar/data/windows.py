"""Which windows make up which batch: a pure function of the index, with no state to checkpoint."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from litchar.text.store import boundaries

Batch = tuple[Tensor, Tensor]  # inputs and targets: (B, T) int64 each
IGNORED = -1  # a target that the loss ignores
LOT = 64  # batches whose offsets are drawn at once, which takes hardly longer than one batch's
# Not every torch indexes these (2.9 does not): their bits are read as of the signed type.
SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32}
CHOICE = 1 << 64  # added to the seed: the key of the generator that picks a mixture's corpus


def random_words(key: int, start: int, count: int) -> np.ndarray:
    """Return words `start` to `start + count - 1` of the counter-based generator Philox-4x64
    (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): (count,) uint64."""
    words_a_block = 4
    first_block, skipped = divmod(start, words_a_block)
    words: np.ndarray = np.random.Philox(key=key, counter=first_block).random_raw(skipped + count)
    return words[skipped:]


def random_places(
    seed: int,
    start: int,
    count: int,
    weights: Sequence[float],
    firsts: np.ndarray,
    ends: np.ndarray,
) -> np.ndarray:
    """Return the places of the random windows `start` to `start + count - 1` of a run.

    Window i depends only on (seed, i): word i of one generator picks the corpus and word i of
    another the place in it.

    Args:
        weights: probability of each corpus of a mixture, or of the only one; they sum to 1.
        firsts: the first place of each corpus: (K,) int64
        ends: one past the last place of each corpus: (K,) int64

    Returns:
        places: (count,) int64
    """
    bounds = np.cumsum(weights)[:-1]
    words = random_words(seed + CHOICE, start, count)
    chosen = np.searchsorted(bounds, words.astype(np.float64) / 2.0**64, side="right")
    words = random_words(seed, start, count)
    places = (ends - firsts)[chosen].astype(np.uint64)
    offsets: np.ndarray = firsts[chosen] + (words % places).astype(np.int64)
    return offsets


def gather(tokens: Tensor, offsets: Tensor, block_size: int) -> Batch:
    """Return the windows that start at `offsets`, and their targets: the next tokens.

    Args:
        tokens: a split: (N,) of an integer type, on any device
        offsets: (B,) int64, on the same device

    Returns:
        inputs and targets: (B, T) int64 each. A window that reaches past the end of the split is
        padded, with targets `IGNORED`.
    """
    positions = offsets[:, None] + torch.arange(block_size + 1, device=offsets.device)
    last = len(tokens) - 1
    signed = SIGNED.get(tokens.dtype, tokens.dtype)
    windows = tokens.view(signed)[positions.clamp(max=last)].long()  # (B, T + 1)
    if signed is not tokens.dtype:
        windows &= torch.iinfo(tokens.dtype).max
    # Both contiguous: torch.compile recompiles for other strides.
    inputs = windows[:, :-1].contiguous()
    return inputs, windows[:, 1:].masked_fill(positions[:, 1:] > last, IGNORED)


def document_starts(tokens: np.ndarray, block_size: int) -> np.ndarray:
    """Return the offsets where windows may start: at the boundary before each document.

    A document longer than a window also has one every `block_size` tokens, so that all of it is
    seen.

    Args:
        tokens: a split of documents: (N,)

    Returns:
        (places,) int64
    """
    edges = boundaries(tokens)
    windows = -(-np.diff(edges) // block_size)  # per document
    first = np.repeat(np.cumsum(windows) - windows, windows)
    starts: np.ndarray = np.repeat(edges[:-1], windows)
    starts += (np.arange(len(first)) - first) * block_size
    return starts


class Span:
    """A slice of a token store's memory-mapped file, pickled as path and bounds.

    A spawned worker is sent a pickle of the dataset: this way it maps the file itself and no tokens
    are copied.

    Args:
        tokens: the store's memory map.
    """

    def __init__(self, tokens: np.memmap, start: int, stop: int) -> None:
        self.path = str(tokens.filename)
        self.start = start
        self.stop = stop
        with warnings.catch_warnings():
            # torch has no read-only tensors, and the map is read-only; nothing here writes to it.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self.tokens = torch.from_numpy(tokens[start:stop])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "start": self.start, "stop": self.stop}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(np.load(state["path"], mmap_mode="r"), state["start"], state["stop"])  # type: ignore[misc]


class _Windows(Dataset[Batch]):
    """Maps a batch index to a batch of windows, gathered on the device of the tokens."""

    def __init__(self, tokens: Tensor | Span, block_size: int) -> None:
        self._source = tokens
        self.length = len(self.tokens)
        self.block_size = block_size

    @property
    def tokens(self) -> Tensor:
        """The split to gather from."""
        return self._source.tokens if isinstance(self._source, Span) else self._source

    def offsets(self, batch: int) -> np.ndarray:
        raise NotImplementedError

    def __getitem__(self, batch: int) -> Batch:
        tokens = self.tokens
        # Asynchronous on CUDA only: on MPS the copy could run after the offsets are freed.
        offsets = torch.from_numpy(self.offsets(batch)).to(
            tokens.device, non_blocking=tokens.is_cuda
        )
        return gather(tokens, offsets, self.block_size)


class RandomWindows(_Windows):
    """The training batches of one rank: its share of windows k B to (k + 1) B - 1 for batch k.

    Args:
        tokens: the split to gather from.
        batch_size: B, over all ranks.
        starts: offsets where a window may start, from `document_starts`; None: anywhere.
        mixture: (weight, start, stop) of each corpus in the split; by default there is one.
    """

    def __init__(
        self,
        tokens: Tensor | Span,
        block_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        starts: np.ndarray | None = None,
        mixture: Sequence[tuple[float, int, int]] = (),
    ) -> None:
        super().__init__(tokens, block_size)
        mixture = mixture or [(1.0, 0, self.length)]
        self.weights = [weight for weight, _, _ in mixture]
        firsts, ends = np.array([part[1:] for part in mixture], dtype=np.int64).T
        if starts is None:
            self.firsts, self.ends = firsts, ends - block_size
        else:  # a place is an index into `starts`
            # The last boundary of a corpus is where the first document of the next one starts.
            self.firsts, self.ends = np.searchsorted(starts, [firsts, ends - 1])
        self.starts = starts
        self.batch_size = batch_size
        self.seed = seed
        self.share = batch_size // world_size
        self.first = rank * self.share
        self._lot = -1
        self._drawn: np.ndarray

    def __len__(self) -> int:
        return 2**62 // self.batch_size  # in effect endless; the Trainer decides when to stop

    def offsets(self, batch: int) -> np.ndarray:
        lot, place = divmod(batch, LOT)
        if lot != self._lot:
            self._lot, self._drawn = lot, self._draw(lot * LOT * self.batch_size)
        mine = slice(self.first, self.first + self.share)
        return self._drawn[place, mine]

    def _draw(self, start: int) -> np.ndarray:
        """Return the offsets of `LOT` batches, from window `start` on: (LOT, B) int64."""
        count = LOT * self.batch_size
        offsets = random_places(self.seed, start, count, self.weights, self.firsts, self.ends)
        offsets = offsets if self.starts is None else self.starts[offsets]
        return offsets.reshape(LOT, self.batch_size)


class SequentialWindows(_Windows):
    """Consecutive windows, in which every token but the first is a target exactly once.

    Ranks take batches in turn. The last batches are padded with windows past the end, whose targets
    are all ignored, so that every batch of every rank has the same shape.

    Args:
        tokens: the split to gather from.
        stride: distance between windows. `block_size` covers the split; a larger stride takes an
            evenly spaced sample. With a smaller one windows overlap: the first counts all its
            targets, the others only their last `stride`, which have more context.
    """

    def __init__(
        self,
        tokens: Tensor | Span,
        block_size: int,
        batch_size: int,
        stride: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(tokens, block_size)
        self.stride = stride or block_size
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        after_the_first = self.length - 1 - max(self.block_size, self.stride)  # targets
        windows = 1 + -(-max(0, after_the_first) // self.stride)
        return -(-windows // (self.batch_size * self.world_size))

    def offsets(self, batch: int) -> np.ndarray:
        start = (batch * self.world_size + self.rank) * self.batch_size
        return (start + np.arange(self.batch_size, dtype=np.int64)) * self.stride

    def __getitem__(self, batch: int) -> Batch:
        if self.stride >= self.block_size:
            return super().__getitem__(batch)
        inputs, targets = super().__getitem__(batch)
        seen_before = torch.arange(self.block_size) < self.block_size - self.stride
        later = torch.from_numpy(self.offsets(batch) > 0)[:, None]  # after the first window
        counted_before = (later & seen_before).to(targets.device)
        return inputs, targets.masked_fill(counted_before, IGNORED)
