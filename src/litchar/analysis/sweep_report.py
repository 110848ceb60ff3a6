"""The report of a sweep: its runs side by side on one page, with links to their own reports."""

import math
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure

from litchar.analysis.comparison import Comparison, Table
from litchar.analysis.comparison_plot import COLORS, Panel, label_of_losses, panels_of
from litchar.analysis.comparison_tables import cells_of, differs, in_words
from litchar.analysis.differences import seed_of, shown
from litchar.analysis.page import (
    cells,
    drawing,
    duration,
    escape,
    paragraph,
    section,
    table,
    table_of,
    text_block,
    tiles,
    write_page,
)
from litchar.analysis.runs import REPORT, Run
from litchar.analysis.statistics import Row
from litchar.overrides import options_of, without_passwords
from litchar.settings import read_yaml
from litchar.text.vocabulary import printable


def write_sweep_report(comparison: Comparison, directory: Path) -> Path:
    """Write a report of runs side by side into `directory`; return its path.

    Raises:
        OSError: the report cannot be written.
    """
    path = directory.absolute() / REPORT
    write_page(path, path.parent.name, "".join(_sections(path.parent, comparison)))
    return path


def _sections(directory: Path, comparison: Comparison) -> Iterator[str]:
    if not comparison.tables:
        yield '<p class="verdict">No run has a loss that counts.</p>'
    for found in comparison.tables:
        yield _top(found, comparison, titled=len(comparison.tables) > 1)
    for found in comparison.tables:
        title = "Settings, best first"
        title += f": {shown(found.text)}" if len(comparison.tables) > 1 else ""
        notes = map(paragraph, in_words(found))
        note = f"Losses are in nats per {found.unit}."
        yield section(title, table(*cells_of(found)), *notes, note=note)
    yield _runs(directory, comparison)
    yield _left_out(directory, comparison)
    if comparison.tables:
        yield _best(directory, comparison.tables[0].rows[0])
    yield _again(directory)


def _top(found: Table, comparison: Comparison, titled: bool) -> str:
    title = f"<h2>{escape(shown(found.text))}</h2>" if titled else ""
    first, *others = panels_of(found, comparison.at)
    drawn = _drawing(first, label_of_losses(found, comparison)) + "".join(map(_drawing, others))
    sentence = escape(" ".join(_sentences(found, comparison)))
    return (
        f'{title}<p class="verdict">{sentence}</p><div class="tiles wide">{_tiles(found)}</div>'
        f'<div class="row">{drawn}</div>\n'
    )


def _drawing(panel: Panel, label: str = "") -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_ylabel(label)
        panel(axes)

    svg = drawing(draw, 4.3, 3.4)
    for i, colour in enumerate(COLORS):  # of sweep.png; here they follow light and dark
        svg = svg.replace(colour, f"var(--c{i})")
    return svg


def _sentences(found: Table, comparison: Comparison) -> Iterator[str]:
    """Yield the verdict: what is best, by how much, and whether seeds could explain it."""
    best, others = found.rows[0], found.rows[1:]
    at = f" at {comparison.at}" if comparison.at else ""
    seeds = f" over {best.n} seeds" if best.n > 1 else ""
    loss = f"a validation loss of {best.mean:.4f}{at}{seeds}"
    yield f"{best.label} is best of {len(found.rows) + len(found.uncounted)}: {loss}."
    if best.diverged:
        yield f"But {_share_diverged(best)}."
    if others:
        yield _beside(best, others[0])
        same = [row for row in others if differs(row) == "no"]
        if len(same) > 1:
            yield f"In all, {len(same)} of {len(others)} others may be as good."
    if comparison.reasons:
        count = f"{len(comparison.reasons)} of {len(comparison.runs)}"
        yield f"{count} runs are not counted; see below."


def _beside(best: Row, second: Row) -> str:
    """Return how far the second row is from the best, and whether seeds could explain it."""
    if second.diverged:
        return (
            f"Of the next, {second.label}, {_share_diverged(second)}; the others have a loss of "
            f"{second.mean:.4f}."
        )
    single = min(best.n, second.n) < 2
    words = {
        "yes": "more than seeds explain",
        "no": "which does not show that they differ",
        "": "which may be chance: "
        + ("two seeds of each are the least that can tell" if single else "no loss here varies"),
    }[differs(second)]
    return f"The next, {second.label}, is {second.mean - best.mean:.4f} above, {words}."


def _share_diverged(row: Row) -> str:
    return f"{row.diverged} of {row.n + row.diverged} runs diverged"


def _tiles(found: Table) -> str:
    best, runs = found.rows[0], [run for row in found.rows for run in row.runs]
    bits = [
        bpc
        for run in best.runs
        if best.at is None and (bpc := run.summary.get("best_val_bpc"))  # of its best validation
    ]
    low, high = best.interval
    interval = "" if math.isnan(low) else f", 95% interval {low:.4f} to {high:.4f}"
    if interval and len(found.rows) > 1:
        interval += " (chosen as the best, they flatter themselves)"
    figures = [(f"{best.mean:.4f}", f"nats per {found.unit}, the best settings{interval}")]
    if bits:
        figures.append((f"{sum(bits) / len(bits):.3f}", "the same in bits per character"))
    seconds = sum(run.summary.get("total_seconds") or 0 for run in runs)
    figures.append((f"{len(runs)} runs", f"in {duration(seconds)} altogether"))
    return tiles(figures)


def _runs(directory: Path, comparison: Comparison) -> str:
    """Return a table of all runs, with links to their reports that survive moving the sweep."""
    columns = ("# seed", "status", "# best loss", "# steps", "# time")
    rows = []
    for run in sorted(comparison.runs, key=_loss):
        summary = run.summary
        texts = (
            seed_of(run),
            run.status,
            f"{summary['best_val_loss']:.4f}" if summary.get("best_val_loss") else "",
            f"{summary['steps']:,}" if summary.get("steps") else "",
            duration(summary["train_seconds"]) if summary.get("train_seconds") else "",
        )
        rows.append([f"<td>{_link(directory, run)}</td>", *cells(columns, texts)])
    return section("Runs", f'<div class="runs">{table_of(("run", *columns), rows)}</div>')


def _loss(run: Run) -> float:
    loss = run.summary.get("best_val_loss")
    return math.inf if loss is None else float(loss)


def _link(directory: Path, run: Run) -> str:
    """Return a run's name, as a link to its report if it has one."""
    place = os.path.relpath(run.path, directory)
    if not (run.path / REPORT).is_file():
        return escape(place)
    return f'<a href="{escape(quote(f"{place}/{REPORT}"))}">{escape(place)}</a>'


def _left_out(directory: Path, comparison: Comparison) -> str:
    reasons = comparison.reasons.items()
    rows = [(os.path.relpath(path, directory), reason) for path, reason in reasons]
    parts = [paragraph(note) for note in comparison.notes]
    if rows:
        parts.append(table(("run", "why it is not counted"), rows))
    return section("Not counted, and other notes", *parts) if parts else ""


def _best(directory: Path, row: Row) -> str:
    """Return what the best run writes."""
    run = min(row.runs, key=_loss)
    if not run.samples:
        return ""
    step, text = run.samples[-1]
    title = f"<h3>{_link(directory, run)}, step {step:,}</h3>"
    return section("What the best run writes", title, text_block(printable(text)))


def _again(directory: Path) -> str:
    """Return the commands that repeat the sweep and compare its runs."""
    try:
        recorded = read_yaml(directory / "multirun.yaml")
        typed = recorded["hydra"]["overrides"]["task"]
    except (OSError, ValueError, KeyError, TypeError):  # runs collected by hand, or another tool's
        return ""
    words = ["-m", *options_of(recorded), *map(str, typed)]
    train = without_passwords(shlex.join(["python", "scripts/train.py", *words]))
    compared = f"python scripts/compare.py {shlex.quote(str(directory))}"
    return section("Run it again", text_block(f"{train}\n{compared}"))
