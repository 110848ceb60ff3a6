"""What runs have in common and differ in: grouped over seeds, with what is more than seed noise."""

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
from litchar.text.mixture import read_mixture
from litchar.text.split import BATCHED_BY, SPLIT_BY
from litchar.training.settings import flatten, within
from litchar.training.sweep import identity, swept_keys

SEEDS = ("seed", "data.seed")
COSTS = ("steps", "characters", "seconds", "flops")
LEVEL = 0.05  # at which a difference counts as larger than seed noise

# Figures that grow with a run, and the cost that each is of.
GROWING = {
    "steps": "steps",
    "characters_seen": "characters",
    "train_seconds": "seconds",
    "flops": "flops",
}

# What of a summary is averaged over a row's runs, by its name in the files.
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
    """The cost at which runs are compared: so many steps, characters, seconds or FLOPs."""

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> "At":
        """Return what `steps=1000` or `flops=1e12` means.

        Raises:
            UserError: it means nothing.
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
    """Runs that differ in their seeds alone.

    Attributes:
        settings: the values of the table's keys.
        runs: those that are counted.
        losses: of each, at least one, in nats per token: (n,) float64.
        pending: those of the same settings that are not, because they have not come so far.
        at: the cost at which the losses are; None: the best of each run.
        p: Welch's two-sided t-test against the table's best row, with Holm's correction for the
            number of rows; nan where a side has fewer than two runs, and for the best row.
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
        """How many runs are counted."""
        return len(self.losses)

    @property
    def mean(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())

    @property
    def sd(self) -> float:
        """The standard deviation over seeds, of the population they are drawn from (n - 1)."""
        return float(self.losses.std(ddof=1)) if self.n > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the mean, from Student's t; nan of a single run."""
        half = stats.t.ppf(0.975, self.n - 1) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    def figure(self, name: str) -> float:
        """Return the mean of a summary's figure over the runs, at the row's cost if it has one; nan
        where none has it."""
        found = [value for run in self.runs if (value := figure(run, name, self.at)) is not None]
        return float(np.mean(found)) if found else math.nan


@dataclass(frozen=True)
class PowerLaw:
    """loss = factor * FLOPs ** -exponent, by least squares of the logarithms, a point a size.

    Attributes:
        low, high: the exponent's 95% interval, from Student's t on the residuals of the fit.
        flops, losses: the points: (sizes,) float64.
    """

    factor: float
    exponent: float
    low: float
    high: float
    flops: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class Table:
    """Runs whose losses can be compared: the same text, split in the same way.

    Attributes:
        text: what they were trained on.
        unit: what a token is.
        keys: in which the rows differ.
        rows: the best first; at least one.
        power_law: of the best row of each size, if there are at least three sizes, and not all at
            the same FLOPs.
    """

    text: str
    unit: str
    keys: list[str]
    rows: list[Row]
    power_law: PowerLaw | None


@dataclass(frozen=True)
class Comparison:
    """All runs: a table for each text, and what a person should know of the rest.

    Attributes:
        runs: every run that was looked at.
        reasons: why a run is not counted, by its path, in the order of `runs`.
        notes: what makes the figures less than they seem.
    """

    at: At | None
    tables: list[Table]
    runs: list[Run]
    reasons: dict[Path, str]
    notes: list[str]


def compare(paths: Sequence[Path], at: At | None = None) -> Comparison:
    """Compare runs, and sweeps of them, by the best validation loss or the loss at equal cost.

    The loss at a cost is read off the validation curve, on the straight line between the two
    validations around it.

    Args:
        paths: directories of runs, or of sweeps.

    Raises:
        UserError: there is no run.
    """
    runs = [Run.load(path) for path in find_runs(paths)]
    swept = sorted(swept_keys(paths[0]) - set(SEEDS)) if len(paths) == 1 else []
    keys = compared_keys(runs, swept)
    losses: dict[Path, float] = {}
    reasons: dict[Path, str] = {}
    by_text: dict[tuple[Any, ...], list[Run]] = {}
    opened: dict[tuple[Any, ...], list[Run]] = {}  # of those that are not counted
    unopened: list[Run] = []  # which nobody knows the text of
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
            "the runs are on different texts, units, splits, parts of one or weights of a mixture, "
            "whose losses cannot be compared: one table for each"
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
    """Return the runs that `paths` are or hold.

    Raises:
        UserError: one holds none.
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
    """Return the keys by which runs are told apart, seeds excepted.

    Args:
        swept: of one sweep: others count only where runs differ that have the same values of these,
            as when an experiment's file was changed in between.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(repr([one_form(value_of(run, key)) for key in swept]), []).append(run)
    more = {key for group in alike.values() for key in differing(group)}
    return sorted({*swept, *more}.difference(SEEDS))


def differing(runs: list[Run]) -> list[str]:
    """Return the keys in which the configurations of `runs` differ.

    A group whose choices differ (`model._target_`) stands for those of its keys that only some of
    the choices have; that key is named itself where one choice has had several of its values.
    """
    settings = [identity(run.composed or run.config) for run in runs]
    found = _unlike(settings)
    if by_device := [key for key in found if within(key, ["by_device"])]:  # what they settle
        settled = {key.split(".", 2)[-1] for key in by_device}
        found = [key for key in found if key not in by_device and key not in settled]
        found += [key for key in _unlike([run.settings for run in runs]) if key in settled]
    groups = [key.removesuffix("._target_") for key in found if key.endswith("._target_")]

    def told(group: str) -> bool:
        """Return whether what is chosen tells what is built."""
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
    """Return a value in the form that all which equal it have: 0 for 0.0. But 1.0 is all batches to
    Lightning, and 1 is one."""
    whole = isinstance(value, float) and value.is_integer() and value != 1
    return int(value) if whole else value


def loss_of(run: Run, at: At | None) -> tuple[float, str]:
    """Return the loss that a run is compared by, or why there is none."""
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
    """Return what each validation of a run came after: steps, characters, seconds of steps or
    FLOPs. Empty if its record does not say."""
    steps = np.array([row["step"] for row in run.history])
    if kind == "steps":
        return steps
    if kind == "seconds":
        seconds = np.array([row.get("speed/train_seconds", math.nan) for row in run.history])
        return seconds if np.isfinite(seconds).all() else np.array([])
    if not run.summary.get("steps"):
        return np.array([])
    characters = steps * float(run.summary["characters_seen"] / run.summary["steps"])
    if kind == "characters":
        return characters
    per_token = run.summary.get("flops_per_token")
    return characters * float(per_token) if per_token else np.array([])


def figure(run: Run, name: str, at: At | None = None) -> float | None:
    """Return a figure of a run's summary; `flops` are those of all that it trained on.

    Args:
        at: where on the way the run was: what grows is what it was there, if that is known.
    """
    if at is not None and name in GROWING:
        if GROWING[name] == at.kind:
            return at.value
        costs = cost(run, GROWING[name])
        return float(np.interp(at.value, cost(run, at.kind), costs)) if len(costs) else None
    if at is not None and name == "total_seconds":  # no validation says how many it came after
        return None
    if name != "flops":
        return run.summary.get(name)
    per_token, characters = run.summary.get("flops_per_token"), run.summary.get("characters_seen")
    return per_token * characters if per_token and characters else None


def comparable_by(run: Run) -> tuple[Any, ...]:
    """Return what two runs must have in common for their losses to be comparable."""
    split = tuple(json.dumps(one_form(run.settings.get(f"data.{name}"))) for name in SPLIT_BY)
    # A mixture's loss is a mean by weight; its fingerprint knows the order of the corpora.
    weights = tuple(weights_of(run).values())
    return (
        run.environment.get("fingerprint"),
        run.unit,
        *split,
        weights,
        *part_validated(run).values(),
    )


def part_validated(run: Run) -> dict[str, Any]:
    """Return the settings that say which part of the validation split a run is validated on; none
    where it is all of it."""
    keys = ("trainer.limit_val_batches", "data.block_size", "data.val_batch_size")
    part = {key.partition(".")[2]: run.settings.get(key) for key in keys}
    if overfit := run.settings.get("trainer.overfit_batches"):  # by which these are limited, too
        part["limit_val_batches"] = overfit
    limit = part["limit_val_batches"]
    return {} if limit is None or (isinstance(limit, float) and limit == 1) else part


def weights_of(run: Run) -> dict[str, float]:
    """Return the weight of each corpus of a run's mixture; empty if it has none."""
    mixture = run.settings.get("data.mixture")
    return read_mixture(mixture) if mixture else {}


def name_of_text(run: Run) -> str:
    """Return what a run's text is called: its files, or the corpora of a mixture by weight."""
    if weights := weights_of(run):
        return ", ".join(f"{weight:.1%} {name}" for name, weight in weights.items())
    return str(run.environment.get("text", "an unknown text"))


def names_of_texts(runs: Sequence[Run]) -> list[str]:
    """Return what the texts of runs are called, each on another: where several have one name, with
    the settings that set them apart, or the beginning of its fingerprint."""
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
        if len({repr(one) for one in apart}) < len(apart):  # the files themselves are others
            for i, one in zip(same, apart, strict=True):
                one.append(str(runs[i].environment.get("fingerprint"))[:8])
        for i, one in zip(same, apart, strict=True):
            names[i] = f"{name} ({', '.join(one)})"
    return names


def seeds_of(run: Run) -> tuple[Any, ...]:
    """Return what a run drew its random numbers from: two with the same are one run twice."""
    seeds = [value_of(run, key) for key in SEEDS]
    return tuple(run.summary.get("seed") if seed is None else seed for seed in seeds)


def seed_of(run: Run) -> str:
    """Return what names a run among those of its settings: its seed, and that of its windows if it
    is another."""
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
    """Group comparable runs over seeds, the best row first, each tested against that.

    Args:
        text: what theirs is called.
        keys: in which runs differ, on whatever texts.
        swept: those of them that runs are named by, too, which differ in none.
        opened: runs on this text that are not counted.
        unopened: those that may have been meant for it.
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
    """Return the p-value of each sample of losses against the first: Welch's t-test (Welch, 1947),
    with Holm's correction (Holm, 1979), since the more rows, the more differ by chance."""
    raw = [math.nan, *(welch(losses[0], other) for other in losses[1:])]
    order = sorted((p, i) for i, p in enumerate(raw) if not math.isnan(p))
    adjusted, highest = list(raw), 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def welch(one: np.ndarray, other: np.ndarray) -> float:
    """Return the two-sided p-value that two samples have one mean; nan below two of each."""
    if min(len(one), len(other)) < 2:
        return math.nan
    if one.std() == other.std() == 0:  # the test has no scale: any difference is one
        return float(one[0] == other[0])
    return float(stats.ttest_ind(one, other, equal_var=False).pvalue)


def power_law(rows: list[Row]) -> PowerLaw | None:
    """Fit loss against FLOPs to the best row of each size; None below three sizes, and at the same
    FLOPs."""
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
    """Return whether rows had the same FLOPs, to a hundredth: whole steps do not come closer."""
    flops = [row.figure("flops") for row in rows]
    return max(flops) < 1.01 * min(flops)


def revisions_of(runs: list[Run]) -> list[str]:
    """Return what to say of runs that different code made."""
    revisions = {_revision_of(run) for run in runs if run.environment}
    if len(revisions) < 2:
        return []
    return [
        f"the runs are of {len(revisions)} revisions of the code: {', '.join(sorted(revisions))}"
    ]


def _revision_of(run: Run) -> str:
    """Return a name of the code that made a run, by what was not committed as well."""
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
    """Return a value for a table: a path by its name, a checkpoint's with that of its run, the rest
    as it is written."""
    if isinstance(value, float):
        return "1.0" if value == 1 else f"{value:g}"  # see `one_form`
    text = str(value)
    if not text.startswith("/"):
        return text
    parts = text.rstrip("/").split("/")
    return "/".join(parts[-3:] if parts[-2:-1] == ["checkpoints"] else parts[-1:])
