"""Compares runs: groups them over seeds, and tests which differences exceed seed noise."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from litchar.analysis.runs import Run, is_run
from litchar.errors import UserError
from litchar.overrides import without_passwords
from litchar.text.mixture import read_mixture
from litchar.text.split import BATCHED_BY, SPLIT_BY
from litchar.training.settings import flatten, within
from litchar.training.sweep import identity, swept_keys

SEEDS = ("seed", "data.seed")
COSTS = ("steps", "characters", "seconds", "flops")
LEVEL = 0.05  # a difference with a smaller p counts as larger than seed noise

# Figures that grow during a run, and the kind of cost that each measures.
GROWING = {
    "steps": "steps",
    "characters_seen": "characters",
    "train_seconds": "seconds",
    "flops": "flops",
}

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


@dataclass(frozen=True)
class At:
    """The cost at which runs are compared: a number of steps, characters, seconds or FLOPs."""

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> "At":
        """Return the cost that `text` states, such as `steps=1000` or `flops=1e12`.

        Raises:
            UserError: the kind is unknown, or the value is not a finite number above 0.
        """
        kind, _, value = text.partition("=")
        try:
            at = cls(kind, float(value))
        except ValueError:
            at = cls(kind, math.nan)
        if kind not in COSTS or not (math.isfinite(at.value) and at.value > 0):
            raise UserError(
                f"--at {text}: write one of {', '.join(COSTS)} and a number: steps=1000"
            )
        return at

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seeds.

    Attributes:
        settings: the values of the table's keys.
        runs: those that are counted.
        losses: of each counted run, at least one, in nats per token: (n,) float64.
        pending: runs with the same settings that are not counted, see `loss_of`.
        at: the cost at which the losses were read; None: the best loss of each run.
        p: of Welch's two-sided t-test against the table's best row, Holm-corrected for the number
            of rows; nan for the best row, and where either side has fewer than two runs.
    """

    settings: dict[str, Any]
    runs: list[Run]
    losses: np.ndarray
    pending: list[Run] = field(default_factory=list)
    at: At | None = None
    p: float = math.nan

    @property
    def label(self) -> str:
        """The settings in words."""
        return ", ".join(f"{short(k)}={shown(v)}" for k, v in self.settings.items()) or "all runs"

    @property
    def n(self) -> int:
        """The number of counted runs."""
        return len(self.losses)

    @property
    def mean(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())

    @property
    def sd(self) -> float:
        """The sample standard deviation over seeds (n - 1); nan of a single run."""
        return float(self.losses.std(ddof=1)) if self.n > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the mean, from Student's t; nan of a single run."""
        half = stats.t.ppf(0.975, self.n - 1) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    def figure(self, name: str) -> float:
        """Return the mean over the runs of a figure of their summaries, at the row's cost if it has
        one; nan if no run has the figure."""
        found = [value for run in self.runs if (value := figure(run, name, self.at)) is not None]
        return float(np.mean(found)) if found else math.nan


@dataclass(frozen=True)
class PowerLaw:
    """loss = factor * FLOPs ** -exponent, by least squares on the logarithms, one point per size.

    Attributes:
        low, high: the exponent's 95% interval, from Student's t on the residuals of the fit.
        flops, losses: the fitted points: (sizes,) float64.
    """

    factor: float
    exponent: float
    low: float
    high: float
    flops: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class Table:
    """Runs whose losses can be compared, see `comparable_by`: the same text, split the same way.

    Attributes:
        text: the name of the text they were trained on.
        unit: what a token is.
        keys: the settings in which the rows differ.
        rows: the best first; at least one.
        power_law: fitted to the best row of each size; None with fewer than three sizes, or if all
            had the same FLOPs.
    """

    text: str
    unit: str
    keys: list[str]
    rows: list[Row]
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
    notes: list[str] = []
    names = names_of_texts([group[0] for group in by_text.values()])
    tables = [
        make_table(name, group, keys, swept, losses, opened.get(text, []), unopened, notes, at)
        for name, (text, group) in zip(names, by_text.items(), strict=True)
    ]
    if len(tables) > 1:
        notes.append(
            "the runs use different texts, units, splits, parts of a text or mixture weights, so "
            "their losses cannot be compared: each has its own table"
        )
    notes += revisions_of(runs)
    unfinished = [run for run in runs if run.path in losses and run.status != "completed"]
    if unfinished:
        notes.append(
            f"counted although unfinished: {', '.join(run.path.name for run in unfinished)}"
        )
    tables.sort(key=lambda table: table.text)
    return Comparison(at, tables, runs, reasons, notes)


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


def compared_keys(runs: list[Run], swept: list[str]) -> list[str]:
    """Return the keys that tell runs apart, seeds excepted.

    Args:
        swept: the keys of a sweep, always included. Other keys count only if they differ between
            runs that agree on these, as when an experiment's file was changed in between.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(repr([one_form(value_of(run, key)) for key in swept]), []).append(run)
    more = {key for group in alike.values() for key in differing(group)}
    return sorted({*swept, *more}.difference(SEEDS))


def differing(runs: list[Run]) -> list[str]:
    """Return the keys in which the configurations of `runs` differ.

    A group whose `_target_` differs (`model`) is listed in place of those of its keys that differ
    only between targets. `_target_` is listed, too, if the group's choice does not determine it.
    """
    settings = [identity(run.composed or run.config) for run in runs]
    found = _unlike(settings)
    if by_device := [key for key in found if within(key, ["by_device"])]:  # what they resolve to
        settled = {key.split(".", 2)[-1] for key in by_device}
        found = [key for key in found if key not in by_device and key not in settled]
        found += [key for key in _unlike([run.settings for run in runs]) if key in settled]
    groups = [key.removesuffix("._target_") for key in found if key.endswith("._target_")]

    def told(group: str) -> bool:
        """Return whether the choice of a group determines its `_target_`."""
        chosen = [repr(value_of(run, group)) for run in runs]
        built = [one.get(f"{group}._target_") for one in settings]
        return len(set(chosen)) == len(set(zip(chosen, built, strict=True)))

    for group in groups:
        choices: dict[Any, list[dict[str, Any]]] = {}
        for one in settings:
            choices.setdefault(one.get(f"{group}._target_"), []).append(one)
        own = {key for same in choices.values() for key in _unlike(same)}
        found = [key for key in found if not within(key, [group]) or key in own]
    return sorted([*groups, *found, *(f"{group}._target_" for group in groups if not told(group))])


def _unlike(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys whose values differ."""
    keys = sorted({key for one in settings for key in one})
    return [key for key in keys if len({repr(one_form(one.get(key))) for one in settings}) > 1]


def one_form(value: Any) -> Any:
    """Return a value in canonical form: 0 for 0.0. Only 1.0 stays a float: to Lightning it means
    all batches, and 1 means one."""
    whole = isinstance(value, float) and value.is_integer() and value != 1
    return int(value) if whole else value


def loss_of(run: Run, at: At | None) -> tuple[float, str]:
    """Return the loss that a run is compared by, and an empty string; or nan, and why."""
    if at is None:
        if run.status == "completed":
            loss = run.summary.get("best_val_loss")
            return (loss, "") if loss is not None else (math.nan, "it was never validated")
        reason = run.status
        if reason in ("failed", "diverged"):
            return math.nan, f"{reason}: {' '.join(str(run.summary.get('error')).split())}"
        return math.nan, f"{reason} at step {run.summary.get('steps') or 0:,}"
    costs = cost(run, at.kind)
    losses = np.array([row["val/loss"] for row in run.history])
    if not len(costs):
        return math.nan, f"it has no validation whose {at.kind} are known"
    if not costs[0] <= at.value <= costs[-1]:
        return math.nan, f"it was validated from {at.kind}={costs[0]:g} to {costs[-1]:g}"
    return float(np.interp(at.value, costs, losses)), ""


def cost(run: Run, kind: str) -> np.ndarray:
    """Return the cost of a run up to each validation: steps, characters, seconds of steps or FLOPs.
    Empty if its record does not say."""
    steps = np.array([row["step"] for row in run.history])
    if kind == "steps":
        return steps
    if kind == "seconds":
        seconds = np.array([row.get("speed/train_seconds", math.nan) for row in run.history])
        return seconds if np.isfinite(seconds).all() else np.array([])
    taken, seen = run.known("steps", "characters_seen") or (0, 0)
    if not taken:
        return np.array([])
    characters = steps * float(seen / taken)
    if kind == "characters":
        return characters
    per_token = run.summary.get("flops_per_token")
    return characters * float(per_token) if per_token else np.array([])


def figure(run: Run, name: str, at: At | None = None) -> float | None:
    """Return a figure of a run's summary, None if unknown; `flops` is the total of its training.

    Args:
        at: the cost up to which figures that grow during a run are counted.
    """
    if at is not None and name in GROWING:
        if GROWING[name] == at.kind:
            return at.value
        costs = cost(run, GROWING[name])
        return float(np.interp(at.value, cost(run, at.kind), costs)) if len(costs) else None
    if at is not None and name == "total_seconds":  # not recorded at validations
        return None
    if name != "flops":
        return run.summary.get(name)
    known = run.known("flops_per_token", "characters_seen")
    return math.prod(known) or None if known else None


def comparable_by(run: Run) -> tuple[Any, ...]:
    """Return what two runs must have in common for their losses to be comparable."""
    split = tuple(json.dumps(one_form(run.settings.get(f"data.{name}"))) for name in SPLIT_BY)
    # A mixture's loss is a weighted mean; its fingerprint covers the order of the corpora.
    weights = tuple(weights_of(run).values())
    return (
        run.environment.get("fingerprint"),
        run.unit,
        *split,
        weights,
        *part_validated(run).values(),
    )


def part_validated(run: Run) -> dict[str, Any]:
    """Return the settings that determine which part of the validation split a run is validated on;
    empty if it is all of it."""
    keys = ("trainer.limit_val_batches", "data.block_size", "data.val_batch_size")
    part = {key.partition(".")[2]: run.settings.get(key) for key in keys}
    for key in ("trainer.overfit_batches", "trainer.fast_dev_run"):  # limit validation, too
        if batches := run.settings.get(key):
            part["limit_val_batches"] = int(batches)
    limit = part["limit_val_batches"]
    return {} if limit is None or (isinstance(limit, float) and limit == 1) else part


def weights_of(run: Run) -> dict[str, float]:
    """Return the weight of each corpus of a run's mixture; empty if it has none."""
    mixture = run.settings.get("data.mixture")
    return read_mixture(mixture) if mixture else {}


def name_of_text(run: Run) -> str:
    """Return the name of a run's text: its files, or a mixture's corpora and their weights."""
    if weights := weights_of(run):
        return ", ".join(f"{weight:.1%} {name}" for name, weight in weights.items())
    return str(run.environment.get("text", "an unknown text"))


def names_of_texts(runs: Sequence[Run]) -> list[str]:
    """Return a name for the text of each run, all on different texts: where names clash, with the
    settings in which they differ, and if these do not suffice, the start of the fingerprint."""
    names = [name_of_text(run) for run in runs]
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i, other in enumerate(names) if other == name]
        settings = [
            {k: v for k, v in flatten(runs[i].config.get("data", {})) if not within(k, BATCHED_BY)}
            | part_validated(runs[i])
            for i in same
        ]
        keys = _unlike(settings)
        apart = [[f"{key}={shown(one.get(key))}" for key in keys] for one in settings]
        if len({repr(one) for one in apart}) < len(apart):  # the files themselves differ
            for i, one in zip(same, apart, strict=True):
                one.append(str(runs[i].environment.get("fingerprint"))[:8])
        for i, one in zip(same, apart, strict=True):
            names[i] = f"{name} ({', '.join(one)})"
    return names


def seeds_of(run: Run) -> tuple[Any, ...]:
    """Return a run's seeds; runs with the same settings and seeds are repeats of each other."""
    seeds = [value_of(run, key) for key in SEEDS]
    return tuple(run.summary.get("seed") if seed is None else seed for seed in seeds)


def seed_of(run: Run) -> str:
    """Return the name of a run among those with its settings: its seed, and that of its windows if
    it differs."""
    return "/".join(map(str, dict.fromkeys(seeds_of(run))))


def value_of(run: Run, key: str) -> Any:
    """Return a run's value of a key, or its choice of a group."""
    settings = run.settings or dict(flatten(run.composed))
    if key in settings:
        return settings[key]
    if key in run.choices:
        return run.choices[key]
    target = settings.get(f"{key}._target_")
    return target and target.rpartition(".")[2]


def make_table(
    text: str,
    runs: list[Run],
    keys: list[str],
    swept: list[str],
    losses: dict[Path, float],
    opened: list[Run],
    unopened: list[Run],
    notes: list[str],
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
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(values[run.path]), []).append(run)
    rows = []
    for group, same in groups.items():
        by_seeds = {seeds_of(run): run for run in reversed(same)}
        counted = [run for run in same if by_seeds[seeds_of(run)] is run]
        if len(counted) < len(same):
            notes.append(
                f"{len(same) - len(counted)} runs repeat a seed of the same settings and are not "
                "counted again"
            )
        rows.append(
            Row(
                values[same[0].path],
                counted,
                np.array([losses[run.path] for run in counted]),
                [run for run in pending if repr(values[run.path]) == group],
                at,
            )
        )
    rows.sort(key=lambda row: row.mean)
    kept = _unlike([values[run.path] for run in [*runs, *opened]]) or swept
    rows = [
        replace(row, settings={key: row.settings[key] for key in kept}, p=p)
        for row, p in zip(rows, against_best([row.losses for row in rows]), strict=True)
    ]
    return Table(text, rows[0].runs[0].unit, kept, rows, power_law(rows))


def against_best(losses: list[np.ndarray]) -> list[float]:
    """Return the p-value of each sample of losses against the first, by Welch's t-test (Welch,
    1947), with Holm's correction (Holm, 1979) for multiple comparisons; nan for the first."""
    raw = [math.nan, *(welch(losses[0], other) for other in losses[1:])]
    order = sorted((p, i) for i, p in enumerate(raw) if not math.isnan(p))
    adjusted, highest = list(raw), 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def welch(one: np.ndarray, other: np.ndarray) -> float:
    """Return the two-sided p-value for equal means; nan if either sample has fewer than two."""
    if min(len(one), len(other)) < 2:
        return math.nan
    if one.std() == other.std() == 0:  # without variance, any difference counts
        return float(one[0] == other[0])
    return float(stats.ttest_ind(one, other, equal_var=False).pvalue)


def power_law(rows: list[Row]) -> PowerLaw | None:
    """Fit loss against FLOPs to the best row of each size; None with fewer than three sizes, or if
    all had the same FLOPs."""
    best: dict[float, Row] = {}
    for row in rows:
        if row.figure("flops") > 0:
            best.setdefault(row.figure("parameters"), row)
    if len(best) < 3 or same_flops(best.values()):
        return None
    points = sorted((row.figure("flops"), row.mean) for row in best.values())
    flops, losses = np.array(points).T
    fit = stats.linregress(np.log(flops), np.log(losses))
    half = stats.t.ppf(0.975, len(points) - 2) * fit.stderr
    exponent = -float(fit.slope)
    factor = math.exp(fit.intercept)
    return PowerLaw(factor, exponent, exponent - half, exponent + half, flops, losses)


def same_flops(rows: Iterable[Row]) -> bool:
    """Return whether rows had the same FLOPs to within 1%: whole steps do not come closer."""
    flops = [row.figure("flops") for row in rows]
    return max(flops) < 1.01 * min(flops)


def revisions_of(runs: list[Run]) -> list[str]:
    """Return a note if the runs were made by different revisions of the code."""
    revisions = {_revision_of(run) for run in runs if run.environment}
    if len(revisions) < 2:
        return []
    return [
        f"the runs come from {len(revisions)} revisions of the code: {', '.join(sorted(revisions))}"
    ]


def _revision_of(run: Run) -> str:
    """Return a name for a run's code: its revision, and a hash of uncommitted changes if any."""
    revision = str(run.environment.get("revision"))[:9]
    try:
        changes = (run.path / "code.diff").read_bytes()
    except OSError:  # there were none
        return revision
    return f"{revision} with changes ({hashlib.sha256(changes).hexdigest()[:6]})"


def short(key: str) -> str:
    """Return a key's last part: `n_layer` for `model.n_layer`."""
    return key.rpartition(".")[2]


def shown(value: Any) -> str:
    """Return a value as shown in a table: an absolute path by its name, a checkpoint's with its
    run's as well, the rest as written but for passwords."""
    if isinstance(value, float):
        return "1.0" if value == 1 else f"{value:g}"  # see `one_form`
    text = without_passwords(str(value))
    if not text.startswith("/"):
        return text
    parts = text.rstrip("/").split("/")
    return "/".join(parts[-3:] if parts[-2:-1] == ["checkpoints"] else parts[-1:])
