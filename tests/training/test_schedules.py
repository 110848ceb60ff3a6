import functools
import math

import pytest

from litchar.training.schedules import constant, cosine, share_without_total, wsd


def test_constant_rises_linearly_and_stays():
    factors = [constant(step, 10, warmup_steps=3) for step in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert constant(0, 10) == 1


def test_cosine_warms_up_halves_midway_and_ends_at_the_final_factor():
    assert cosine(0, 1100, 100, 0.1) == pytest.approx(1 / 101)
    assert cosine(99, 1100, 100, 0.1) == pytest.approx(100 / 101)
    assert cosine(100, 1100, 100, 0.1) == pytest.approx(1)
    assert cosine(600, 1100, 100, 0.1) == pytest.approx(0.55)
    assert cosine(350, 1100, 100, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert cosine(1100, 1100, 100, 0.1) == pytest.approx(0.1)
    assert cosine(5000, 1100, 100, 0.1) == pytest.approx(0.1)


def test_cosine_is_nanogpts_schedule():
    def nanogpt(it, lr=1e-3, min_lr=1e-4, warmup=100, decay=5000):
        if it < warmup:
            return lr * (it + 1) / (warmup + 1)
        ratio = (it - warmup) / (decay - warmup)
        return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (lr - min_lr)

    for step in (0, 50, 99, 100, 101, 2500, 4999):
        assert 1e-3 * cosine(step, 5000, 100, 0.1) == pytest.approx(nanogpt(step))


@pytest.mark.parametrize(
    ("total_steps", "warmup_steps"), [(10, 0), (400, 20), (419, 20), (1000, 50), (9000, 50)]
)
def test_wsd_warms_up_for_a_twentieth_of_the_run_but_at_most_50_steps(total_steps, warmup_steps):
    factors = [wsd(step, total_steps) for step in range(warmup_steps + 1)]
    expected = [(step + 1) / (warmup_steps + 1) for step in range(warmup_steps + 1)]
    assert factors == pytest.approx(expected)


def test_wsd_is_flat_then_decays_linearly():
    factors = [
        wsd(step, 100, warmup_steps=0, decay_fraction=0.2) for step in (0, 50, 80, 90, 99, 100)
    ]
    assert factors == pytest.approx([1, 1, 1, 0.5, 0.05, 0])
    assert wsd(90, 100, 0, 0.2, final_factor=0.5) == pytest.approx(0.75)


def test_wsd_is_the_same_before_the_decay_whether_or_not_the_total_is_known():
    for step in range(801):
        assert wsd(step, math.inf, 50, 0.2) == wsd(step, 1000, 50, 0.2)
    assert wsd(19, math.inf) == wsd(19, 400) < 1 == wsd(20, math.inf) == wsd(20, 400)


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        (constant, 1),
        (cosine, 0),
        (wsd, 0.5),
        (functools.partial(wsd, decay_fraction=0.25), 0.75),
        (functools.partial(wsd, decay_fraction=0), 1),
        (functools.partial(wsd, decay_fraction=1), 0),
        (functools.partial(wsd, final_factor=1), 1),
        (lambda step, total, decay_fraction=0.5: 1 - step / total, 0),  # not what it says
    ],
)
def test_the_total_is_needed_from_where_the_decay_begins(schedule, share):
    assert share_without_total(schedule) == share


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        # Of eleven steps to the peak, four; then both.
        (["scheduler=constant", "scheduler.warmup_steps=10"], "36%"),
        (["scheduler=wsd", "scheduler.warmup_steps=3", "scheduler.decay_fraction=1.0"], "38%"),
        (["scheduler=wsd", "scheduler.warmup_steps=1"], None),
        (["scheduler=constant"], None),
        # Half the rate at most, but the warm-up takes no more than half of the steps.
        (["scheduler=wsd", "scheduler.warmup_steps=2", "scheduler.decay_fraction=1.0"], None),
    ],
)
def test_a_warm_up_that_is_long_for_the_run_is_pointed_out(train, capsys, schedule, said):
    train("trainer.max_steps=4", "report=false", *schedule)
    lines = [line for line in capsys.readouterr().out.splitlines() if "warmup_steps" in line]
    assert [line.partition(" of optimizer.lr: ")[0] for line in lines] == (
        [f"The learning rate rises to {said}"] if said else []
    )
