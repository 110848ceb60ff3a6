"""A sweep: which jobs a command line means, where each lies, and what has become of it.

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
from litchar.terminal import Terminal
from litchar.training.resume import output_subdir
from litchar.training.run_dir import is_busy
from litchar.training.settings import FREE, absolute_paths, changes, flatten, within

NAME_BYTES = 100  # of a job's directory, before its digest


@dataclass(frozen=True)
class Outcome:
    """What became of a job, as plain data: a worker sends back nothing else.

    Attributes:
        job: the name of its directory.
        status: `completed`, `diverged` or `failed`; or `busy`: another process trains it just now.
        best_val_loss: in nats per token.
        error: why it failed.
    """

    job: str
    status: str
    best_val_loss: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a command line asks for.

    Attributes:
        directory: the sweep's.
        swept: the keys that have lists.
        named: the keys that the line names at all.
        shared: what all jobs have in common, key by key.
        jobs: the directory of each job, and its overrides.
    """

    directory: Path
    swept: frozenset[str]
    named: frozenset[str]
    shared: dict[str, Any]
    jobs: dict[Path, list[str]]

    @property
    def place(self) -> Path:
        """The file that says what the directory holds."""
        return self.directory / "sweep.json"

    def record(self) -> None:
        """Write down which sweep the directory holds."""
        swept = sorted(self.swept | swept_keys(self.directory))
        held = {"swept": swept, "named": sorted(self.named), "shared": self.shared}
        text = json.dumps(held, indent=2) + "\n"
        if not self.place.exists() or self.place.read_text() != text:
            with atomic_write(self.place) as draft:
                draft.write_text(text)

    def overrides_of(self, job: Path) -> list[str]:
        """Return what Hydra is to make the job's configuration and its directory from."""
        return [*self.jobs[job], f'hydra.sweep.subdir="{job.name}"', *output_subdir(job)]


def check_command_line(overrides: dict[str, Override], config: DictConfig) -> None:
    """Refuse what has no meaning for a sweep.

    Args:
        overrides: of the command line, by key.
        config: composed from them.

    Raises:
        UserError: the name is no directory's, or a key is one run's alone.
    """
    name = Path(config.hydra.sweep.dir).name if config.sweep.name is None else config.sweep.name
    if not isinstance(name, str) or not re.fullmatch(r"(?!\.)[\w .+-]{1,100}", name):
        raise UserError(
            f"sweep.name={name}: give it letters, digits, '-', '_', '+' and '.', at most 100: it "
            "names a directory"
        )
    check_flag("sweep.retry_failed", config.sweep.retry_failed)
    for key, override in overrides.items():
        if key.startswith("sweep.") and override.is_sweep_override():
            raise UserError(f"{override.input_line}: a sweep has one {key}, no list of them")
    if "run_dir" in overrides:
        raise UserError("run_dir is one run's; name a sweep's directory with sweep.name=NAME")
    if "resume" in overrides and config.resume not in (None, "auto"):
        raise UserError(
            f"resume={config.resume}: a sweep goes on with its own jobs; name it with sweep.name, "
            "or begin from weights with init_from"
        )


def make_plan(
    directory: Path,
    overrides: dict[str, Override],
    shared: dict[str, Any],
    grid: list[tuple[list[str], dict[str, Any]]],
) -> Plan:
    """Return what the command line asks for.

    A job is its configuration, whatever the order or the wording of the overrides, and its
    directory is found by a digest of that. Two that agree are one.

    Args:
        overrides: of the command line, by key.
        shared: the configuration without the lists.
        grid: the overrides and the configuration of each job.

    Raises:
        UserError: a job would begin from another one of them.
    """
    if any(config.get("init_from") == "latest" for _, config in grid):
        raise UserError(
            "init_from=latest: each job would begin from the one before it; name a checkpoint"
        )
    swept = frozenset(_key(key) for key, one in overrides.items() if one.is_sweep_override())
    named = frozenset(map(_key, overrides))
    jobs: dict[Path, list[str]] = {}
    for job_overrides, config in grid:
        # In one order whatever was typed: of two terminals that begin neither finds the other's.
        shown = sorted(text for text in job_overrides if _key(text) in (swept or named))
        name = job_name(shown, identity(config, swept | swept_keys(directory)))
        digest = name.rpartition("_")[2]
        job = next(directory.glob(f"*_{digest}"), directory / name)
        jobs.setdefault(job, job_overrides)
    return Plan(directory, swept, named, identity(shared, swept), jobs)


def identity(config: dict[str, Any], swept: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return what makes a job the one that it is: its settings by dotted key.

    What is open (null) is left out, so that a key that is new in the code changes nothing, and so
    is what only says where a job lies and how it is watched, unless it is swept.

    Args:
        config: as it was composed, before anything is settled by device.
    """
    data = config.get("data") or {}
    settings = dict(flatten(config | {"data": data | absolute_paths(data)}))
    return {
        key: value
        for key, value in settings.items()
        if value is not None and (within(key, swept) or not within(key, FREE))
    }


def job_name(overrides: list[str], settings: dict[str, Any]) -> str:
    """Return the name of a job's directory: its overrides for people, a digest for the rest."""
    texts = (re.sub(r"[^\w.+-]+", "-", text.lstrip("+~")).strip("-") for text in overrides)
    shown = "_".join(texts) or "defaults"
    shown = shown.encode()[:NAME_BYTES].decode(errors="ignore").rstrip("-_.")
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{shown}_{digest}"


def check_same_sweep(plan: Plan) -> None:
    """Refuse a name that holds another sweep.

    The same sweep may have more values, more keys with lists, and lists where there was one value:
    its jobs still differ in those keys alone. Keys of a group that has a list follow from it, but
    for those that a line sets itself.

    Raises:
        UserError: the message says in what the two differ.
    """
    if not plan.place.exists():
        return
    then = json.loads(plan.place.read_text())
    swept = plan.swept | set(then["swept"])
    found = changes(then["shared"], json.loads(json.dumps(plan.shared)))
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
    """Return the keys that the sweep in `directory` has lists of; none if there is no sweep."""
    try:
        return set(json.loads((directory / "sweep.json").read_text())["swept"])
    except (OSError, ValueError, KeyError):
        return set()


def swept_settings(
    directory: Path, settings: dict[str, Any], choices: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a job that its sweep has lists of.

    Args:
        choices: of the configuration's groups.
    """
    values = dict(flatten(settings))
    return {key: values.get(key, choices.get(key)) for key in sorted(swept_keys(directory))}


def recorded(job: Path) -> Outcome | None:
    """Return what became of the job in this directory, or None if it is not at its end."""
    try:
        summary = json.loads((job / "summary.json").read_text())
        status, error = summary["status"], summary["error"]
    except (OSError, ValueError, KeyError):
        return None
    if status not in ("completed", "diverged", "failed"):
        return None
    return Outcome(job.name, status, summary.get("best_val_loss"), error)


def wait_for(jobs: list[Path]) -> None:
    """Wait until another process has ended with one of `jobs`, if there are any."""
    if jobs and all(is_busy(job) for job in jobs):
        Terminal().say(f"Waiting for jobs that another process trains: {jobs[0].name}")
        while all(is_busy(job) for job in jobs):
            time.sleep(0.2)


def say_interrupted(plan: Plan) -> None:
    """Say how far the sweep has come and how to go on with it."""
    done = sum(recorded(job) is not None for job in plan.jobs)
    Terminal().say(
        f"{done} of {len(plan.jobs)} jobs are finished; the same line with "
        f"sweep.name={plan.directory.name} goes on from here"
    )


def finish(plan: Plan, outcomes: list[Outcome]) -> list[Outcome]:
    """Compare the jobs of a sweep, which have all ended, and list those that failed.

    Raises:
        JobsFailedError: some failed.
    """
    terminal = Terminal()
    told: dict[Path, str] = {}
    try:
        from litchar.analysis.compare import report_on  # when it is wanted: it takes a second

        told = report_on([plan.directory], plan.directory, None, terminal).reasons
    except Exception as error:  # whatever it is, the runs are safe
        terminal.say(f"No comparison ({error}); later: python scripts/compare.py {plan.directory}")
    failed = [outcome for outcome in outcomes if outcome.status != "completed"]
    for outcome in failed:
        why = " ".join(str(outcome.error).split())
        if told.get(plan.directory.absolute() / outcome.job) != f"{outcome.status}: {why}":
            terminal.say(f"{outcome.status}: {outcome.job}: {why}")
    if failed:
        raise JobsFailedError(
            f"{len(failed)} of {len(outcomes)} jobs failed, the others are completed; "
            "sweep.retry_failed=true tries them again"
        )
    return outcomes


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
