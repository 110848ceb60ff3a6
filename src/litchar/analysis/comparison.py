"""Compares runs: groups them over seeds, and tests which differences exceed seed noise."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from litchar.analysis.differences import (
    CODE,
    SEEDS,
    TEXT_PLACES,
    comparable_by,
    compared_keys,
    names_of_texts,
    one_form,
    seeds_of,
    unlike,
    value_of,
)
from litchar.analysis.runs import Run, is_run
from litchar.analysis.statistics import (
    At,
    PowerLaw,
    Row,
    against_best,
    cost,
    in_short,
    power_law,
    varies,
)
from litchar.errors import UserError
from litchar.training.sweep import swept_keys


@dataclass(frozen=True)
class Table:
    """Runs whose losses can be compared, see `comparable_by`: the same text, split the same way.

    Attributes:
        text: the name of the text they were trained on.
        unit: what a token is.
        keys: the settings in which the rows differ.
        rows: the best first, but those of which runs diverged last; at least one.
        uncounted: settings of which no run is counted, in words.
        power_law: fitted to the best row of each size, see `statistics.power_law`.
    """

    text: str
    unit: str
    keys: list[str]
    rows: list[Row]
    uncounted: list[str]
    power_law: PowerLaw | None


@dataclass(frozen=True)
class Comparison:
    """All runs: a table for each text, and notes on what the tables leave out.

    Attributes:
        runs: every run that was found.
        reasons: why a run is not counted, by its path, in the order of `runs`.
        notes: caveats about the figures.
    """

    at: At | None
    tables: list[Table]
    runs: list[Run]
    reasons: dict[Path, str]
    notes: list[str]


def compare(paths: Sequence[Path], at: At | None = None) -> Comparison:
    """Compare runs, and sweeps of them, by the best validation loss or the loss at equal cost.

    The loss at a cost is interpolated linearly between the two validations around it.

    Args:
        paths: directories of runs, or of sweeps.

    Raises:
        UserError: a path does not exist or holds no run.
    """
    runs = [Run.load(path) for path in find_runs(paths)]
    swept = sorted(swept_keys(paths[0]) - set(SEEDS)) if len(paths) == 1 else []
    keys = compared_keys(runs, swept)
    losses: dict[Path, float] = {}
    reasons: dict[Path, str] = {}
    by_text: dict[tuple[Any, ...], list[Run]] = {}
    opened: dict[tuple[Any, ...], list[Run]] = {}  # not counted, by text
    unopened: list[Run] = []  # not counted, of unknown text
    for run in runs:
        loss, reason = loss_of(run, at)
        if reason:
            reasons[run.path] = reason
            known = "fingerprint" in run.environment
            (opened.setdefault(comparable_by(run), []) if known else unopened).append(run)
        else:
            losses[run.path] = loss
            by_text.setdefault(comparable_by(run), []).append(run)
    names = names_of_texts([group[0] for group in by_text.values()])
    tables = [
        make_table(name, group, keys, swept, losses, opened.get(text, []), unopened, at)
        for name, (text, group) in zip(names, by_text.items(), strict=True)
    ]
    tables.sort(key=lambda table: table.text)
    return Comparison(at, tables, runs, reasons, _notes(runs, losses, tables, at))


def _notes(
    runs: list[Run], losses: dict[Path, float], tables: list[Table], at: At | None
) -> list[str]:
    """Return caveats about the figures of the tables.

    Args:
        losses: of the runs that are counted, by path.
    """
    notes: list[str] = []
    if repeats := len(losses) - sum(row.n for table in tables for row in table.rows):
        notes.append(f"not counted again, as they repeat a seed of the same settings: {repeats}")
    if len(tables) > 1:
        notes.append(
            "the runs use different texts, units, splits, parts of a text or mixture weights, so "
            "their losses cannot be compared: each has its own table"
        )
    notes += revisions_of(runs)
    rows = [row for table in tables for row in table.rows]
    if any(_crossed(row.runs) for row in rows):
        notes.append(
            "some rows give one seed several data.seed, and one data.seed several seeds: such runs "
            "are not independent, so their intervals are too narrow and p is too low; give each "
            "run a seed of its own"
        )
    if any(row.n > 1 and not varies(row.losses) for row in rows):
        notes.append("the losses of some rows do not vary: nothing in those runs uses the seed")
    counted = [run for run in runs if run.path in losses]
    stopped = sum(bool(run.known("seconds_to_target")) for run in counted)
    if stopped and at is None:
        notes.append(
            f"{stopped} of {len(losses)} runs stopped at their target_val_loss: by how much a loss "
            "passed it says little; compare their seconds"
        )
    elif at is None:
        notes += [note for table in tables for note in _unequal(table)]
    if unfinished := [run.path.name for run in counted if run.status != "completed"]:
        notes.append(f"counted although unfinished: {', '.join(unfinished)}")
    return notes


def _crossed(runs: list[Run]) -> bool:
    """Return whether neither of the two seeds tells all runs of a row apart."""
    return all(len(set(one)) < len(runs) for one in zip(*map(seeds_of, runs), strict=True))


def _unequal(table: Table) -> list[str]:
    """Return a note if the rows of a table saw different amounts of text."""
    seen = [row.figure("characters_seen") for row in table.rows]
    if not all(value > 0 for value in seen) or max(seen) < 1.01 * min(seen):
        return []  # nothing is known, or there is nothing to say
    validated = [cost(run, "characters") for row in table.rows for run in row.runs]
    ends = [costs[-1] for costs in validated if len(costs)]
    how = f"; to compare them after equally many: --at characters={min(ends):.0f}" if ends else ""
    return [f"the rows saw {min(seen):,.0f} to {max(seen):,.0f} {table.unit}s of text{how}"]


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the run directories among `paths` and directly below them.

    Raises:
        UserError: a path does not exist or holds no run.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such directory")
        below = [path] if is_run(path) else sorted(p.parent for p in path.glob("*/summary.json"))
        if not below:
            raise UserError(f"{path}: there is no run in this directory (no summary.json)")
        found |= dict.fromkeys(run.absolute() for run in below)
    return list(found)


def loss_of(run: Run, at: At | None) -> tuple[float, str]:
    """Return the loss that a run is compared by, and an empty string; or nan, and why."""
    if at is None:
        if run.status == "completed":
            loss = run.summary.get("best_val_loss")
            if loss is None or not math.isfinite(loss):
                return math.nan, "it was never validated"
            return float(loss), ""
        reason = run.status
        if reason in ("failed", "diverged"):
            return math.nan, f"{reason}: {' '.join(str(run.summary.get('error')).split())}"
        if reason == "running":
            reason = "running, or killed,"
        # The summary's steps are those at the last validation, if the run was killed.
        steps = [run.summary.get("steps") or 0, *(row["step"] for row in run.rows)]
        return math.nan, f"{reason} at step {max(steps):,.0f}"
    costs = cost(run, at.kind)
    losses = np.array([row["val/loss"] for row in run.history])
    if not len(costs):
        return math.nan, f"it has no validation whose {at.kind} are known"
    if not costs[0] <= at.value <= costs[-1]:
        return math.nan, f"it was validated from {at.kind}={costs[0]:g} to {costs[-1]:g}"
    return float(np.interp(at.value, costs, losses)), ""


def make_table(
    text: str,
    runs: list[Run],
    keys: list[str],
    swept: list[str],
    losses: dict[Path, float],
    opened: list[Run],
    unopened: list[Run],
    at: At | None,
) -> Table:
    """Group comparable runs over seeds, the best row first, and test the others against it.

    Args:
        text: the name of their text.
        keys: the keys that tell runs apart, across all texts.
        swept: the keys of the sweep, which name the rows if no key differs.
        opened: runs on this text that are not counted.
        unopened: runs that are not counted and whose text is unknown: it may be this one.
    """
    pending = [*opened, *unopened]
    values = {
        run.path: {key: one_form(value_of(run, key)) for key in keys} for run in [*runs, *pending]
    }
    if runs[0].environment.get("fingerprint"):  # of one text, wherever it lies
        its = {key: values[runs[0].path][key] for key in TEXT_PLACES if key in keys}
        here = {_place(values[run.path]) for run in [*runs, *opened]}
        for settings in values.values():
            if _place(settings) in here:
                settings |= its
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(values[run.path]), []).append(run)
    others: dict[str, list[Run]] = {}
    for run in pending:
        others.setdefault(repr(values[run.path]), []).append(run)
    rows = []
    for group, same in groups.items():
        by_seeds = {seeds_of(run): run for run in reversed(same)}
        counted = [run for run in same if by_seeds[seeds_of(run)] is run]
        left = others.get(group, [])
        rows.append(
            Row(
                values[same[0].path],
                counted,
                np.array([losses[run.path] for run in counted]),
                len(left),
                _diverged(left, counted),
                at,
            )
        )
    rows.sort(key=lambda row: (row.diverged > 0, row.mean))
    kept = unlike([values[run.path] for run in [*runs, *opened]]) or swept
    rows = [
        replace(row, settings={key: row.settings[key] for key in kept}, p=p)
        for row, p in zip(rows, against_best(rows), strict=True)
    ]
    uncounted = [
        f"{in_short({key: values[left[0].path][key] for key in kept})} ({count} diverged)"
        for group, left in others.items()
        if group not in groups and (count := _diverged(left))
    ]
    return Table(text, rows[0].runs[0].unit, kept, rows, uncounted, power_law(rows))


def _diverged(runs: list[Run], counted: Sequence[Run] = ()) -> int:
    """Return the number of seeds with which runs diverged, and none is counted."""
    seeds = {seeds_of(run) for run in runs if run.status == "diverged"}
    return len(seeds - set(map(seeds_of, counted)))


def _place(settings: dict[str, Any]) -> str:
    return repr([settings.get(key) for key in TEXT_PLACES])


def revisions_of(runs: list[Run]) -> list[str]:
    """Return a note if the runs were made by different revisions of the code."""
    revisions = {_revision_of(run) for run in runs if run.environment}
    if len(revisions) < 2:
        return []
    return [
        f"the runs come from {len(revisions)} revisions of the code: {', '.join(sorted(revisions))}"
    ]


def _revision_of(run: Run) -> str:
    """Return a name for a run's code: its revision, a hash of uncommitted changes if any, and the
    hash by which tables tell it apart if it is known."""
    code = run.environment.get(CODE)
    return _committed(run) + (f" (code {code})" if code else "")


def _committed(run: Run) -> str:
    revision = str(run.environment.get("revision"))[:9]
    try:
        changes = (run.path / "code.diff").read_bytes()
    except OSError:  # there were none
        return revision
    return f"{revision} with changes ({hashlib.sha256(changes).hexdigest()[:6]})"
