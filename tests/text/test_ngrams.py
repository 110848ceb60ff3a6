"""N-gram models, checked against plain dictionaries and the laws of probability."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from litchar.text import ngrams
from litchar.text.ngrams import NGrams, Packing, add_one, count_tokens, kneser_ney


@pytest.fixture
def text():
    """Draw tokens with repeated passages and a skewed distribution over the vocabulary."""

    def text(length, vocab_size=5, seed=0):
        draw = np.random.default_rng(seed)
        tokens = np.minimum(draw.geometric(0.4, length) - 1, vocab_size - 1)
        for start in draw.integers(0, length - length // 10, 8):
            passage = tokens[: length // 10].copy()
            tokens[start : start + len(passage)] = passage
        return tokens.astype(np.uint16)

    return text


def packing_of(train, vocab_size, order):
    return Packing.fit(count_tokens(train, vocab_size), order)


def slow_kneser_ney(train, scored, vocab_size, order):
    """Compute Chen and Goodman's formula with one dictionary per order."""
    tables = {order: Counter(tuple(train[i : i + order]) for i in range(len(train) - order + 1))}
    for n in range(order - 1, 0, -1):
        tables[n] = Counter(gram[1:] for gram in tables[n + 1])
    following, discounts = {}, {}
    for n, table in tables.items():
        following[n] = defaultdict(list)
        for gram, count in table.items():
            following[n][gram[:-1]].append(count)
        n1, n2, n3, n4 = (sum(c == k for c in table.values()) for k in (1, 2, 3, 4))
        discounts[n] = (0, 0.5, 1, 1.5)
        if n1 and n2 and n3:
            y = n1 / (n1 + 2 * n2)
            d = (0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
            discounts[n] = d if min(d[1:]) > 0 else discounts[n]

    def probability(context, token):
        n = len(context) + 1
        lower = probability(context[1:], token) if n > 1 else 1 / vocab_size
        counts = following[n].get(context)
        if counts is None:
            return lower
        off = discounts[n]
        count = tables[n].get((*context, token), 0)
        left = sum(off[min(c, 3)] for c in counts)
        return (count - off[min(count, 3)] + left * lower) / sum(counts)

    return [
        probability(tuple(scored[max(0, i - order + 1) : i]), scored[i])
        for i in range(1, len(scored))
    ]


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("length", [40, 3000])
def test_kneser_ney_is_that_of_the_paper(text, length, order):
    tokens = text(length)
    train, scored = tokens[: length - 30], tokens[-30:]
    found, used = kneser_ney(packing_of(train, 5, order), train, scored)
    assert used == order
    assert found == pytest.approx(slow_kneser_ney(train.tolist(), scored.tolist(), 5, order))


@pytest.mark.parametrize("vocab_size", [2, 5, 300])
@pytest.mark.parametrize("most", [40, 1 << 62])
def test_probabilities_sum_to_one_in_any_context(text, vocab_size, most):
    train = text(2000, vocab_size)
    packing = packing_of(train, vocab_size, 8)
    assert (packing.codes.max() < vocab_size - 1) == (vocab_size == 300)  # rare ones share a code
    draw = np.random.default_rng(1)
    contexts = [train[i : i + n] for i, n in [(5, 9), (100, 8), (700, 3), (9, 1), (1990, 10)]]
    contexts += [draw.integers(0, vocab_size, n).astype(np.uint16) for n in (1, 2, 5, 9)]
    counts = count_tokens(train, vocab_size)
    for context in contexts[:: 3 if vocab_size == 300 else 1]:
        endings = [np.append(context, np.uint16(token)) for token in range(vocab_size)]
        for predict in (
            lambda scored: kneser_ney(packing, train, scored, most)[0],
            lambda scored: add_one(counts, train, scored, 1),
            lambda scored: add_one(counts, train, scored, 2),
        ):
            probabilities = np.array([predict(scored)[-1] for scored in endings])
            assert probabilities.min() > 0
            assert probabilities.sum() == pytest.approx(1)


def test_add_one_is_a_count_plus_one(text):
    train, scored = text(500), text(30, seed=1)
    pairs = Counter(zip(train[:-1].tolist(), train[1:].tolist(), strict=True))
    tokens, before = Counter(train.tolist()), Counter(train[:-1].tolist())
    counts = count_tokens(train, 5)
    ones = [(tokens[b] + 1) / 505 for b in scored[1:].tolist()]
    twos = [
        (pairs[a, b] + 1) / (before[a] + 5)
        for a, b in zip(scored[:-1].tolist(), scored[1:].tolist(), strict=True)
    ]
    assert add_one(counts, train, scored, 1) == pytest.approx(ones)
    assert add_one(counts, train, scored, 2) == pytest.approx(twos)


@pytest.mark.parametrize("most", [5, 20, 100, 1000])
def test_the_order_is_the_highest_whose_ngrams_fit(text, most):
    tokens = text(3000)
    packing = packing_of(tokens, 5, 8)
    table = NGrams.count(tokens, packing, most)
    order = table.packing.order
    distinct = {
        n: len({tuple(tokens[i : i + n]) for i in range(8 - n, 3001 - n)})
        for n in (order, order + 1)
    }
    assert distinct[order] <= most < distinct[order + 1]
    direct, counts = np.unique(table.packing.pack(tokens[8 - order :]), return_counts=True)
    assert table.grams.tolist() == direct.tolist()
    assert table.counts.tolist() == counts.tolist()
    assert kneser_ney(packing, tokens, tokens[:50], most)[1] == order


def test_a_text_in_pieces_is_counted_like_a_whole_one(text, monkeypatch):
    tokens = text(500)
    packing = packing_of(tokens, 5, 4)
    whole = kneser_ney(packing, tokens[:400], tokens[400:])[0]
    monkeypatch.setattr(ngrams, "CHUNK", 7)
    assert count_tokens(tokens, 5).tolist() == np.bincount(tokens).tolist()
    assert kneser_ney(packing, tokens[:400], tokens[400:])[0].tolist() == whole.tolist()


@pytest.mark.parametrize(
    ("counts", "order", "bits"),
    [
        (np.ones(256), 8, 8),
        (np.ones(257), 7, 9),  # all alike: none may share a code
        (np.append(np.full(100, 1000), np.ones(900)), 8, 7),  # those in 1% may
        (np.ones(0x110000), 3, 21),
        (np.array([1, 1]), 2, 1),  # no text of two tokens has longer ones
    ],
)
def test_the_order_is_lowered_until_64_bits_suffice(counts, order, bits):
    packing = Packing.fit(counts, 8)
    assert (packing.order, packing.bits) == (order, bits)
    assert packing.codes.max() < 2**bits
    last = np.array([len(counts) - 1] * order, np.uint32)
    assert int(packing.pack(last)[0]) >> (bits * (order - 1)) == len(counts) - 1
