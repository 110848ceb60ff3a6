"""Losses over seeds: means, intervals, tests and power laws; and what runs cost."""

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpmath import betainc, findroot

from litchar.analysis.differences import short, shown, value_of
from litchar.analysis.runs import Run
from litchar.errors import UserError

LEVEL = 0.05  # a difference with a smaller p counts as larger than seed noise

# Figures that grow during a run, and the kind of cost that each measures.
GROWING = {
    "steps": "steps",
    "characters_seen": "characters",
    "train_seconds": "seconds",
    "flops": "flops",
}
COSTS = tuple(GROWING.values())


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
        with contextlib.suppress(ValueError):
            if kind in COSTS and 0 < float(value) < math.inf:
                return cls(kind, float(value))
        raise UserError(f"--at {text}: write one of {', '.join(COSTS)} and a number: steps=1000")

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seeds.

    Attributes:
        settings: the values of the table's keys.
        runs: those that are counted.
        losses: of each counted run, at least one, in nats per token: (n,) float64.
        pending: number of runs with the same settings that are not counted, see `loss_of`.
        diverged: number of those that diverged: the losses are then those of the lucky seeds.
        at: the cost at which the losses were read; None: the best loss of each run.
        p: of Welch's two-sided t-test against the table's best row, Holm-corrected for the number
            of rows; nan for the best row, and where it cannot be told, see `against_best`.
    """

    settings: dict[str, Any]
    runs: list[Run]
    losses: np.ndarray
    pending: int = 0
    diverged: int = 0
    at: At | None = None
    p: float = math.nan

    @property
    def label(self) -> str:
        """The settings in words."""
        return in_short(self.settings)

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
        return interval(self.losses)

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


def in_short(settings: dict[str, Any]) -> str:
    """Return settings in words."""
    return ", ".join(f"{short(k)}={shown(v)}" for k, v in settings.items()) or "all runs"


def against_best(rows: Sequence[Row]) -> list[float]:
    """Return the p-value of each row against the first, by Welch's t-test (Welch, 1947), with
    Holm's correction (Holm, 1979) for multiple comparisons.

    It is nan for the first, and where either row has fewer than two runs, or runs that diverged.
    """
    best = rows[0]
    raw = [
        math.nan if row is best or row.diverged or best.diverged else welch(best.losses, row.losses)
        for row in rows
    ]
    order = sorted((p, i) for i, p in enumerate(raw) if not math.isnan(p))
    adjusted, highest = list(raw), 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def welch(one: np.ndarray, other: np.ndarray) -> float:
    """Return the two-sided p-value for equal means, of independent samples; nan if either has fewer
    than two losses, or if the means differ but neither sample varies: then nothing tells by how
    much chance would."""
    if min(len(one), len(other)) < 2:
        return math.nan
    if not varies(one) and not varies(other):
        return 1.0 if one[0] == other[0] else math.nan
    a, b = (sample.var(ddof=1) / len(sample) for sample in (one, other))
    degrees = (a + b) ** 2 / (a**2 / (len(one) - 1) + b**2 / (len(other) - 1))
    return two_sided_p(float(one.mean() - other.mean()) / math.sqrt(a + b), degrees)


def varies(losses: np.ndarray) -> bool:
    """Return whether not all losses are the same to the bit; the standard deviation of such may be
    a rounding error away from 0."""
    return bool((losses != losses[0]).any())


def paired(one: np.ndarray, other: np.ndarray) -> float:
    """Return the two-sided p-value for equal means, of losses in pairs, by the t-test on their
    differences (Student, 1908); nan of a single pair, or as for `welch`."""
    differences = other - one
    if not differences.any():
        return 1.0
    if len(differences) < 2 or not (varies(one) or varies(other)):
        return math.nan
    with np.errstate(divide="ignore"):  # a difference that is the same for all is infinitely clear
        t = differences.mean() / (differences.std(ddof=1) / math.sqrt(len(differences)))
    return two_sided_p(float(t), len(differences) - 1)


def interval(losses: np.ndarray) -> tuple[float, float]:
    """Return the 95% confidence interval of the mean, from Student's t; nan of a single loss."""
    n = len(losses)
    half = two_sided_t(n - 1) * losses.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return float(losses.mean() - half), float(losses.mean() + half)


def two_sided_p(t: float, degrees: float) -> float:
    """Return the probability that Student's t lies at least as far from 0 as `t`; nan of nan.

    (SciPy has it as well, but where SciPy is installed torchmetrics, and so Lightning, and so every
    training, imports a good part of it.)
    """
    if math.isnan(t):  # mpmath would not end
        return math.nan
    return float(betainc(degrees / 2, 0.5, 0, degrees / (degrees + t**2), regularized=True))


def two_sided_t(degrees: int) -> float:
    """Return the t beyond which Student's t lies with a probability of 5%; nan without degrees."""
    if degrees < 1:
        return math.nan
    bracket = 1.9, 13  # of a normal distribution, and of one degree: 1.96 and 12.7
    return float(findroot(lambda t: two_sided_p(t, degrees) - 0.05, bracket, solver="anderson"))


def power_law(rows: list[Row]) -> PowerLaw | None:
    """Fit loss against FLOPs to the best row of each size, without those of which runs diverged.

    None with fewer than three sizes, for models of several kinds, or if the FLOPs lie within a
    factor of two, which show no trend.
    """
    if len({_kind(row.runs[0]) for row in rows}) > 1:
        return None
    best: dict[float, Row] = {}
    for row in rows:
        if row.figure("flops") > 0 and not row.diverged:
            best.setdefault(row.figure("parameters"), row)
    if len(best) < 3 or not apart(best.values()):
        return None
    points = sorted((row.figure("flops"), row.mean) for row in best.values())
    flops, losses = np.array(points).T
    (slope, intercept), covariance = np.polyfit(np.log(flops), np.log(losses), 1, cov=True)
    half = two_sided_t(len(points) - 2) * math.sqrt(covariance[0, 0])
    exponent = -float(slope)
    return PowerLaw(math.exp(intercept), exponent, exponent - half, exponent + half, flops, losses)


def _kind(run: Run) -> tuple[Any, ...]:
    """Return what kind of model a run's is: a GRU and an LSTM are of one class."""
    return run.choices.get("model"), *(
        value_of(run, f"model.{key}") for key in ("_target_", "cell")
    )


def apart(rows: Iterable[Row]) -> bool:
    """Return whether the FLOPs of rows differ by a factor of two or more."""
    flops = [row.figure("flops") for row in rows]
    return max(flops) >= 2 * min(flops)
