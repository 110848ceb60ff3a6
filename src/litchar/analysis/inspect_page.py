"""The page that `scripts/inspect.py` writes: its tables, and plots of the results."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from litchar.analysis import page
from litchar.analysis.inspect import Inspected, Section
from litchar.errors import UserError


def write_page(path: Path, title: str, sections: list[Section], found: Inspected) -> None:
    """Write the sections and the plots as a self-contained page.

    Raises:
        UserError: the page cannot be written.
    """

    def plots(figure: Figure) -> None:
        axes = figure.subplots(2, 2).flat
        for draw, place in zip((_counts, _lines, _overlap, _repeats), axes, strict=True):
            draw(place, found)

    body = page.drawing(plots, 10, 6.4) + "".join(
        page.section(
            section.title, page.table(section.columns, section.rows), page.paragraph(section.note)
        )
        for section in sections
    )
    try:
        page.write_page(path, title, body)
    except (OSError, ValueError) as error:  # ValueError: a path without a name, such as /
        reason = getattr(error, "strerror", "it names no file")
        raise UserError(f"page={path}: cannot be written ({reason}); name another file") from None


def _counts(axes: Axes, found: Inspected) -> None:
    counts = np.sort(found.counts)[::-1]
    counts = counts[counts > 0]
    marker = "." if len(counts) <= 300 else ""
    axes.loglog(np.arange(1, len(counts) + 1), counts, marker=marker, linewidth=1.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_formatter(NullFormatter())
    axes.set(title="Characters by rank", xlabel="rank", ylabel="count")


def _lines(axes: Axes, found: Inspected) -> None:
    lengths = found.lines
    longest = max(1, int(np.quantile(lengths, 0.995, method="inverted_cdf")))
    step = -(-(longest + 1) // 80)
    axes.hist(np.minimum(lengths, longest), range(0, longest + step + 1, step))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(title="Lengths of lines (the longest 0.5% together)", xlabel="length", ylabel="lines")


def _overlap(axes: Axes, found: Inspected) -> None:
    for name, shares in found.overlap.items():
        axes.plot(list(shares), [100 * share for share in shares.values()], marker="o", label=name)
    axes.set(
        title="Windows that also occur in training", xlabel="window length", ylabel="% of split"
    )
    axes.set_xticks(list(next(iter(found.overlap.values()))))
    highest = np.nanmax([[0.0, *shares.values()] for shares in found.overlap.values()])
    axes.set_ylim(0, max(1, 105 * highest))
    axes.legend(frameon=False)


def _repeats(axes: Axes, found: Inspected) -> None:
    length = len(found.store.tokens)
    edges = np.linspace(0, length, 101)
    places = found.windows.places
    repeated, _ = np.histogram(places[found.repeated], edges)
    all_windows, _ = np.histogram(places, edges)
    share = 100 * repeated / np.maximum(all_windows, 1)
    axes.stairs(share, edges, fill=True)
    for name, (start, stop) in found.bounds.items():
        if start:
            axes.axvline(start, color=page.INK, linewidth=0.6, alpha=0.6)
        axes.text((start + stop) / 2, 1, name, ha="center", transform=axes.get_xaxis_transform())
    axes.set(xlabel="position in the text", ylabel="% of windows", xlim=(0, length))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(f"Windows of {found.repeats.length} that occur more than once", pad=14)
    axes.set_ylim(bottom=0)
