"""Curves drawn with matplotlib."""

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


@pytest.mark.parametrize(("height", "side"), [(1.8, 0), (2.5, 1)])
def test_a_yardstick_is_named_where_the_curve_is_far_from_it(height, side):
    measured = [{"step": i, "val/loss": loss} for i, loss in enumerate((3.0, 1.6))]
    (label,) = drawn(measured, "character", [("bigram", height / math.log(2))]).texts
    assert label.xy == (side, pytest.approx(height))


def test_one_validation_has_axes_of_its_loss_and_of_whole_steps():
    axes = drawn([{"step": 1, "val/loss": 4.2337, "train/eval_loss": 4.2337002}], "character")
    low, high = axes.get_ylim()
    assert 4.1 < low < 4.2337 < high < 4.4
    assert all(float(step).is_integer() for step in axes.get_xticks())
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert any(text.startswith("4.2") for text in shown)


def test_a_loss_of_one_step_is_drawn():
    axes = drawn([{"step": 1, "train/loss": 2.0}], "character")
    assert axes.lines[0].get_marker() == "."
