"""`sweep.png`: losses against the swept settings, a point per run, and overlaid loss curves."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from litchar.analysis.comparison import Comparison, Table
from litchar.analysis.curves import whole_steps
from litchar.analysis.differences import short, shown
from litchar.analysis.page import PLOT
from litchar.analysis.statistics import At, PowerLaw, Row, cost
from litchar.atomic import atomic_write
from litchar.errors import is_number

Panel = Callable[[Axes], None]
AXES = {
    "steps": "step",
    "characters": "characters of text",
    "seconds": "seconds of steps",
    "flops": "training FLOPs",
}
MOST_LINES = 8  # of one panel that get colours of their own
COLORS = ("#3b6fb6", "#d1603d", "#3f9b6c", "#9467bd", "#c49a2c", "#4aa3c2", "#b5547f", "#7a7a7a")


def write_plot(comparison: Comparison, path: Path) -> None:
    """Draw a row of panels for each table, of which there is at least one; but none for those of a
    single row, if others compare something."""
    tables = [table for table in comparison.tables if len(table.rows) > 1] or comparison.tables
    settings = PLOT | {"grid.color": "0.92", "legend.fontsize": 8}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        panels = [panels_of(table, comparison.at) for table in tables]
        columns = max(map(len, panels))
        figure = Figure(figsize=(4.3 * columns, 3.7 * len(tables)), layout="constrained", dpi=130)
        grid = figure.subplots(len(tables), columns, squeeze=False)
        for table, drawn, axes in zip(tables, panels, grid, strict=True):
            for place in axes[len(drawn) :]:
                place.set_visible(False)
            for draw, place in zip(drawn, axes, strict=False):
                draw(place)
            axes[0].set_ylabel(label_of_losses(table, comparison))
            if len(tables) > 1:
                axes[0].set_title(_label(shown(table.text), 60), fontweight="bold")
        with atomic_write(path) as draft:
            figure.savefig(draft, format="png")


def label_of_losses(table: Table, comparison: Comparison) -> str:
    """Return the label of the loss axis of a table's first panel."""
    measure = f"at {comparison.at}, " if comparison.at else ""
    return f"validation loss, {measure}nats per {table.unit}"


def panels_of(table: Table, at: At | None = None) -> list[Panel]:
    """Return the functions that draw a table's panels.

    Each key has a panel, but two keys share one if the second has at most `MOST_LINES` values. The
    curves follow, and the power law if there is one.
    """
    keys = _by_length(table)
    lines = keys[1:] if len(keys) == 2 and len(_values(table, keys[1])) <= MOST_LINES else []
    across = keys[:1] if lines or not keys else keys
    made: list[Panel] = [partial(_losses, table=table, key=key, lines=lines) for key in across]
    made.append(partial(_curves, table=table, at=at))
    if table.power_law:
        made.append(partial(_law, law=table.power_law))
    return made


def _by_length(table: Table) -> list[str]:
    """Return the keys in which rows differ, or all if they differ in none; numeric ones and those
    with most values first, as they make the best axes."""

    def rank(key: str) -> tuple[bool, int]:
        values = _values(table, key)
        return not all(_is_finite(value) for value in values), -len(values)

    differ = [key for key in table.keys if len(_values(table, key)) > 1]
    return sorted(differ or table.keys, key=rank)


def _values(table: Table, key: str) -> list[Any]:
    """Return the distinct values of a key, in the order of the rows: the best first."""
    return list({repr(row.settings[key]): row.settings[key] for row in table.rows}.values())


def _in_order(values: list[Any]) -> list[Any]:
    return sorted(values, key=lambda v: (not _is_finite(v), v if _is_finite(v) else 0, str(v)))


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _losses(axes: Axes, table: Table, key: str, lines: list[str]) -> None:
    """Draw the losses against one key: a point per run, and a line through the means.

    Args:
        lines: the key whose values each get a line and a colour; if empty, the other keys are
            pooled, and the line joins the best row at each value.
    """
    values = _values(table, key)
    numeric = all(map(_is_finite, values))
    if numeric:
        values = _in_order(values)
    places = dict(zip(map(repr, values), values if numeric else range(len(values)), strict=True))
    for i, line in enumerate(_in_order(_values(table, lines[0])) if lines else [None]):
        rows = [row for row in table.rows if not lines or row.settings[lines[0]] == line]
        placed = [(places[repr(row.settings[key])], row) for row in rows]
        label = _label(f"{short(lines[0])}={shown(line)}", 42) if lines else None
        _line(axes, placed, "-" if numeric else "", COLORS[i % len(COLORS)], label)
    losses = np.concatenate([row.losses for row in table.rows])
    room = 0.15 * (losses.max() - losses.min())
    if room:  # the interval of two seeds would dwarf everything else
        axes.set_ylim(losses.min() - room, losses.max() + room)
    _mark(axes, values, list(places.values()), numeric)
    axes.set_xlabel(key)
    titles = ["one point per run"]
    if any(row.n > 1 for row in table.rows):
        titles.append("bars: 95% interval of the mean")
    if len(_by_length(table)) > 1 and not lines:
        titles.append("line: the best of the other keys")
    axes.set_title("; ".join(titles), fontsize=8 if len(titles) > 2 else None)
    if lines:
        axes.legend()


def _line(
    axes: Axes, placed: list[tuple[float, Row]], style: str, color: str, label: str | None
) -> None:
    """Draw a point per run, and a line through the means of the best row at each place.

    Args:
        placed: pairs of a place on the axis and a row, the best row first.
    """
    xs = [place for place, row in placed for _ in row.losses]
    ys = [loss for _, row in placed for loss in row.losses]
    axes.plot(xs, ys, "o", color=color, alpha=0.5, markersize=5, markeredgewidth=0)
    best: dict[float, Row] = {}
    for place, row in placed:
        best.setdefault(place, row)
    line_xs = sorted(best)
    halves = [(best[x].interval[1] - best[x].mean) if best[x].n > 1 else 0 for x in line_xs]
    axes.errorbar(
        line_xs,
        [best[x].mean for x in line_xs],
        yerr=halves if any(halves) else None,
        color=color,
        linestyle=style,
        marker="_",
        markersize=9,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=3,
        label=label,
    )


def _mark(axes: Axes, values: list[Any], places: list[float], numeric: bool) -> None:
    """Mark the values of a key at their places on the axis."""
    if numeric and len(places) > 1 and min(places) > 0 and max(places) / min(places) >= 8:
        axes.set_xscale("log")
    if len(places) <= MOST_LINES:
        axes.set_xticks(places, [_label(shown(value), 18) for value in values], minor=False)
        axes.minorticks_off()
    if not numeric:
        axes.set_xlim(-0.6, len(values) - 0.4)
        if sum(map(len, map(shown, values))) > 30:
            for label in axes.get_xticklabels():
                label.set(rotation=25, ha="right", rotation_mode="anchor")


def _cut(text: str, most: int) -> str:
    text = text.encode(errors="backslashreplace").decode()  # a file's name need not be UTF-8
    return text if len(text) <= most else f"{text[: most - 2]}..."


def _label(text: str, most: int) -> str:
    """Return a text cut to `most` characters, with `$` escaped lest matplotlib read a formula."""
    return _cut(text, most).replace("$", r"\$")


def _curves(axes: Axes, table: Table, at: At | None) -> None:
    """Draw each run's validation curve, in the colour of its row; the best on top.

    Args:
        at: the cost at which the runs are compared; None: the curves are those over steps.
    """
    rows = table.rows
    kind = at.kind if at else "steps"
    for i, row in reversed(list(enumerate(rows))):
        named = i < MOST_LINES - 1 or len(rows) <= MOST_LINES
        color = COLORS[i % len(COLORS)] if named else "0.75"
        for j, run in enumerate(row.runs):
            losses = [point["val/loss"] for point in run.history]
            values = ", ".join(_cut(shown(value), 18) for value in row.settings.values())
            label = _label(values or "all runs", 42) if named and j == 0 else None
            axes.plot(
                cost(run, kind),
                losses,
                color=color,
                marker="." if len(losses) == 1 else None,
                linewidth=1.1,
                alpha=0.8,
                label=label,
                gid=f"curve-{run.path.name}",
            )
    ends = [run.history[-1]["val/loss"] for row in rows for run in row.runs if run.history]
    starts = [run.history[0]["val/loss"] for row in rows for run in row.runs if run.history]
    if ends and max(starts) > max(ends):  # leave out what rises above all beginnings
        low, high = min(ends), max(starts)
        axes.set_ylim(low - 0.05 * (high - low), high)
    handles, labels = axes.get_legend_handles_labels()
    names = ", ".join(short(key) for key in table.keys)
    legend = axes.legend(
        handles[::-1], labels[::-1], loc="upper right", title=_cut(names, 42), title_fontsize=8
    )
    legend.set_in_layout(False)  # do not shrink the axes for it
    axes.set_xlabel(AXES[kind])
    if at:
        axes.axvline(at.value, color="0.6", linewidth=0.8)
    if kind == "steps":
        whole_steps(axes)
    axes.set_title("validation loss, best row first")


def _law(axes: Axes, law: PowerLaw) -> None:
    """Draw the best loss of each size against its FLOPs, and the fitted power law."""
    flops = np.geomspace(law.flops.min() / 1.3, law.flops.max() * 1.3, 50)
    axes.loglog(flops, law.factor * flops**-law.exponent, color=COLORS[0], linewidth=1.4)
    axes.loglog(law.flops, law.losses, "o", color=COLORS[0], markersize=5)
    axes.set_xlabel("training FLOPs")
    sizes = _spaced(law.flops, 0.2 * math.log(flops[-1] / flops[0]))
    axes.set_xticks(sizes, [f"{flops:.1e}" for flops in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"loss ~ FLOPs^{-law.exponent:.3f}  ({-law.high:.3f} to {-law.low:.3f})")


def _spaced(ascending: np.ndarray, least: float) -> list[float]:
    """Return those of some numbers whose logarithms are at least `least` apart, from the first."""
    kept = [float(ascending[0])]
    for number in ascending[1:]:
        if math.log(number / kept[-1]) >= least:
            kept.append(float(number))
    return kept
