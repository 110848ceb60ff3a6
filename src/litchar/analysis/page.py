"""Self-contained HTML pages: their style, tables, and plots as inline SVG."""

import html
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

from litchar.atomic import atomic_write

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2430; --soft: #5c6575; --line: #dfe3ea;
  --card: #f5f6f9; --c0: #2563c9; --c1: #d9650f; --c2: #2a8f57; --c3: #8a4fc4; --c4: #b8860b;
  --c5: #c23a6b; --c6: #0f8b8d; --c7: #6b7280; --hot: 215, 64, 32; --mark: 255, 196, 0; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171d; --ink: #e3e6ec; --soft: #9aa4b5;
  --line: #323846; --card: #1d2129; --c0: #6ea8ff; --c1: #ffa15c; --c2: #66cf96; --c3: #c39bf2;
  --c4: #e0b84a; --c5: #f285ac; --c6: #57c7c9; --c7: #a2a9b8; --hot: 255, 96, 56;
  --mark: 214, 160, 0; } }
* { box-sizing: border-box; }
figure svg g text { font-family: inherit !important; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.35rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .5rem; break-after: avoid; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; break-after: avoid; }
a { color: var(--c0); }
p { margin: .4rem 0; }
.note { color: var(--soft); max-width: 48rem; }
code, pre, .text { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre, .text { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); margin: 0;
  padding: .7rem .9rem; border-radius: 6px; font-size: 13px; line-height: 1.6;
  unicode-bidi: plaintext; text-align: start; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
figure { margin: 0; break-inside: avoid; min-width: 0; }
figcaption { color: var(--soft); font-size: .85rem; }
.table { overflow: auto; max-height: 32.7rem; } /* the last row is cut: more follow */
table { border-collapse: collapse; }
th, td { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
th { position: sticky; top: 0; background: var(--paper); font-weight: 600;
  box-shadow: inset 0 -1px var(--line); }
td { white-space: pre-wrap; overflow-wrap: break-word; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; color: var(--soft); margin: .5rem 0; }
.verdict { font-size: 1.1rem; max-width: 52rem; }
.tiles { display: grid; gap: .8rem; }
.tiles.wide { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); margin: 1rem 0; }
.tile { background: var(--card); border-radius: 8px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.2; font-weight: 600; }
.tile span { color: var(--soft); font-size: .85rem; display: block; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr));
  gap: 1rem; }
.row > figure { max-width: 26rem; }
@media (max-width: 44rem) {
  .tiles, .tiles.wide { grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); }
  .tile:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .tile { padding: .5rem .7rem; } .tile b { font-size: 1.3rem; }
  body { padding: 1rem .8rem 3rem; } .table { max-height: none; }
  td, th { padding-right: .7rem; } td { overflow-wrap: anywhere; min-width: 4.5rem; }
  td.n { min-width: 0; } th.n { white-space: normal; }
  .runs td:first-child { min-width: 13rem; } .runs td { overflow-wrap: break-word; } }
@media print { body { max-width: none; padding: 0; font-size: 12px; }
  .table { overflow: visible; max-height: none; } th { position: static; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

# Content security policy: a page loads nothing. Even a text that escaped its element could not run,
# fetch or send anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"

# Placeholder colours for matplotlib, and the page's own that replace them, which follow the
# reader's light or dark theme.
INK, LINE = "#010101", "#020202"
SERIES = tuple(f"#0302{i:02}" for i in range(8))
_THEMED = {INK: "currentColor", LINE: "var(--line)"} | {
    colour: f"var(--c{i})" for i, colour in enumerate(SERIES)
}

# matplotlib's settings for plots, in a page or in a file of their own.
PLOT: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def write_page(path: Path, title: str, body: str, style: str = "", policy: str = POLICY) -> None:
    """Write a page atomically.

    Args:
        title: as plain text.
        body: as HTML, in which all text has gone through `escape`.
        style: CSS to add to `STYLE`.
        policy: the content security policy; empty for none.

    Raises:
        OSError: the page cannot be written.
    """
    title = escape(title)
    if policy:
        policy = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{policy}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}{style}</style></head>\n<body><h1>{title}</h1>\n"
        f"{body}</body></html>\n"
    )
    with atomic_write(path) as draft:
        # A lone surrogate, which a command line may contain, is written as its escape sequence.
        draft.write_text(page, encoding="utf-8", errors="backslashreplace")


def escape(text: object) -> str:
    """Return a text escaped for HTML."""
    return html.escape(str(text))


def section(title: str, *parts: str, note: str = "") -> str:
    """Return a section of a page: a heading, a note on it, and its parts, which are HTML."""
    return f"<section><h2>{escape(title)}</h2>{paragraph(note)}{''.join(parts)}</section>\n"


def paragraph(note: str) -> str:
    """Return a note as an HTML paragraph; empty if there is none."""
    return f'<p class="note">{escape(note)}</p>' if note else ""


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Return figures as HTML, large and side by side, each above its description."""
    return "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(what)}</span></div>'
        for figure, what in figures
    )


def text_block(text: str) -> str:
    """Return a text as HTML that keeps its line breaks, each line in its own direction."""
    # HTML drops a newline at the start of a <pre>.
    return f'<pre class="text" dir="auto">\n{escape(text)}</pre>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts; `#` and a space before a heading right-align its column."""
    return table_of(columns, (cells(columns, row) for row in rows))


def cells(columns: Sequence[str], row: Sequence[str]) -> list[str]:
    """Return a row of texts as the cells of a table with these headings."""
    kinds = _kinds(columns)
    return [f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)]


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells are HTML already, with their `<td>`."""
    headings = "".join(
        f"<th{kind}>{escape(heading.removeprefix('# '))}</th>"
        for kind, heading in zip(_kinds(columns), columns, strict=True)
    )
    head = f"<thead><tr>{headings}</tr></thead>" if any(columns) else ""
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    if not lines:
        return "none"
    return f'<div class="table"><table>{head}<tbody>{lines}</tbody></table></div>'


def _kinds(columns: Sequence[str]) -> list[str]:
    return [' class="n"' if heading.startswith("# ") else "" for heading in columns]


def drawing(draw: Callable[[Figure], Any], width: float, height: float) -> str:
    """Return what `draw` draws on a matplotlib figure as SVG, in the page's own colours and font.

    Args:
        draw: called with the empty figure.
        width: in inches, as in matplotlib; an inch is 72 units of the SVG.
    """
    settings = PLOT | {
        "svg.fonttype": "none",  # text stays text, in the page's own font
        "svg.hashsalt": "litchar",
        "path.simplify": False,  # a curve keeps all its points
        "font.family": "sans-serif",
        "axes.edgecolor": LINE,
        "axes.labelcolor": INK,
        "axes.prop_cycle": cycler(color=SERIES),
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has fonts of its own
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, themed in _THEMED.items():
        svg = svg.replace(colour, themed)
    return f"<figure>{svg}</figure>"


def duration(seconds: float) -> str:
    """Return a duration for people to read, such as `9.5 s`, `12 min` or `2.5 h`."""
    if seconds < 600:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"
