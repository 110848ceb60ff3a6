"""Curves as matplotlib draws them."""

import math

import pytest
from matplotlib.figure import Figure

from litchar.analysis.curves import loss_figure


def drawn(rows, unit, yardsticks=()):
    figure = Figure()
    loss_figure(rows, None, yardsticks, unit)(figure)
    figure.draw_without_rendering()
    return figure.axes[0]


def rows(*bits_per_nat):
    return [
        {"step": i, "val/loss": 3.0 - i, "val/bpc": ratio * (3.0 - i)}
        for i, ratio in enumerate(bits_per_nat)
    ]


@pytest.mark.parametrize(
    ("validations", "unit", "factor", "measure"),
    [
        ([1 / math.log(2)] * 2, "character", 1 / math.log(2), "character"),
        ([2.5, 2.5], "byte", 2.5, "character"),  # a character of this text has several
        ([2.5, 2.0], "byte", 1 / math.log(2), "byte"),  # a mixture: each corpus has its own number
        ([], "byte", 1 / math.log(2), "byte"),
    ],
)
def test_the_axis_of_bits_is_right(validations, unit, factor, measure):
    axes = drawn(rows(*validations), unit, [("bigram", 4.0)])
    (right,) = axes.child_axes
    assert right.get_ylabel() == f"bits per {measure}"
    assert right.get_ylim()[0] == pytest.approx(factor * axes.get_ylim()[0])


def test_a_yardstick_stands_at_its_bits():
    axes = drawn(rows(*[1 / math.log(2)] * 3), "character", [("bigram", 2.0)])
    assert axes.lines[-1].get_ydata()[0] == pytest.approx(2.0 * math.log(2))


def test_a_loss_of_one_step_is_drawn():
    axes = drawn([{"step": 1, "train/loss": 2.0}], "character")
    assert axes.lines[0].get_marker() == "."
