"""Passages that occur more than once in a text, and how much of one split occurs in another.

Windows of a text are compared by rolling hash (Karp & Rabin, "Efficient randomized pattern-matching
algorithms", 1987): with x[i] = code[token i] * B^i mod 2^64, the window of w tokens at i hashes to
(x[i] + ... + x[i + w - 1]) / B^i, which one cumulative sum gives for all windows at once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from litchar.text.ngrams import find_sorted

CHUNK = 1 << 16  # tokens at a time: small enough that all arrays stay in a core's cache
MOST_WINDOWS = 1 << 22  # to keep: of longer texts a half, a quarter ... of all windows
MOST_DRAWN = 1 << 20  # windows sampled to estimate a share, which is then known to within 0.2%
LONGEST_WINDOW = CHUNK  # a longer one would be hashed again with each chunk that it reaches into
LONGEST_LINE = 1 << 20  # tokens of a line that are compared
MIX = np.uint64(0x9E3779B97F4A7C15)  # spreads a hash's low bits to its high ones


class Hasher:
    """Hashes windows and lines of tokens.

    Args:
        vocab_size: V.
        reach: the maximum number of tokens that are hashed at a time.
    """

    def __init__(self, vocab_size: int, reach: int) -> None:
        draw = np.random.default_rng(0)
        self.codes = draw.integers(0, 2**64, vocab_size, np.uint64)
        base = int(draw.integers(0, 2**63)) * 2 + 1  # odd, and so invertible
        self.powers = _powers(base, reach)
        self.inverses = _powers(pow(base, -1, 2**64), reach)

    def sums(self, tokens: np.ndarray) -> np.ndarray:
        """Return the cumulative sums of x, whose differences give the hashes: (N + 1,) uint64."""
        sums = np.empty(len(tokens) + 1, np.uint64)
        sums[0] = 0
        np.multiply(self.codes[tokens], self.powers[: len(tokens)], out=sums[1:])
        return np.cumsum(sums, out=sums)


def _powers(base: int, count: int) -> np.ndarray:
    """Return `base` to the power of 0, 1, ... modulo 2^64: (count,) uint64."""
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, out=powers)


@dataclass(frozen=True)
class Windows:
    """Windows of one length.

    Attributes:
        places: where they begin: (K,) int64, ascending
        hashes: (K,) uint64
    """

    places: np.ndarray
    hashes: np.ndarray


def sampled_bits(length: int) -> int:
    """Return how many hash bits must be 0 to keep about `MOST_WINDOWS` windows of `length`."""
    return max(0, (length - 1).bit_length() - (MOST_WINDOWS.bit_length() - 1))


Kept = Callable[[np.ndarray], np.ndarray]  # hashes -> which windows to keep: (K,) bool


def by_content(bits: int) -> Kept:
    """Keep the windows whose mixed hash starts with `bits` zeros: of equal windows, all or none."""
    least = np.uint64((1 << 64) - 1 >> bits)
    return lambda hashes: hashes * MIX <= least


def by_chance(length: int) -> Kept:
    """Keep each window of a text of `length` with equal probability, about `MOST_DRAWN` in all."""
    draw = np.random.default_rng(0)
    return lambda hashes: draw.random(len(hashes)) < MOST_DRAWN / length


def hash_windows(
    tokens: np.ndarray, vocab_size: int, length: int, kept: Kept | None = None
) -> Windows:
    """Return the windows of `length` tokens, all of them or those that are to be kept.

    Args:
        tokens: (N,) ids, read in chunks.
    """
    places, found = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for start, _, hashes in window_hashes(tokens, vocab_size, (length,)):
        at = np.arange(len(hashes)) if kept is None else np.flatnonzero(kept(hashes))
        places.append(start + at)
        found.append(hashes[at])
    return Windows(np.concatenate(places), np.concatenate(found))


def window_hashes(
    tokens: np.ndarray, vocab_size: int, lengths: tuple[int, ...]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield the hashes of all windows of each of `lengths`, chunk by chunk: where the first window
    of the chunk begins, the length, and the hashes.

    Args:
        tokens: (N,) ids, read in chunks.
    """
    longest = max(lengths)
    hasher = Hasher(vocab_size, CHUNK + longest)
    for start in range(0, len(tokens), CHUNK):
        sums = hasher.sums(tokens[start : start + CHUNK + longest - 1])
        for length in lengths:
            count = min(CHUNK, len(sums) - length)
            if count > 0:
                hashes = sums[length : length + count] - sums[:count]
                hashes *= hasher.inverses[:count]
                yield start, length, hashes


def hash_lines(
    tokens: np.ndarray, vocab_size: int, starts: np.ndarray, stops: np.ndarray
) -> np.ndarray:
    """Return the hashes of the lines from `starts` to `stops`: (L,) uint64. Lines are cut to
    `LONGEST_LINE` tokens."""
    hasher = Hasher(vocab_size, LONGEST_LINE)
    stops = np.minimum(stops, starts + LONGEST_LINE)
    hashes = np.empty(len(starts), np.uint64)
    first = 0
    while first < len(starts):
        # As many lines as fit in a chunk, at least one.
        last = max(first + 1, int(np.searchsorted(stops, starts[first] + CHUNK, side="right")))
        begin = starts[first]
        sums = hasher.sums(tokens[begin : stops[last - 1]])
        at = starts[first:last] - begin
        hashes[first:last] = (sums[stops[first:last] - begin] - sums[at]) * hasher.inverses[at]
        first = last
    return hashes


@dataclass(frozen=True)
class Passage:
    """A piece of text that occurs in several places.

    Attributes:
        length: in tokens.
        places: where it begins, ascending; no two overlap.
    """

    length: int
    places: list[int]


class Repeats:
    """The passages that occur more than once in a text.

    Args:
        tokens: (N,) ids
        windows: of `length` tokens; of a long text a sample.
    """

    def __init__(self, tokens: np.ndarray, windows: Windows, length: int) -> None:
        self.tokens = tokens
        self.length = length
        by_hash = np.argsort(windows.hashes, kind="stable")  # places stay ascending
        self.places = windows.places[by_hash]
        _, self.starts, self.counts = np.unique(  # of the groups of equal windows
            windows.hashes[by_hash], return_index=True, return_counts=True
        )

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where equal passages begin, in two places that do not overlap, and a lower bound
        on their length: (R,) each. Each window is paired with the next equal one."""
        group = np.repeat(np.arange(len(self.starts)), self.counts)
        keys = group * len(self.tokens) + self.places  # ascending
        later = np.searchsorted(keys, keys + self.length)
        first = np.flatnonzero(np.append(group, -1)[later] == group)
        a, b = self.places[first], self.places[later[first]]
        # Windows that follow each other in both places belong to one passage.
        order = np.lexsort((a, b - a))
        a, b = a[order], b[order]
        new = np.ones(len(a), bool)
        new[1:] = (np.diff(b - a) != 0) | (np.diff(a) > self.length)
        runs = np.flatnonzero(new)
        ends = np.append(runs, len(a))[1:] - 1
        lengths = a[ends] - a[runs] + self.length
        return a[runs], b[runs], np.minimum(lengths, b[runs] - a[runs])

    def most_frequent(self, most: int) -> list[Passage]:
        """Return the most frequent passages, with at least three places, as far as all agree."""
        found: list[Passage] = []
        for group in np.argsort(-self.counts, kind="stable")[: 50 * most]:
            if self.counts[group] < 3 or len(found) == most:
                break
            start = self.starts[group]
            places = _without_overlap(self.places[start : start + self.counts[group]], self.length)
            if len(places) < 3 or any(_covers(other, places) for other in found):
                continue
            found.append(self._grown(places))
        return sorted(found, key=lambda passage: -len(passage.places))

    def _grown(self, places: np.ndarray) -> Passage:
        """Return the passage around the windows at `places`, as far as they all agree."""
        gap = int(np.diff(places).min())
        tokens, length, last = self.tokens, self.length, len(self.tokens)
        while length < gap and places[-1] + length < last:
            following = tokens[places + length]
            if (following != following[0]).any():
                break
            length += 1
        while length < gap and places[0] > 0:
            before = tokens[places - 1]
            if (before != before[0]).any():
                break
            places, length = places - 1, length + 1
        return Passage(length, places.tolist())


def longest_passages(repeats: Repeats, vocab_size: int, bits: int, most: int) -> list[Passage]:
    """Return the longest passages that occur in two places that do not overlap.

    A window is paired only with its next occurrence, so a passage whose beginning recurs between
    its two places takes longer windows to find: their length doubles until none occurs twice.

    Args:
        bits: by which `repeats` was sampled; unless 0, the text is long and not read again.
    """
    tokens, shortest, length = repeats.tokens, repeats.length, repeats.length
    turns = [repeats.pairs()]
    while not bits and (repeats.counts > 1).any() and 2 * length <= LONGEST_WINDOW:
        length *= 2
        repeats = Repeats(tokens, hash_windows(tokens, vocab_size, length), length)
        turns.append(repeats.pairs())
    a, b, lengths = map(np.concatenate, zip(*turns, strict=True))
    found: list[Passage] = []
    seen: list[range] = []  # the places of all passages so far
    contents: set[bytes] = set()
    for pair in np.lexsort((a - b, -lengths))[: 20 * most]:  # of equals, the furthest apart first
        passage = _extended(tokens, int(a[pair]), int(b[pair]))
        if passage.length < shortest:
            continue  # a hash collision
        known = any(place in other for place in passage.places for other in seen)
        seen += [range(place, place + passage.length) for place in passage.places]
        content = tokens[passage.places[0] :][: passage.length].tobytes()
        if not known and content not in contents:
            contents.add(content)
            found.append(passage)
    return sorted(found, key=lambda passage: -passage.length)[:most]


def _extended(tokens: np.ndarray, a: int, b: int) -> Passage:
    """Return the longest passage around the equal windows at `a` and `b`, without overlap."""
    left = _agreement(tokens[:a][::-1], tokens[a:b][::-1])
    right = _agreement(tokens[a:b], tokens[b:])
    return Passage(min(left + right, b - a), [a - left, b - left])


def _agreement(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the longest common prefix of two texts."""
    step, total = 1 << 10, 0
    while True:
        x, y = a[total : total + step], b[total : total + step]
        n = min(len(x), len(y))
        different = np.flatnonzero(x[:n] != y[:n])
        if len(different) or n < step:
            return total + (int(different[0]) if len(different) else n)
        total, step = total + n, 2 * step


def _without_overlap(places: np.ndarray, length: int) -> np.ndarray:
    """Return the ascending `places` that are at least `length` apart, greedily from the first."""
    kept, i = [], 0
    while i < len(places):
        kept.append(places[i])
        i = int(np.searchsorted(places, places[i] + length))
    return np.array(kept)


def _covers(passage: Passage, places: np.ndarray) -> bool:
    """Return whether most of `places` lie within an occurrence of the passage."""
    at = np.searchsorted(passage.places, places, side="right") - 1
    inside = (at >= 0) & (places < np.array(passage.places)[at] + passage.length)
    return bool(inside.mean() > 0.5)


def share_in(held_out: np.ndarray, train: np.ndarray) -> float:
    """Return the share of the hashes of `held_out` that are also in `train`; NaN if it has none."""
    if not len(held_out):
        return math.nan
    if not len(train):
        return 0.0
    _, found = find_sorted(np.sort(train), np.sort(held_out))
    return float(found.mean())
