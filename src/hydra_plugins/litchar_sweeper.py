"""A grid sweeper for Hydra that launches only those jobs of a sweep that are not finished.

Hydra finds plugins only in the package `hydra_plugins`; `litchar.training.sweep` defines what a
sweep is.
"""

import pickle
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from litchar.cli import Task
from litchar.errors import Interrupted
from litchar.overrides import check_composed
from litchar.run_dir import is_busy
from litchar.settings import plain
from litchar.terminal import Terminal
from litchar.training.sweep import (
    Outcome,
    Plan,
    check_command_line,
    check_same_sweep,
    finish,
    make_plan,
    recorded,
    say_interrupted,
    wait_for,
)


class ResumingSweeper(BasicSweeper):
    """Expands lists into a grid, like Hydra's own; finished jobs never reach the launcher."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra passes in."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.settings = config
        self.loader = hydra_context.config_loader
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> list[Outcome]:
        """Run the unfinished jobs of the grid that `arguments` span, and report on all jobs.

        Raises:
            UserError: the command line is not valid for a sweep, or its name belongs to a different
                sweep; nothing was written.
            JobsFailedError: some jobs failed; the others have completed.
            Interrupted: a signal ended the sweep, after the current job was saved.
        """
        plan = self._plan(arguments)
        before = [recorded(job) for job in plan.jobs]
        if not all(outcome and outcome.status == "completed" for outcome in before):
            getattr(self.launcher, "check", lambda: None)()  # Hydra's own launchers have no check
        plan.directory.mkdir(parents=True, exist_ok=True)
        if isinstance(self.task_function, Task):
            self.task_function.started = True  # from here on an error may not be the user's
        plan.record()
        OmegaConf.save(self.settings, plan.directory / "multirun.yaml")
        outcomes: dict[Path, Outcome] = {}
        try:
            self._run_missing(plan, outcomes)
        except Interrupted:
            say_interrupted(plan)
            raise
        return finish(plan, [outcomes[job] for job in plan.jobs])

    def _plan(self, arguments: list[str]) -> Plan:
        """Return the plan, composing each job's configuration and the one that all jobs share."""
        parser = OverridesParser.create(config_loader=self.loader)
        parsed = parser.parse_overrides([*self._parse_config(), *arguments])
        overrides = {override.get_key_element(): override for override in parsed}
        check_command_line(overrides, self.settings)
        ((*grid,),) = self.split_arguments(list(overrides.values()), None)
        alike = [override for override in overrides.values() if not override.is_sweep_override()]
        ((shared,),) = self.split_arguments(alike, None)
        texts = sorted({text for job in [shared, *grid] for text in job})
        known = dict(zip(texts, parser.parse_overrides(texts), strict=True))
        of_groups = {text for text, override in known.items() if self._is_group(override)}
        composed: dict[tuple[str, ...], bytes] = {}

        def compose(job: list[str]) -> dict[str, Any]:
            # Each combination of groups is composed once, and the job's values are set in a copy:
            # composing every job would take longer than running many a small one. To pickle a
            # configuration and back takes a fifth of the time of copy.deepcopy.
            groups = tuple(text for text in job if text in of_groups)
            if groups not in composed:
                composed[groups] = pickle.dumps(self._compose(list(groups)))
            config = pickle.loads(composed[groups])
            values = [known[text] for text in job if text not in groups]
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
            return plain(config)

        plan = make_plan(
            Path(self.settings.hydra.sweep.dir).absolute(),
            overrides,
            compose(shared),
            [(job, compose(job)) for job in grid],
        )
        check_same_sweep(plan)
        return plan

    def _is_group(self, override: Override) -> bool:
        options = self.loader.get_group_options(override.key_or_group)
        return bool(options) or override.package is not None

    def _compose(self, overrides: list[str]) -> DictConfig:
        config = self.loader.load_sweep_config(self.settings, overrides)
        choices = config.hydra.runtime.choices
        with open_dict(config):
            del config["hydra"]
        if isinstance(self.task_function, Task):
            check_composed(config, self.task_function.known, choices)
        return config

    def _run_missing(self, plan: Plan, outcomes: dict[Path, Outcome]) -> None:
        """Run jobs until `outcomes` has all of them, including those that other processes train."""
        # One at a time, each job is checked again just before: another process may share the work.
        sequential = isinstance(self.launcher, BasicLauncher)
        while missing := [job for job in plan.jobs if job not in outcomes]:
            size = 1 if sequential else self.max_batch_size or len(missing)
            for start in range(0, len(missing), size):
                self._launch(plan, missing[start : start + size], outcomes)
            wait_for([job for job in missing if job not in outcomes])

    def _launch(self, plan: Plan, jobs: list[Path], outcomes: dict[Path, Outcome]) -> None:
        """Launch those of `jobs` that have no final outcome and that no other process trains."""
        for job in jobs:
            if outcome := recorded(job, self.settings.sweep.retry_failed):
                outcomes[job] = outcome
        jobs = [job for job in jobs if job not in outcomes and not is_busy(job)]
        if not jobs:
            return
        assert self.launcher is not None
        numbers = {job: number for number, job in enumerate(plan.jobs)}
        for job in jobs:
            Terminal().say(f"\nJob {numbers[job] + 1} of {len(numbers)}: {job.name}")
        returns = self.launcher.launch(
            [plan.overrides_of(job) for job in jobs], initial_job_idx=numbers[jobs[0]]
        )
        for job, returned in zip(jobs, returns, strict=True):
            outcome = outcome_of(job, returned)
            if outcome.status != "busy":
                outcomes[job] = outcome


def outcome_of(job: Path, returned: JobReturn) -> Outcome:
    """Return the outcome of a job, whatever its worker sent back."""
    value = returned._return_value  # the property would raise an error instead of returning it
    if isinstance(value, Outcome):
        return value
    return Outcome(job.name, "failed", error=f"{type(value).__name__}: {value}")
