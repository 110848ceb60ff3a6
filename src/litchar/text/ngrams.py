"""Count-based language models: add-one smoothing, and interpolated Kneser-Ney n-grams.

An n-gram is packed into a 64-bit integer: the last token in the highest bits, the oldest in the
lowest. Sorted n-grams stay sorted when the oldest token is shifted out, so the table of each order
is derived from that of the next higher order without sorting again.
"""

from dataclasses import dataclass, replace

import numpy as np

CHUNK = 1 << 22  # tokens or n-grams at a time
BYTES_PER_NGRAM = 64  # peak memory while a table is built
MOST_SHARED = 0.01  # share of a text in rare tokens that contexts need not tell apart


def count_tokens(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return how often each token occurs: (V,) int64. Memory-mapped tokens are read in pieces."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(tokens), CHUNK):
        counts += np.bincount(tokens[start : start + CHUNK], minlength=vocab_size)
    return counts


@dataclass(frozen=True)
class Packing:
    """How n-grams are packed into integers.

    Attributes:
        order: n.
        bits: per token of the context; the last token takes as many as its id needs.
        codes: the code of each token within a context: (V,) uint64
    """

    order: int
    bits: int
    codes: np.ndarray

    @classmethod
    def fit(cls, counts: np.ndarray, order: int) -> "Packing":
        """Return the packing of the highest order, up to `order`, that fits in 64 bits.

        If there are too few codes for all tokens, the rarest share one, provided they make up at
        most `MOST_SHARED` of the text; as last tokens they remain distinct.

        Args:
            counts: how often each token occurs in the text: (V,)
        """
        order = min(order, int(counts.sum()))  # a shorter text has no such n-grams
        full = max(1, (len(counts) - 1).bit_length())
        frequent_first = np.argsort(-counts, kind="stable")
        while True:
            bits = full if order < 2 else min(full, (64 - full) // (order - 1))
            own = len(counts) if bits == full else 2**bits - 1  # tokens with a code of their own
            if counts[frequent_first[own:]].sum() <= MOST_SHARED * counts.sum():
                break
            order -= 1
        codes = np.empty(len(counts), np.uint64)
        codes[frequent_first] = np.minimum(np.arange(len(counts)), own)
        return cls(order, bits, codes)

    def pack(self, tokens: np.ndarray) -> np.ndarray:
        """Return the n-grams of `tokens`, in order of position: (N - n + 1,) uint64."""
        count = max(0, len(tokens) - self.order + 1)
        last = tokens[self.order - 1 :].astype(np.uint64)
        grams = last << np.uint64(self.bits * (self.order - 1))
        contexts = self.codes[tokens]
        for place in range(self.order - 1):  # oldest first
            grams |= contexts[place : place + count] << np.uint64(self.bits * place)
        return grams

    def contexts_of(self, grams: np.ndarray) -> np.ndarray:
        """Return the contexts of n-grams: all tokens but the last."""
        return grams & np.uint64((1 << self.bits * (self.order - 1)) - 1)

    def shorter(self) -> "Packing":
        """Return the packing of one order lower, without the oldest token."""
        return replace(self, order=self.order - 1)


@dataclass(frozen=True)
class NGrams:
    """The distinct n-grams of a text and a count for each.

    Attributes:
        packing: how the n-grams are packed.
        grams: the packed n-grams, sorted: (G,) uint64
        counts: how often each occurs, or how many distinct tokens precede it: (G,) uint32
    """

    packing: Packing
    grams: np.ndarray
    counts: np.ndarray

    @classmethod
    def count(cls, tokens: np.ndarray, packing: Packing, most: int = 1 << 62) -> "NGrams":
        """Count the n-grams of `tokens`: (N,) ids, read in pieces.

        Whenever there are more than `most` distinct ones, the order is lowered.
        """
        table = cls(packing, np.zeros(0, np.uint64), np.zeros(0, np.uint32))
        step = min(CHUNK, most)
        for last in range(packing.order - 1, len(tokens), step):
            first = last - table.packing.order + 1
            piece = table.packing.pack(tokens[first : last + step])
            table = table._with(*np.unique(piece, return_counts=True))
            while len(table.grams) > most and table.packing.order > 1:
                table = table._shorter(table.counts)
        return table

    def _with(self, grams: np.ndarray, counts: np.ndarray) -> "NGrams":
        grams = np.concatenate((self.grams, grams))
        by_gram = np.argsort(grams, kind="stable")  # two sorted runs: a merge
        counts = np.concatenate((self.counts, counts.astype(np.uint32)))
        return _merged(self.packing, grams[by_gram], counts[by_gram])

    def _shorter(self, counts: np.ndarray) -> "NGrams":
        """Return the table of one order lower, without the oldest token, with `counts` summed."""
        return _merged(self.packing.shorter(), self.grams >> np.uint64(self.packing.bits), counts)

    def continuations(self) -> "NGrams":
        """Return the table of one order lower; its counts are of distinct preceding tokens."""
        return self._shorter(np.ones_like(self.counts))

    def look_up(self, grams: np.ndarray) -> np.ndarray:
        """Return the counts of `grams`, 0 for unseen ones; fast if they are sorted."""
        at, found = find_sorted(self.grams, grams)
        return np.where(found, self.counts[at], 0)

    def follow(self, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return statistics of what follows `contexts`: (C,) uint64, sorted and distinct.

        Returns:
            the total count of the n-grams with each context, (C,), and how many of them have a
            count of 1, 2, and 3 or more, (C, 3)
        """
        totals = np.zeros(len(contexts))
        kinds = np.zeros(3 * len(contexts), np.int64)
        for start in range(0, len(self.grams), CHUNK):
            piece = slice(start, start + CHUNK)
            at, found = find_sorted(contexts, self.packing.contexts_of(self.grams[piece]))
            at, counts = at[found], self.counts[piece][found]
            totals += np.bincount(at, counts, len(totals))
            kinds += np.bincount(3 * at + np.minimum(counts, 3) - 1, minlength=len(kinds))
        return totals, kinds.reshape(-1, 3)

    def discounts(self) -> np.ndarray:
        """Return modified Kneser-Ney's discounts for counts of 0, 1, 2, and 3 or more: (4,)."""
        n1, n2, n3, n4 = (int(np.count_nonzero(self.counts == c)) for c in (1, 2, 3, 4))
        usual = np.array([0, 0.5, 1, 1.5])  # if the text is too short or too regular to estimate
        if not (n1 and n2 and n3):
            return usual
        y = n1 / (n1 + 2 * n2)
        found = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        return found if (found[1:] > 0).all() else usual


def _merged(packing: Packing, grams: np.ndarray, counts: np.ndarray) -> NGrams:
    """Return the table in which equal neighbours in the sorted `grams` are merged."""
    first = np.empty(len(grams), bool)
    first[:1] = True
    np.not_equal(grams[1:], grams[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    return NGrams(packing, grams[starts], np.add.reduceat(counts, starts, dtype=np.uint32))


def find_sorted(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each of `wanted` in the sorted `values`, and whether it is there."""
    at = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return at, values[at] == wanted


def add_one(counts: np.ndarray, train: np.ndarray, scored: np.ndarray, order: int) -> np.ndarray:
    """Return the add-one-smoothed probabilities of the tokens of `scored` but the first.

    Every count in `train` is increased by one, so that no probability is zero.

    Args:
        counts: how often each token occurs in `train`: (V,)
        order: 1: unigrams; 2: bigrams, given the previous token.

    Returns:
        (len(scored) - 1,)
    """
    if order == 1:
        unigrams: np.ndarray = (counts[scored[1:]] + 1) / (counts.sum() + len(counts))
        return unigrams
    table = NGrams.count(train, Packing.fit(counts, 2))
    grams = table.packing.pack(scored)
    contexts, place = np.unique(table.packing.contexts_of(grams), return_inverse=True)
    totals, _ = table.follow(contexts)
    bigrams: np.ndarray = (table.look_up(grams) + 1) / (totals[place] + len(counts))
    return bigrams


def kneser_ney(
    packing: Packing, train: np.ndarray, scored: np.ndarray, most: int = 1 << 62
) -> tuple[np.ndarray, int]:
    """Return the probabilities of the tokens of `scored` but the first, and the order used.

    Interpolated modified Kneser-Ney smoothing (Chen & Goodman, "An empirical study of smoothing
    techniques for language modeling", 1999), with the uniform distribution below order 1. Each
    token is predicted from at most `order - 1` tokens before it in `scored`; in any context the
    probabilities of all tokens sum to one.

    Args:
        packing: for the order wanted.
        most: the maximum number of distinct n-grams; the order is lowered until they fit.

    Returns:
        (len(scored) - 1,), and the order
    """
    table = NGrams.count(train, packing, most)
    order = table.packing.order
    before = np.zeros(max(0, order - 2), scored.dtype)  # pads the first contexts
    grams = table.packing.pack(np.concatenate((before, scored)))[-(len(scored) - 1) :]
    known = np.minimum(np.arange(len(grams)) + 2, order)  # tokens of an n-gram that are not padding
    by_gram = np.argsort(grams)
    grams, known = grams[by_gram], known[by_gram]
    total, weight = np.zeros(len(grams)), np.ones(len(grams))
    while True:
        contexts, place = np.unique(table.packing.contexts_of(grams), return_inverse=True)
        totals, kinds = table.follow(contexts)
        discounts = table.discounts()
        found = table.look_up(grams)
        seen = (known >= table.packing.order) & (totals[place] > 0)
        of = np.where(seen, totals[place], 1)
        total += seen * weight * (found - discounts[np.minimum(found, 3)]) / of
        weight *= np.where(seen, (kinds @ discounts[1:])[place] / of, 1)
        if table.packing.order == 1:
            break
        grams >>= np.uint64(table.packing.bits)
        table = table.continuations()
    probabilities = np.empty(len(grams))
    probabilities[by_gram] = total + weight / len(packing.codes)
    return probabilities, order
