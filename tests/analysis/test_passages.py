"""Windows, lines and repeated passages, checked against plain Python."""

import math
from collections import Counter

import numpy as np
import pytest

from litchar.analysis import passages
from litchar.analysis.copying import standing
from litchar.analysis.passages import (
    Repeats,
    by_chance,
    by_content,
    hash_lines,
    hash_windows,
    longest_passages,
    sampled_bits,
    share_in,
)


def noise(length, seed=0, vocab_size=20):
    return np.random.default_rng(seed).integers(0, vocab_size, length).astype(np.uint8)


@pytest.mark.parametrize("chunk", [7, 64, 1 << 16])
def test_windows_have_equal_hashes_where_they_are_equal(monkeypatch, chunk):
    monkeypatch.setattr(passages, "CHUNK", chunk)
    tokens = noise(300, vocab_size=2)
    for length in (3, 9, 400):
        windows = hash_windows(tokens, 2, length)
        expected = [tokens[i : i + length].tobytes() for i in range(len(tokens) - length + 1)]
        assert windows.places.tolist() == list(range(len(expected)))
        by_hash, by_content = {}, {}
        for window, number in zip(expected, windows.hashes.tolist(), strict=True):
            assert by_hash.setdefault(number, window) == window
            assert by_content.setdefault(window, number) == number


def test_a_sample_of_windows_is_chosen_by_content():
    page = noise(20_000)
    tokens = np.concatenate((page, noise(777, 1), page))
    every = hash_windows(tokens, 20, 50)
    some = hash_windows(tokens, 20, 50, by_content(bits=3))
    assert len(some.places) == pytest.approx(len(every.places) / 8, rel=0.1)
    assert np.isin(some.hashes, every.hashes).all()
    kept = set(some.places.tolist())
    assert all((place in kept) == (place + 20_777 in kept) for place in range(20_000 - 49))


@pytest.mark.parametrize(
    ("length", "bits"), [(1, 0), (1 << 22, 0), ((1 << 22) + 1, 1), (10**8, 5), (10**9, 8)]
)
def test_about_four_million_windows_are_kept_at_most(length, bits):
    assert sampled_bits(length) == bits
    assert length / 2**bits <= 1 << 22


@pytest.mark.parametrize("chunk", [5, 1 << 16])
def test_lines_have_equal_hashes_where_they_are_equal(monkeypatch, chunk):
    monkeypatch.setattr(passages, "CHUNK", chunk)
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 4, 200)
    stops = np.cumsum(lengths + 1) - 1
    starts = stops - lengths
    tokens = noise(int(stops[-1]), vocab_size=2)
    lines = [tokens[a:b].tobytes() for a, b in zip(starts, stops, strict=True)]
    hashes = hash_lines(tokens, 2, starts, stops).tolist()
    assert len(set(zip(lines, hashes, strict=True))) == len(set(lines)) == len(set(hashes))


def test_a_sample_by_chance_has_the_text_in_its_proportions(monkeypatch):
    """Chosen by content, the windows of a run of one character would all be kept, or none."""
    monkeypatch.setattr(passages, "MOST_DRAWN", 20_000)
    tokens = np.concatenate((noise(150_000), np.zeros(50_000, np.uint8)))
    some = hash_windows(tokens, 20, 50, by_chance(len(tokens)))
    assert len(some.places) == pytest.approx(20_000, rel=0.05)
    assert (some.places >= 150_000).mean() == pytest.approx(1 / 4, abs=0.02)
    every = hash_windows(tokens, 20, 50)
    assert (some.hashes == every.hashes[some.places]).all()


@pytest.mark.parametrize("chunk", [64, 1 << 16])
def test_windows_stand_in_a_text_as_often_as_they_do(monkeypatch, chunk):
    monkeypatch.setattr(passages, "CHUNK", chunk)
    train = np.concatenate((noise(4000, vocab_size=3), noise(4000, 1, 3), np.zeros(90, np.uint8)))
    texts = {n: noise(3000, n, 3) for n in (3, 7, 8, 50)}
    texts[50][100:170] = 0
    hashes = {n: hash_windows(text, 3, n).hashes for n, text in texts.items()}
    for times in (1, 2, 5):
        found = standing(hashes, train, 3, times)
        for n, text in texts.items():
            counts = Counter(train[i : i + n].tobytes() for i in range(len(train) - n + 1))
            windows = [text[i : i + n].tobytes() for i in range(len(text) - n + 1)]
            assert found[n].tolist() == [counts[window] >= times for window in windows]
    assert standing({3: hashes[3][:0]}, train, 3)[3].tolist() == []


def test_the_share_of_lines_that_stand_in_training_is_exact():
    held_out, train = (np.array(hashes, np.uint64) for hashes in ([5, 1, 5, 9], [1, 7, 5]))
    assert share_in(held_out, train) == 3 / 4
    assert share_in(held_out, train[:0]) == 0
    assert math.isnan(share_in(held_out[:0], train))  # of nothing there is no share


def repeats_of(tokens, bits=0):
    return Repeats(tokens, hash_windows(tokens, 20, 50, by_content(bits)), 50)


def test_planted_passages_are_found_whole():
    long, short = noise(500, 1), noise(80, 2)
    tokens = np.concatenate((noise(100, 3), long, short, noise(900, 4), short, noise(5, 5), long))
    for bits in (0, 2):
        found = repeats_of(tokens, bits)
        assert [
            (passage.length, passage.places) for passage in longest_passages(found, 20, bits, 10)
        ] == [
            (500, [100, 1665]),
            (80, [600, 1580]),
        ]
    twice = standing({50: hash_windows(tokens, 20, 50).hashes}, tokens, 20, times=2)[50]
    assert twice.sum() == 2 * (451 + 31)
    assert found.most_frequent(10) == []  # twice is not often


def test_a_long_passage_is_found_where_its_pieces_stand_in_between_as_well():
    messages = [noise(80, seed) for seed in range(6)]
    draw = np.random.default_rng(1)
    lines = [messages[i] for i in draw.integers(6, size=200)]
    tokens = np.concatenate((*lines, noise(30, 7), *lines[20:60], noise(30, 8), *lines[120:]))
    found = longest_passages(repeats_of(tokens), 20, 0, 2)
    lengths = [passage.length for passage in found]
    assert lengths == pytest.approx([80 * 80, 40 * 80], abs=2)  # what stands beside may agree
    once = longest_passages(repeats_of(tokens), 20, 1, 10)  # as if it were long: read once
    assert max(passage.length for passage in once) < 30 * 80


def test_what_stands_many_times_running_does_not_hide_what_is_longer():
    lines = [p for i in range(250) for p in (*[noise(80, i)] * 20, noise(10, 500 + i))]
    long = noise(1000, 999)
    found = longest_passages(repeats_of(np.concatenate((long, *lines, long))), 20, 0, 2)
    assert (found[0].length, found[0].places[0]) == (1000, 0)


@pytest.mark.parametrize("period", [1, 7, 97])
def test_what_is_repeated_without_a_break_is_found_at_half_its_length_or_more(period):
    tokens = np.concatenate((noise(100, 1), np.tile(noise(period, 2), 6000 // period), noise(9, 3)))
    longest = longest_passages(repeats_of(tokens), 20, 0, 10)[0]
    a, b = longest.places
    assert (tokens[a : a + longest.length] == tokens[b : b + longest.length]).all()
    assert 1500 <= longest.length <= b - a


def test_what_overlaps_itself_is_not_a_repeat():
    dashes = np.zeros(70, np.uint8)
    between = [noise(30, seed, 19) + 1 for seed in range(3)]
    tokens = np.concatenate((between[0], dashes, between[1], dashes, between[2]))
    (found,) = longest_passages(repeats_of(tokens), 20, 0, 10)
    assert (found.length, found.places) == (70, [30, 130])


def test_the_most_frequent_passages_are_as_long_as_all_their_places_agree():
    often, thrice = noise(60, 1), noise(200, 2)
    pieces = [p for i in range(7) for p in (noise(30 + i, 10 + i), often)]
    pieces += [p for i in range(3) for p in (noise(40, 30 + i), thrice)]
    tokens = np.concatenate(pieces)
    found = repeats_of(tokens).most_frequent(10)
    assert [(passage.length, len(passage.places)) for passage in found] == [(60, 7), (200, 3)]
    for passage in found:
        texts = Counter(tokens[place:][: passage.length].tobytes() for place in passage.places)
        assert len(texts) == 1
