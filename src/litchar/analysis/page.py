"""The page that `scripts/inspect.py` writes: its tables, and plots as drawings within."""

import html
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from litchar.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from litchar.analysis.inspect import Inspected, Section

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
svg { width: 100%; height: auto; }
.table { overflow: auto; max-height: 32rem; }
table { border-collapse: collapse; }
th, td { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
th { position: sticky; top: 0; background: #fff; font-weight: 600; border-bottom: 1px solid #ccc; }
td { white-space: pre-wrap; overflow-wrap: anywhere; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
p { color: #666; margin: .4rem 0; }
"""


def write_page(path: Path, title: str, sections: list["Section"], found: "Inspected") -> str:
    """Write a page that needs nothing beside it.

    Returns:
        what it lacks, for the person to read: nothing, or the plots and how to get them.

    Raises:
        UserError: it cannot be written.
    """
    try:
        plots, lack = _plots(found), ""
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        plots, lack = "", " (without plots; for them: pip install 'litchar[plots]')"
    title = html.escape(title)
    body = "".join(map(_section, sections))
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style><h1>{title}</h1>{plots}{body}</html>\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"page={path}: cannot be written ({error.strerror}); name another file"
        ) from None
    return lack


def _section(section: "Section") -> str:
    kinds = [' class="n"' if heading.startswith("# ") else "" for heading in section.columns]
    headings = "".join(
        f"<th{kind}>{html.escape(heading.removeprefix('# '))}</th>"
        for kind, heading in zip(kinds, section.columns, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(f"<td{k}>{html.escape(cell)}</td>" for k, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in section.rows
    )
    head = f"<thead><tr>{headings}</tr></thead>" if any(section.columns) else ""
    table = (
        f'<div class="table"><table>{head}<tbody>{rows}</tbody></table></div>' if rows else "none"
    )
    note = f"<p>{html.escape(section.note)}</p>" if section.note else ""
    return f"<h2>{html.escape(section.title)}</h2>{table}{note}"


def _plots(found: "Inspected") -> str:
    """Return four plots as one SVG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",  # text stays text, in the page's own font
        "svg.hashsalt": "litchar",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has fonts of its own
        figure = Figure(figsize=(10, 6.4), layout="constrained")
        axes = figure.subplots(2, 2).flat
        for draw, place in zip((_counts, _lines, _overlap, _repeats), axes, strict=True):
            draw(place, found)
        drawing = io.StringIO()
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    svg = drawing.getvalue()
    return svg[svg.index("<svg") :]


def _counts(axes: "Axes", found: "Inspected") -> None:
    from matplotlib.ticker import EngFormatter, NullFormatter

    counts = np.sort(np.sum(list(found.counts.values()), axis=0))[::-1]
    counts = counts[counts > 0]
    marker = "." if len(counts) <= 300 else ""
    axes.loglog(np.arange(1, len(counts) + 1), counts, marker=marker, linewidth=1.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_formatter(NullFormatter())
    axes.set(title="Characters by rank", xlabel="rank", ylabel="count")


def _lines(axes: "Axes", found: "Inspected") -> None:
    from matplotlib.ticker import EngFormatter

    lengths = found.lines
    longest = max(1, int(np.quantile(lengths, 0.995, method="inverted_cdf")))
    step = -(-(longest + 1) // 80)
    axes.hist(np.minimum(lengths, longest), range(0, longest + step + 1, step))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(title="Lengths of lines (the longest 0.5% together)", xlabel="length", ylabel="lines")


def _overlap(axes: "Axes", found: "Inspected") -> None:
    for name, shares in found.overlap.items():
        axes.plot(list(shares), [100 * share for share in shares.values()], marker="o", label=name)
    axes.set(
        title="Windows that stand in training as well", xlabel="window length", ylabel="% of split"
    )
    axes.set_xticks(list(next(iter(found.overlap.values()))))
    highest = max(max(shares.values()) for shares in found.overlap.values())
    axes.set_ylim(0, max(1, 105 * highest))
    axes.legend(frameon=False)


def _repeats(axes: "Axes", found: "Inspected") -> None:
    from matplotlib.ticker import EngFormatter

    length = len(found.store.tokens)
    edges = np.linspace(0, length, 101)
    repeated, _ = np.histogram(found.repeats.repeated, edges)
    all_windows, _ = np.histogram(found.repeats.places, edges)
    share = 100 * repeated / np.maximum(all_windows, 1)
    axes.stairs(share, edges, fill=True)
    for name, (start, stop) in found.bounds.items():
        if start:
            axes.axvline(start, color="0.3", linewidth=0.8)
        axes.text((start + stop) / 2, 1, name, ha="center", transform=axes.get_xaxis_transform())
    axes.set(xlabel="place in the text", ylabel="% of windows", xlim=(0, length))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(f"Windows of {found.repeats.length} that stand more than once", pad=14)
    axes.set_ylim(bottom=0)
