"""Does a model copy? How much of what it writes stands word for word in the training text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from litchar.analysis.passages import MIX, window_hashes
from litchar.text.ngrams import find_sorted

LENGTHS = (4, 8, 16, 32, 64)  # of the n-grams that are looked for, in tokens
TABLE_BITS = 20  # of a table that tells most windows of the training text from those wanted


@dataclass(frozen=True)
class Copied:
    """What of some texts stands in the training text.

    Attributes:
        shares: how many of the texts' n-grams stand there, of 1: n -> share; without those n that
            every text is too short for.
        reach: for each token of each text, the highest of `LENGTHS` of which an n-gram that
            contains it stands there; 0: none.
    """

    shares: dict[int, float]
    reach: list[np.ndarray]


@dataclass(frozen=True)
class CopiedPassage:
    """A passage of a text that stands in the training text.

    Attributes:
        text: which of the texts.
        start: where it begins there.
        place: where it begins in the training text.
        length: in tokens.
    """

    text: int
    start: int
    place: int
    length: int


def find_copied(texts: Sequence[np.ndarray], train: np.ndarray, vocab_size: int) -> Copied:
    """Look for the n-grams of `texts` in `train`, by their hashes.

    The training text is read once, in pieces; memory is bounded by the texts' own length.
    """
    hashes = {n: [_hashes(text, n, vocab_size) for text in texts] for n in LENGTHS}
    wanted = {n: Wanted(np.concatenate(of_texts)) for n, of_texts in hashes.items()}
    wanted = {n: some for n, some in wanted.items() if len(some.hashes)}
    if wanted:
        for _, n, windows in window_hashes(train, vocab_size, tuple(wanted)):
            at, _ = wanted[n].find(windows)
            wanted[n].strike(at)
    shares: dict[int, float] = {}
    reach = [np.zeros(len(text), np.int64) for text in texts]
    for n, some in wanted.items():
        stands = [some.struck[np.searchsorted(some.hashes, text)] for text in hashes[n]]
        shares[n] = float(np.concatenate(stands).mean())
        for tokens, begins in zip(reach, stands, strict=True):
            for start in np.flatnonzero(begins):
                tokens[start : start + n] = n
    return Copied(shares, reach)


def longest_copied(
    texts: Sequence[np.ndarray], train: np.ndarray, vocab_size: int
) -> CopiedPassage | None:
    """Return the longest passage of `texts` that stands in `train`; None if no token does.

    A passage stands there only if its parts do, so that bisection finds the length, with a pass
    over the training text for each step.
    """
    found, known, too_long = None, 0, max(map(len, texts), default=0) + 1
    while known + 1 < too_long:
        length = min(max(1, 2 * known), (known + too_long) // 2)
        passage = _first_copied(texts, length, train, vocab_size)
        if passage is None:
            too_long = length
        else:
            found, known = passage, length
    return found


def _first_copied(
    texts: Sequence[np.ndarray], length: int, train: np.ndarray, vocab_size: int
) -> CopiedPassage | None:
    """Return the passage of `length` tokens of `texts` that stands first in `train`."""
    hashes = [_hashes(text, length, vocab_size) for text in texts]
    wanted = Wanted(np.concatenate(hashes))
    for first, _, windows in window_hashes(train, vocab_size, (length,)):
        at, places = wanted.find(windows)
        for i, place in zip(at[:1], first + places[:1], strict=True):
            for text, of_text in enumerate(hashes):
                for start in np.flatnonzero(of_text == wanted.hashes[i])[:1]:
                    return CopiedPassage(text, int(start), int(place), length)
    return None


class Wanted:
    """Hashes that are looked for among many, most of which are others.

    Args:
        hashes: (K,) uint64, repeats do not matter.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = np.unique(hashes)
        self.struck = np.zeros(len(self.hashes), bool)
        self._table = self._of_open()

    def find(self, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which hashes that are not struck yet stand in `among`, and where."""
        places = np.flatnonzero(self._table[_slots(among)])
        at, right = find_sorted(self.hashes, among[places])
        return at[right], places[right]

    def strike(self, at: np.ndarray) -> None:
        """Look for these no more."""
        if len(at):
            self.struck[at] = True
            self._table = self._of_open()

    def _of_open(self) -> np.ndarray:
        table = np.zeros(1 << TABLE_BITS, bool)
        table[_slots(self.hashes[~self.struck])] = True
        return table


def _slots(hashes: np.ndarray) -> np.ndarray:
    return (hashes * MIX) >> np.uint64(64 - TABLE_BITS)


def _hashes(tokens: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    """Return the hashes of all windows of `length` tokens, by their places."""
    pieces = [hashes for _, _, hashes in window_hashes(tokens, vocab_size, (length,))]
    return np.concatenate([np.zeros(0, np.uint64), *pieces])
