"""The curves of runs, drawn with matplotlib."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from litchar.analysis.page import INK, SERIES

MOST_POINTS = 2000  # of a curve; longer ones are averaged down to this many

Row = dict[str, float]  # the figures logged at a step, and `step` itself


def points(rows: Iterable[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps at which a figure is finite, and its values: two (N,) arrays, N at most
    `MOST_POINTS`."""
    found = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
    steps, values = np.array(found, np.float64).reshape(-1, 2).T
    if len(steps) > MOST_POINTS:
        edges = np.linspace(0, len(steps), MOST_POINTS + 1).astype(int)[:-1]
        counts = np.diff(np.append(edges, len(steps)))
        steps, values = (np.add.reduceat(v, edges) / counts for v in (steps, values))
    return steps, values


def loss_figure(
    rows: Sequence[Row],
    characters_per_step: float | None,
    yardsticks: Sequence[tuple[str, float]],
    unit: str,
) -> Callable[[Figure], None]:
    """Return a function that draws the losses against steps and characters, in nats and in bits.

    Args:
        characters_per_step: tokens that a step trains on, if known.
        yardsticks: names and bits per character of predictors that only count.
        unit: what a token is.
    """
    val = points(rows, "val/loss")
    bits, measure = 1 / math.log(2), unit
    ratios = [r["val/bpc"] / r["val/loss"] for r in rows if r.get("val/loss") and "val/bpc" in r]
    if ratios and max(ratios) < 1.001 * min(ratios):
        bits, measure = ratios[0], "character"
    elif unit == "byte":  # a mixture, whose bytes per character vary, or never validated
        yardsticks = ()  # they are per character

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("none")  # any other would draw twice
        axes = figure.add_axes((0.09, 0.12, 0.82, 0.74))
        train, sampled = points(rows, "train/loss"), points(rows, "train/eval_loss")
        dot = "." if len(train[0]) == 1 else None
        axes.plot(*train, color=SERIES[7], marker=dot, lw=0.8, alpha=0.7, gid="curve-train-loss")
        axes.plot(*sampled, color=SERIES[1], marker=".", linewidth=1.3, gid="curve-train-eval-loss")
        axes.plot(*val, color=SERIES[0], marker=".", linewidth=1.8, gid="curve-val-loss")
        names = ("train, batch by batch", "train, on a fixed sample", "validation")
        curves = zip(axes.lines, names, (train, sampled, val), strict=True)
        shown = [(line, name) for line, name, (steps, _) in curves if len(steps)]
        _limit(axes, [val[1], sampled[1]], train[1])
        for name, in_bits in yardsticks:
            _yardstick(axes, f"counting {name}s", in_bits / bits, val[1])
        if shown:  # below the curves, beside the label of the axis
            figure.legend(
                *zip(*shown, strict=True), loc="lower left", bbox_to_anchor=(0.08, 0), ncols=3
            )
        axes.set_xlabel("step", loc="right")
        axes.ticklabel_format(useOffset=False)
        whole_steps(axes)
        axes.set_ylabel(f"loss, nats per {unit}", labelpad=8)
        beside = axes.secondary_yaxis("right", functions=_scale(bits))
        beside.set_ylabel(f"bits per {measure}", labelpad=10)
        beside.spines[:].set_visible(False)
        beside.tick_params(length=0)
        if characters_per_step:
            _characters_on_top(axes, characters_per_step, unit)

    return draw


def _limit(axes: Axes, measured: Sequence[np.ndarray], otherwise: np.ndarray) -> None:
    """Fit the axis to the measured losses, not to the descent of the first steps."""
    values = np.concatenate(measured)
    values = values if len(values) else otherwise
    if len(values):
        spread = values.max() - values.min()
        room = max(0.06 * spread, 0.005 * abs(values[0])) or 1
        axes.set_ylim(values.min() - room, values.max() + 2 * room)


def _yardstick(axes: Axes, name: str, height: float, curve: np.ndarray) -> None:
    """Draw a line at a loss if the axis spans it, labelled at the end further from `curve`."""
    lowest, highest = axes.get_ylim()
    if not lowest < height < highest:
        return
    axes.axhline(height, color=INK, linewidth=0.8, linestyle=":", alpha=0.7)
    ends = np.abs(curve[[0, -1]] - height) if len(curve) else (0, 1)
    right = bool(ends[1] > ends[0])
    axes.annotate(
        name,
        (right, height),
        (-3 if right else 3, 2),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=8,
    )


def whole_steps(axes: Axes) -> None:
    """Put ticks at whole steps only, at least one."""
    locator = MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)
    axes.xaxis.set_major_locator(locator)


def _characters_on_top(axes: Axes, characters_per_step: float, unit: str) -> None:
    top = axes.secondary_xaxis("top", functions=_scale(characters_per_step))
    top.set_xlabel(f"{unit}s seen")
    top.xaxis.set_major_formatter(EngFormatter(sep=""))
    top.spines[:].set_visible(False)
    top.tick_params(length=0)


def _scale(factor: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return the conversions of an axis to another unit and back."""
    return lambda x: x * factor, lambda x: x / factor


def small_figure(rows: Sequence[Row], name: str, label: str) -> Callable[[Figure], None] | None:
    """Return a function that draws one figure of a run against its steps; None without points."""
    steps, values = points(rows, name)
    if not len(steps):
        return None

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("none")  # any other would draw twice
        axes = figure.add_axes((0.14, 0.18, 0.83, 0.7))
        marker = "." if len(steps) == 1 else None
        axes.plot(
            steps, values, linewidth=1.3, marker=marker, gid=f"curve-{name.replace('/', '-')}"
        )
        axes.set(title=label, xlabel="step")
        whole_steps(axes)
        axes.set_ylim(bottom=0)
        if values.max() >= 1000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))

    return draw
