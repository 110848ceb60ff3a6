"""Verbatim copying: how much of a text, such as a model's output, occurs in another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from litchar.analysis.passages import MIX, hash_windows, window_hashes
from litchar.text.ngrams import find_sorted

LENGTHS = (4, 8, 16, 32, 64)  # of the n-grams that are looked up, in tokens
TABLE_BITS = 20  # log2 of the minimum size of the table that rules out most windows of a text


@dataclass(frozen=True)
class Copied:
    """How much of some texts occurs in the training text.

    Attributes:
        shares: n -> the fraction of the texts' n-grams that occur there; without those n for which
            every text is too short.
        reach: for each token of each text, the largest of `LENGTHS` for which an n-gram that
            contains it occurs there; 0: none.
    """

    shares: dict[int, float]
    reach: list[np.ndarray]


@dataclass(frozen=True)
class CopiedPassage:
    """A passage of a text that occurs in the training text.

    Attributes:
        text: the index of the text.
        start: where it begins in that text.
        place: where it begins in the training text.
        length: in tokens.
    """

    text: int
    start: int
    place: int
    length: int


def find_copied(texts: Sequence[np.ndarray], train: np.ndarray, vocab_size: int) -> Copied:
    """Look up the n-grams of `texts` in `train`, by their hashes.

    The training text is read once, in chunks; memory is bounded by the length of `texts`.
    """
    hashes = {n: [hash_windows(t, vocab_size, n).hashes for t in texts] for n in LENGTHS}
    joined = {n: np.concatenate(of_texts) for n, of_texts in hashes.items()}
    shares: dict[int, float] = {}
    reach = [np.zeros(len(text), np.int64) for text in texts]
    for n, stand in standing(joined, train, vocab_size).items():
        if len(stand):
            shares[n] = float(stand.mean())
        ends = np.cumsum([len(of_text) for of_text in hashes[n]])[:-1]
        for tokens, begins in zip(reach, np.split(stand, ends), strict=True):
            for start in np.flatnonzero(begins):
                tokens[start : start + n] = n
    return Copied(shares, reach)


def standing(
    hashes: Mapping[int, np.ndarray], tokens: np.ndarray, vocab_size: int, times: int = 1
) -> dict[int, np.ndarray]:
    """Return which windows occur at least `times` times in `tokens`: by length, (K,) bool.

    The tokens are read once, in chunks; memory is bounded by the number of windows.

    Args:
        hashes: of the windows, by their length: (K,) uint64
    """
    wanted = {length: Wanted(some, times) for length, some in hashes.items()}
    for _, length, windows in window_hashes(tokens, vocab_size, tuple(wanted)):
        at, _ = wanted[length].find(windows)
        wanted[length].strike(at)
    return {length: some.left[some.inverse] <= 0 for length, some in wanted.items()}


def longest_copied(
    texts: Sequence[np.ndarray], train: np.ndarray, vocab_size: int
) -> CopiedPassage | None:
    """Return the longest passage of `texts` that occurs in `train`; None if no token does.

    A passage occurs only if all its parts do, so the length is found by bisection, with one pass
    over the training text per step.
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
    """Return the passage of `length` tokens of `texts` that occurs earliest in `train`."""
    hashes = [hash_windows(text, vocab_size, length).hashes for text in texts]
    wanted = Wanted(np.concatenate(hashes))
    for first, _, windows in window_hashes(train, vocab_size, (length,)):
        at, places = wanted.find(windows)
        for k in places.argsort()[:1]:  # the first
            i, place = at[k], first + places[k]
            for text, of_text in enumerate(hashes):
                for start in np.flatnonzero(of_text == wanted.hashes[i])[:1]:
                    return CopiedPassage(text, int(start), int(place), length)
    return None


class Wanted:
    """A set of hashes to look for among many more, few of which match.

    Args:
        given: (K,) uint64; repeats do not matter.
        times: how many occurrences of each to look for.

    Attributes:
        hashes: the distinct ones of `given`, ascending.
        inverse: the index in `hashes` of each of `given`: (K,)
        left: how many occurrences of each of `hashes` are still wanted.
    """

    def __init__(self, given: np.ndarray, times: int = 1) -> None:
        self.hashes, self.inverse = np.unique(given, return_inverse=True)
        self.left = np.full(len(self.hashes), times, np.int32)
        self._shift = np.uint64(64 - max(TABLE_BITS, (8 * len(self.hashes)).bit_length()))
        self._fill()

    def find(self, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which hashes that are still wanted occur in `among`, and where: two arrays of
        indices, into `hashes` and into `among`."""
        places = np.flatnonzero(self._table[self._slots(among)])
        places = places[np.argsort(among[places])]  # sorted queries read memory in order
        at, right = find_sorted(self.hashes, among[places])
        right &= self.left[at] > 0
        return at[right], places[right]

    def strike(self, at: np.ndarray) -> None:
        """Count an occurrence of each of `at`, indices into `hashes`."""
        np.subtract.at(self.left, at, 1)
        self._struck += len(at)
        if 8 * self._struck > len(self.hashes):
            self._fill()

    def _fill(self) -> None:
        """Build the table that rules out most hashes that are not wanted, or no longer."""
        self._struck = 0  # occurrences counted since
        self._table = np.zeros(1 << (64 - int(self._shift)), bool)
        self._table[self._slots(self.hashes[self.left > 0])] = True

    def _slots(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes * MIX) >> self._shift
