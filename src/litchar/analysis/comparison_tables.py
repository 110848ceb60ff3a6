"""The tables of a comparison: printed, put into words, and written as CSV."""

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

from rich.table import Table as RichTable

from litchar.analysis.comparison import Comparison, Table
from litchar.analysis.differences import seed_of, short, shown, value_of
from litchar.analysis.statistics import LEVEL, Row, apart, figure
from litchar.atomic import write_csv
from litchar.terminal import Terminal

# The figures of a summary that are averaged over a row's runs, by their names in the files.
FIGURES = (
    "steps",
    "characters_seen",
    "train_seconds",
    "total_seconds",
    "characters_per_second",
    "peak_memory_bytes",
    "parameters",
    "flops",
)
LOSSES = ("n", "loss", "sd", "95% interval", "more", "p", "differs")
COST = ("chars/s", "seconds", "parameters", "FLOPs")


def print_comparison(comparison: Comparison, console: Terminal) -> None:
    """Print the tables, how to read them, and which runs they leave out."""
    for table in comparison.tables:
        measure = f"at {comparison.at}" if comparison.at else "at its best"
        console.print(
            f"\n{table.text}: validation loss in nats per {table.unit}, {measure}",
            style="bold",
            soft_wrap=True,
        )
        _print_table(table, console)
        for line in in_words(table):
            console.say(line)
    for path, reason in comparison.reasons.items():
        console.say(f"not counted: {path.name}: {reason}")
    for note in comparison.notes:
        console.say(f"note: {note}")


def in_words(table: Table) -> list[str]:
    """Return a table's power law in words, what its last columns mean, and what has no row."""
    lines = []
    if table.uncounted:
        lines.append(f"no run counts of: {'; '.join(table.uncounted)}")
    if (law := table.power_law) is not None:
        lines.append(
            f"loss = {law.factor:.3g} * FLOPs^{-law.exponent:.4f}, the exponent's 95% interval "
            f"{-law.high:.4f} to {-law.low:.4f} (from the fit to {len(law.flops)} sizes)"
        )
    elif len({row.figure("parameters") for row in table.rows}) == 2 and apart(table.rows):
        lines.append("a power law of loss against FLOPs needs three sizes; there are two")
    if any(not math.isnan(row.p) for row in table.rows):
        lines.append(
            "differs: from the first row, by more than seeds explain (Welch's t-test at "
            f"{LEVEL:.0%}, Holm's correction); no means not shown"
        )
    return lines


def cells_of(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return a table's headings, those of numeric columns prefixed with `#`, and its rows."""
    headings = [*_names(table), *(f"# {name}" for name in LOSSES + COST)]
    best = table.rows[0]
    rows = [[*_settings(row), *_losses(row, best), *_cost(row)] for row in table.rows]
    return headings, rows


def _names(table: Table) -> list[str]:
    times = Counter(map(short, table.keys))
    return [short(key) if times[short(key)] == 1 else key for key in table.keys] or ["runs"]


def _settings(row: Row) -> list[str]:
    return [shown(value) for value in row.settings.values()] or ["all"]


def _print_table(table: Table, console: Terminal) -> None:
    """Print all columns side by side, or in parts if the terminal is too narrow."""
    headings, rows = cells_of(table)
    n = len(headings) - len(LOSSES + COST)  # columns that name a row, repeated in each part

    def part(start: int, end: int) -> RichTable:
        kept = [*range(n), *range(n + start, n + end)]
        return console.table([headings[i] for i in kept], [[row[i] for i in kept] for row in rows])

    endless = console.options.update(width=1000)
    all_, first = len(LOSSES + COST), len(LOSSES)
    for ends in ((all_,), (first, all_), (4, first, all_)):
        parts = [part(start, end) for start, end in pairwise((0, *ends))]
        widths = [console.measure(one, options=endless).maximum for one in parts]
        if max(widths) <= console.width:
            break
    console.print(*parts, sep="\n\n")


def _losses(row: Row, best: Row) -> list[str]:
    low, high = row.interval
    others = [f"{row.diverged} diverged"] if row.diverged else []
    others += [f"+{rest} not"] if (rest := row.pending - row.diverged) else []
    return [
        f"{row.n} ({', '.join(others)})" if others else f"{row.n}",
        _number(row.mean, ".4f"),
        _number(row.sd, ".4f"),
        f"{low:.4f} to {high:.4f}" if row.n > 1 else "",
        "" if row is best else _number(row.mean - best.mean, "+.4f"),
        _number(row.p, ".2g"),
        differs(row),
    ]


def _cost(row: Row) -> list[str]:
    return [
        _number(row.figure("characters_per_second"), ",.0f"),
        _number(row.figure("train_seconds"), ".1f"),
        _number(row.figure("parameters"), ",.0f"),
        _number(row.figure("flops"), ".2e"),
    ]


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def differs(row: Row) -> str:
    """Return whether a row differs from the best by more than seeds explain: yes, no or empty."""
    return "" if math.isnan(row.p) else "yes" if row.p < LEVEL else "no"


def write_tables(comparison: Comparison, directory: Path) -> None:
    """Write `sweep.csv`, one line per row of the tables, and `runs.csv`, one line per run."""
    keys = list(dict.fromkeys(key for table in comparison.tables for key in table.keys))
    rows = []
    for table in comparison.tables:
        for row in table.rows:
            low, high = row.interval
            rows.append(
                {"text": table.text, "unit": table.unit}
                | {key: row.settings.get(key) for key in keys}
                | {"n": row.n, "pending": row.pending, "diverged": row.diverged}
                | {"loss": row.mean, "sd": row.sd}
                | {"low": low, "high": high, "p": row.p, "differs": differs(row)}
                | {name: row.figure(name) for name in FIGURES}
                | {"seeds": " ".join(map(seed_of, row.runs))}
                | {"runs": " ".join(run.path.name for run in row.runs)}
            )
    write_csv(directory / "sweep.csv", rows)
    runs = []
    for run in comparison.runs:
        figures = ("best_val_loss", "best_val_bpc", "best_step", *FIGURES)
        runs.append(
            {"run": run.path.name, "status": run.status, "seed": seed_of(run)}
            | {key: value_of(run, key) for key in keys}
            | {name: figure(run, name) for name in figures}
            | {"left_out": comparison.reasons.get(run.path, "")}
        )
    write_csv(directory / "runs.csv", runs)
