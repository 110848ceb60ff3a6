"""Which windows form which batch."""

import itertools

import numpy as np
import pytest
import torch

from litchar.data.windows import (
    IGNORED,
    RandomWindows,
    SequentialWindows,
    gather,
    random_places,
)

# Random offsets


def random_offsets(seed: int, start: int, count: int, places: int) -> np.ndarray:
    return random_places(seed, start, count, [1.0], np.array([0]), np.array([places]))


@pytest.mark.parametrize("seed", [0, 1337, 2**63])
def test_window_i_is_the_same_whatever_the_batch_that_asks_for_it(seed):
    whole = random_offsets(seed, 0, 60, 1000)
    for start, count in itertools.product(range(13), range(14)):
        part = random_offsets(seed, start, count, 1000)
        assert part.tolist() == whole[start : start + count].tolist()
    for start in (2**31 - 2, 2**40 + 3):
        one_by_one = [random_offsets(seed, start + i, 1, 1000).item() for i in range(9)]
        assert random_offsets(seed, start, 9, 1000).tolist() == one_by_one


def test_windows_are_the_words_of_philox():
    """The published stream: runs resumed with another numpy version must draw the same windows."""
    words = np.random.Philox(key=7).random_raw(12)
    assert random_offsets(7, 0, 12, 1000).tolist() == [int(word) % 1000 for word in words]
    assert random_offsets(7, 0, 4, 1_003_822).tolist() == [int(w) % 1_003_822 for w in words[:4]]


def test_another_seed_is_another_stream():
    streams = [random_offsets(seed, 0, 500, 1_000_000) for seed in range(6)]
    for a, b in itertools.combinations(streams, 2):
        assert np.intersect1d(a, b).size < 5  # 0.25 expected by chance
        assert (a == b).sum() == 0


@pytest.mark.parametrize("places", [1, 2, 3, 1000])
def test_offsets_reach_the_first_place_and_the_last_and_go_no_further(places):
    offsets = random_offsets(3, 0, 20 * places, places)
    assert offsets.dtype == np.int64
    assert offsets.min() == 0
    assert offsets.max() == places - 1


@pytest.mark.parametrize("places", [7, 64, 1000])
def test_offsets_are_uniform_and_independent_of_the_one_before(places):
    n = 200 * places
    offsets = random_offsets(11, 5, n, places)

    def chi_square(values: np.ndarray, cells: int) -> float:
        counts = np.bincount(values, minlength=cells)
        expected = len(values) / cells
        return float(((counts - expected) ** 2 / expected).sum())

    def bound(cells: int) -> float:
        return cells - 1 + 5 * (2 * (cells - 1)) ** 0.5

    assert chi_square(offsets, places) < bound(places)
    coarse = offsets * 8 // places
    expected_cells = np.bincount(np.arange(places) * 8 // places, minlength=8) / places
    pairs = np.bincount(coarse[:-1] * 8 + coarse[1:], minlength=64)
    expected = np.outer(expected_cells, expected_cells).ravel() * (n - 1)
    present = expected > 0
    statistic = ((pairs - expected)[present] ** 2 / expected[present]).sum()
    assert statistic < bound(int(present.sum()))


# Gathering


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
@pytest.mark.parametrize("block_size", [1, 3, 8])
def test_gathering_is_slicing_and_beyond_the_end_nothing_counts(dtype, block_size):
    tokens = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 20, dtype)
    offsets = torch.arange(0, 30)
    inputs, targets = gather(torch.from_numpy(tokens), offsets, block_size)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (30, block_size)
    for offset, x, y in zip(offsets.tolist(), inputs.tolist(), targets.tolist(), strict=True):
        there = tokens[offset : offset + block_size].tolist()
        assert x[: len(there)] == there
        following = tokens[offset + 1 : offset + 1 + block_size].tolist()
        assert y == following + [IGNORED] * (block_size - len(following))
        assert {*x} <= {*tokens.tolist()}  # filled up with what an embedding can read


def test_gathering_keeps_the_order_and_the_repeats_of_the_offsets():
    tokens = torch.arange(50, dtype=torch.uint8)
    inputs, targets = gather(tokens, torch.tensor([30, 0, 30, 7]), 2)
    assert inputs.tolist() == [[30, 31], [0, 1], [30, 31], [7, 8]]
    assert targets.tolist() == [[31, 32], [1, 2], [31, 32], [8, 9]]


# Training batches


def random_windows(**changes) -> RandomWindows:
    settings = {"length": 500, "block_size": 8, "batch_size": 12, "seed": 5} | changes
    tokens = torch.arange(settings.pop("length"))
    return RandomWindows(tokens, **settings)


def test_batch_k_has_the_windows_k_times_b_and_on():
    windows = random_windows()
    for k in (0, 1, 7, 2**33):
        inputs, targets = windows[k]
        assert inputs[:, 0].tolist() == random_offsets(5, 12 * k, 12, 492).tolist()
        assert torch.equal(targets, inputs + 1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_the_slices_of_the_ranks_are_one_ranks_batch_in_order(world_size):
    alone = random_windows()
    ranks = [random_windows(rank=rank, world_size=world_size) for rank in range(world_size)]
    for k in (0, 1, 100):
        slices = [rank[k] for rank in ranks]
        assert all(len(inputs) == 12 // world_size for inputs, _ in slices)
        for part, whole in zip(zip(*slices, strict=True), alone[k], strict=True):
            assert torch.equal(torch.cat(part), whole)


def test_the_batch_size_cuts_the_same_stream_of_windows():
    small, large = random_windows(batch_size=4), random_windows(batch_size=12)
    for k in range(5):
        three = torch.cat([small[3 * k + i][0] for i in range(3)])
        assert torch.equal(three, large[k][0])


@pytest.mark.parametrize(("length", "block_size"), [(9, 8), (10, 8), (2, 1), (30, 4)])
def test_training_windows_lie_within_the_split_and_reach_its_first_and_last_character(
    length, block_size
):
    windows = random_windows(length=length, block_size=block_size, batch_size=400)
    inputs, targets = windows[0]
    assert targets.min() >= 1  # never IGNORED
    assert inputs.min() == 0
    assert targets.max() == length - 1


@pytest.mark.parametrize("kind", [RandomWindows, SequentialWindows])
def test_batches_are_gathered_at_their_offsets(kind):
    tokens = torch.arange(500)
    settings = {"block_size": 8, "batch_size": 5}
    if kind is RandomWindows:
        settings["seed"] = 3
    windows = kind(tokens, **settings)
    for k in (0, 3, 12):
        offsets = torch.from_numpy(windows.offsets(k))
        assert (offsets.shape, offsets.dtype) == ((5,), torch.int64)
        for expected, given in zip(gather(tokens, offsets, 8), windows[k], strict=True):
            assert torch.equal(given, expected)


# Validation batches


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("block_size", [1, 2, 8, 13])
def test_every_character_but_the_first_is_a_target_exactly_once(block_size, batch_size, world_size):
    for length in (2, 3, 8, 9, 10, 13, 14, 15, 57, 100, 105):
        tokens = torch.arange(length)
        ranks = [
            SequentialWindows(tokens, block_size, batch_size, None, rank, world_size)
            for rank in range(world_size)
        ]
        assert len({len(rank) for rank in ranks}) == 1
        counted, firsts = [], []
        for k, rank in itertools.product(range(len(ranks[0])), ranks):
            inputs, targets = rank[k]
            assert inputs.shape == targets.shape == (batch_size, block_size)
            counts = targets != IGNORED
            assert torch.equal(inputs[counts] + 1, targets[counts])
            counted += targets[counts].tolist()
            firsts += inputs[counts.any(1), 0].tolist()
        assert counted == list(range(1, length))  # in order, too
        assert firsts == list(range(0, length - 1, block_size))  # contiguous windows
        # No superfluous batches, except to give all ranks equally many.
        needed = -(-(length - 1) // block_size)
        assert (len(ranks[0]) - 1) * batch_size * world_size < needed


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("times", [2, 5])
def test_a_longer_stride_takes_an_even_sample(times, world_size):
    length, block_size = 203, 8
    tokens = torch.arange(length)
    counted = []
    for rank in range(world_size):
        windows = SequentialWindows(tokens, block_size, 3, times * block_size, rank, world_size)
        for k in range(len(windows)):
            _, targets = windows[k]
            counted += targets[targets != IGNORED].tolist()
    starts = range(0, length - 1, times * block_size)
    expected = [s + i for s in starts for i in range(1, block_size + 1) if s + i < length]
    assert sorted(counted) == expected


@pytest.mark.parametrize(("block_size", "stride"), [(8, 1), (8, 3), (8, 7), (8, 8), (5, 2), (1, 1)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_overlapping_windows_count_every_target_once_after_a_long_context(
    block_size, stride, batch_size
):
    for length in (2, 8, 9, 10, 17, 60, 61):
        windows = SequentialWindows(torch.arange(length), block_size, batch_size, stride)
        counted = []
        for k in range(len(windows)):
            inputs, targets = windows[k]
            counts = targets != IGNORED
            assert torch.equal(inputs[counts] + 1, targets[counts])
            counted += targets[counts].tolist()
            context = targets - inputs[:, :1]  # how many tokens a target is predicted from
            enough = torch.clamp(targets, max=block_size - stride + 1)
            assert (context[counts] >= enough[counts]).all()
        assert counted == list(range(1, length))
        assert (len(windows) - 1) * batch_size * stride < max(1, length - 1)
