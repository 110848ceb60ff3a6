"""A sweep: the jobs that a command line asks for, their directories, and their outcomes.

Nothing heavy is imported here; see `litchar.cli`.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from litchar.atomic import atomic_write
from litchar.errors import JobsFailedError, UserError, check_flag
from litchar.run_dir import is_busy
from litchar.settings import FREE, absolute_paths, changes, flatten, read_json, within
from litchar.terminal import Terminal
from litchar.training.resume import output_subdir

NAME_BYTES = 100  # at most in the name of a job's directory, before its digest


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job, as plain data: all that a worker sends back.

    Attributes:
        job: the name of its directory.
        status: `completed`, `diverged`, `failed`, or `busy` (another process is training it).
        best_val_loss: in nats per token.
        error: why it failed.
    """

    job: str
    status: str
    best_val_loss: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Plan:
    """The sweep that a command line asks for.

    Attributes:
        directory: the sweep's directory.
        swept: the keys that are given several values.
        named: all keys that the command line sets.
        shared: the settings that all jobs share, by dotted key.
        jobs: each job's directory, and its overrides.
    """

    directory: Path
    swept: frozenset[str]
    named: frozenset[str]
    shared: dict[str, Any]
    jobs: dict[Path, list[str]]

    @property
    def place(self) -> Path:
        """The file that records which sweep the directory holds."""
        return self.directory / "sweep.json"

    def record(self) -> None:
        """Record which sweep the directory holds."""
        swept = sorted(self.swept | swept_keys(self.directory))
        held = {"swept": swept, "named": sorted(self.named), "shared": self.shared}
        text = json.dumps(held, indent=2) + "\n"
        if not self.place.exists() or self.place.read_text() != text:
            with atomic_write(self.place) as draft:
                draft.write_text(text)

    def overrides_of(self, job: Path) -> list[str]:
        """Return the overrides from which Hydra makes the job's configuration and directory."""
        return [*self.jobs[job], f'hydra.sweep.subdir="{job.name}"', *output_subdir(job)]


def check_command_line(overrides: dict[str, Override], config: DictConfig) -> None:
    """Refuse overrides that make no sense for a sweep.

    Args:
        overrides: of the command line, by key.
        config: composed from them.

    Raises:
        UserError: the sweep's name is not a valid directory name, a `sweep.` key has a list of
            values, another has an interval, `sweep.retry_failed` is no flag, or `run_dir` or
            `resume` names a single run.
    """
    name = Path(config.hydra.sweep.dir).name if config.sweep.name is None else config.sweep.name
    if not isinstance(name, str) or not re.fullmatch(r"(?!\.)[\w .+-]{1,100}", name):
        raise UserError(
            f"sweep.name={name}: use at most 100 letters, digits, '-', '_', '+' and '.': it names "
            "a directory"
        )
    check_flag("sweep.retry_failed", config.sweep.retry_failed)
    for key, override in overrides.items():
        if key.startswith("sweep.") and override.is_sweep_override():
            raise UserError(f"{override.input_line}: a sweep takes one {key}, not a list")
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(
                f"{override.input_line}: a sweep takes lists of values; to search an interval, use "
                "scripts/tune.py"
            )
    if "run_dir" in overrides:
        raise UserError("run_dir is for one run; name a sweep's directory with sweep.name=NAME")
    if "resume" in overrides and config.resume not in (None, "auto"):
        raise UserError(
            f"resume={config.resume}: a sweep resumes its own jobs; name it with sweep.name, or "
            "start from weights with init_from"
        )


def make_plan(
    directory: Path,
    overrides: dict[str, Override],
    shared: dict[str, Any],
    grid: list[tuple[list[str], dict[str, Any]]],
) -> Plan:
    """Return the plan for the sweep that the command line asks for.

    A job is identified by its configuration, however its overrides are ordered or worded; a digest
    of it names the job's directory. Jobs with equal configurations are one job.

    Args:
        overrides: of the command line, by key.
        shared: the configuration composed without the swept overrides.
        grid: the overrides and the configuration of each job.

    Raises:
        UserError: `init_from=latest`, with which jobs would start from one another.
    """
    if any(config.get("init_from") == "latest" for _, config in grid):
        raise UserError(
            "init_from=latest: each job would start from the previous one; name a checkpoint"
        )
    swept = frozenset(_key(key) for key, one in overrides.items() if one.is_sweep_override())
    named = frozenset(map(_key, overrides))
    ever_swept = swept | swept_keys(directory)
    places = reversed([*directory.glob("*_*")])  # so that the first of each digest is kept
    by_digest = {place.name.rpartition("_")[2]: place for place in places}
    jobs: dict[Path, list[str]] = {}
    for job_overrides, config in grid:
        # Sorted, so that two terminals starting at once agree on the name: neither sees the
        # other's directory yet.
        shown = sorted(text for text in job_overrides if _key(text) in (swept or named))
        name = job_name(shown, identity(config, ever_swept))
        job = by_digest.get(name.rpartition("_")[2], directory / name)
        jobs.setdefault(job, job_overrides)
    return Plan(directory, swept, named, identity(shared, swept), jobs)


def identity(config: dict[str, Any], swept: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the settings that identify a job, by dotted key.

    Null values are left out, so that adding a key to the code changes no identity; so are keys that
    only say where a job is stored or how it is monitored (`FREE`), unless they are swept.

    Args:
        config: as composed, before device defaults are filled in.
    """
    data = config.get("data") or {}
    settings = flatten(config | {"data": data | absolute_paths(data)})
    return {
        key: value
        for key, value in settings.items()
        if value is not None and (within(key, swept) or not within(key, FREE))
    }


def job_name(overrides: list[str], settings: dict[str, Any]) -> str:
    """Return a job's directory name: its overrides, for people, and a digest of its settings."""
    texts = (re.sub(r"[^\w.+-]+", "-", text.lstrip("+~")).strip("-") for text in overrides)
    shown = "_".join(texts) or "defaults"
    shown = shown.encode()[:NAME_BYTES].decode(errors="ignore").rstrip("-_.")
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{shown}_{digest}"


def check_same_sweep(plan: Plan) -> None:
    """Refuse to reuse the name of a different sweep.

    The same sweep may get more values, more swept keys, and a list where it had a single value: its
    jobs still differ in those keys alone. Keys within a swept group follow from the group, and may
    differ unless a command line sets them itself.

    Raises:
        UserError: the directory holds a different sweep; the message says how the two differ.
    """
    if not plan.place.exists():
        return
    try:
        then = json.loads(plan.place.read_text())
        swept = plan.swept | set(then["swept"])
        found = changes(then["shared"], json.loads(json.dumps(plan.shared)))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"{plan.place}: damaged; give the sweep another name, or delete that file to go on "
            "with the jobs that are there"
        ) from None
    free = [*FREE, *swept]
    named = plan.named.union(then.get("named", ())) - swept
    differences = [
        line
        for key, line in found.items()
        if not within(key, free) or (key in named and not within(key, FREE))
    ]
    differences += [
        f"{key}: swept then, not named now" for key in sorted(set(then["swept"]) - plan.named)
    ]
    if differences:
        raise UserError(
            f"sweep.name={plan.directory.name} holds another sweep ({'; '.join(differences)}); "
            f"give this one another name, or delete {plan.directory}"
        )


def swept_keys(directory: Path) -> set[str]:
    """Return the swept keys of the sweep in `directory`; none if there is no sweep."""
    try:
        return set(json.loads((directory / "sweep.json").read_text())["swept"])
    except (OSError, ValueError, LookupError, TypeError):
        return set()


def swept_settings(
    directory: Path, settings: dict[str, Any], choices: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a job's values for the swept keys.

    Args:
        choices: the option chosen in each config group.
    """
    values = flatten(settings)
    return {key: values.get(key, choices.get(key)) for key in sorted(swept_keys(directory))}


def recorded(job: Path, retry_failed: bool = False) -> Outcome | None:
    """Return the outcome of the job in this directory; None if it has not ended, or is to be run
    again since it failed."""
    summary = read_json(job / "summary.json")
    if (status := summary.get("status")) not in ("completed", "diverged", "failed"):
        return None
    if retry_failed and status != "completed":
        return None
    return Outcome(job.name, status, summary.get("best_val_loss"), summary.get("error"))


def wait_for(jobs: list[Path]) -> None:
    """If other processes are training all of `jobs`, wait until one of these is released."""
    if jobs and all(is_busy(job) for job in jobs):
        Terminal().say(f"Waiting for jobs that another process is training: {jobs[0].name}")
        while all(is_busy(job) for job in jobs):
            time.sleep(0.2)


def say_interrupted(plan: Plan) -> None:
    """Print how far the sweep has come and how to resume it."""
    done = sum(recorded(job) is not None for job in plan.jobs)
    Terminal().say(
        f"{done} of {len(plan.jobs)} jobs are finished; repeat the command with "
        f"sweep.name={plan.directory.name} to continue"
    )


def finish(plan: Plan, outcomes: list[Outcome]) -> list[Outcome]:
    """Write the comparison of a finished sweep's jobs, and print those that failed.

    Raises:
        JobsFailedError: some jobs did not complete.
    """
    terminal = Terminal()
    told: dict[Path, str] = {}
    try:
        from litchar.analysis.compare import report_on  # imported only when needed: takes a second

        told = report_on([plan.directory], plan.directory, None, terminal).reasons
    except Exception as error:  # whatever it is, the runs are safe
        terminal.say(
            f"No comparison ({error}); to write it later: python scripts/compare.py "
            f"{plan.directory}"
        )
    failed = [outcome for outcome in outcomes if outcome.status != "completed"]
    for outcome in failed:
        why = " ".join(str(outcome.error).split())
        if told.get(plan.directory.absolute() / outcome.job) != f"{outcome.status}: {why}":
            terminal.say(f"{outcome.status}: {outcome.job}: {why}")
    if failed:
        others = ", the others completed" if len(failed) < len(outcomes) else ""
        raise JobsFailedError(
            f"{len(failed)} of {len(outcomes)} jobs failed{others}; retry them with "
            "sweep.retry_failed=true"
        )
    return outcomes


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
