"""Launchers: where the jobs of a sweep run. Hydra finds plugins only in `hydra_plugins`.

The launchers published for Hydra lose the whole sweep when one worker dies, and the one for Ray
needs an older cloudpickle than joblib and submitit do. These hand the same callable to joblib's
processes, to Ray and to submitit, and return the outcome of each job.

Nothing heavy is imported here: Hydra imports all plugins at every start.
"""

import contextlib
import os
import signal
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from litchar import signals
from litchar.errors import Interrupted, UserError, check_integer, extra, first_line
from litchar.launched import launched
from litchar.terminal import Terminal
from litchar.training.sweep import Outcome

IDLE_SECONDS = 60  # after which an idle worker ends, even if its sweep was killed
END_SECONDS = 60  # for workers to save and exit after a signal


@dataclass(frozen=True)
class Job:
    """A job of a sweep: a callable that runs it in any process.

    Attributes:
        overrides: of its configuration, and the name of its directory.
        number: its index in the sweep.
        state: the state of Hydra's singletons.
    """

    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction
    overrides: list[str]
    number: int
    state: dict[Any, Any]

    @property
    def name(self) -> str:
        """The name of its directory, which our sweeper sets."""
        place = next((o for o in self.overrides if o.startswith("hydra.sweep.subdir=")), "")
        return place.partition("=")[2].strip('"') or f"job {self.number}"

    def __call__(self) -> JobReturn:
        """Run the job in this process, as Hydra does, with stdout appended to `output.txt`."""
        signals.install()
        setup_globals()
        Singleton.set_state(self.state)
        job = self.hydra_context.config_loader.load_sweep_config(self.config, self.overrides)
        with open_dict(job):
            job.hydra.job.num = self.number
            job.hydra.job.id = f"{job.hydra.job.name}_{self.number}"
        HydraConfig.instance().set_config(job)
        directory = Path(job.hydra.sweep.dir) / job.hydra.sweep.subdir
        directory.mkdir(parents=True, exist_ok=True)
        with (
            open(directory / "output.txt", "a", encoding="utf-8") as output,
            contextlib.redirect_stdout(output),
        ):
            try:
                returned = run_job(
                    hydra_context=self.hydra_context,
                    config=job,
                    task_function=self.task_function,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
                # The other fields are large, and the sweeper has no use for them.
                return JobReturn(_return_value=returned._return_value)
            except Interrupted as interrupted:  # an exiting worker would count as killed
                return JobReturn(_return_value=interrupted)


class _Launcher(Launcher):
    """Base class: runs each job in another process.

    Args:
        settings: as in `conf/hydra/launcher`.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra passes in."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def check(self) -> None:
        """Refuse to launch where that is impossible, before any directory is created.

        Raises:
            UserError: a package or the cluster is missing.
        """

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run the jobs, and return the result of each, or the error of one that did not return."""
        if launched() is not None:
            raise UserError(
                "torchrun and srun start one run's processes, but launcher starts many runs: use "
                "only one of them"
            )
        jobs = [
            Job(
                self.hydra_context,
                self.config,
                self.task_function,
                list(overrides),
                initial_job_idx + number,
                Singleton.get_state(),
            )
            for number, overrides in enumerate(job_overrides)
        ]
        return self.run(jobs)

    def run(self, jobs: list[Job]) -> list[JobReturn]:
        """Call each of `jobs` in another process, and return what they return or raise."""
        raise NotImplementedError

    def ended(self, job: Job, returned: JobReturn | BaseException) -> JobReturn:
        """Print how a job ended, and return its result; an error is cut to its first two lines."""
        if isinstance(returned, BaseException):  # submitit appends a whole log to its errors
            lines = str(returned).strip().split("\n")[:2]
            error = RuntimeError(" ".join(lines) or type(returned).__name__)
            returned = JobReturn(_return_value=error)
        value = returned._return_value
        if not isinstance(value, Outcome):
            line = f"failed: {job.name}: {type(value).__name__}: {value}"
        elif value.status == "completed":
            loss = value.best_val_loss  # None without validation
            found = "not validated" if loss is None else f"best val loss {loss:.4f}"
            line = f"completed: {value.job}: {found}"
        else:
            line = f"{value.status}: {value.job}: {value.error}"
        Terminal().say(line)
        return returned


class ParallelLauncher(_Launcher):
    """Runs several jobs at once on this machine, in joblib's processes, which share its cores.

    Settings:
        n_jobs: the number of jobs at once; null: the number of physical cores.
    """

    def run(self, jobs: list[Job]) -> list[JobReturn]:
        """Call all of `jobs`; those running when a process died are run again, one at a time.

        So a job that kills its process does not take others with it.
        """
        outcomes: dict[int, JobReturn] = {}
        suspects: list[int] = []
        while left := [i for i in range(len(jobs)) if i not in outcomes]:
            at_once = [i for i in left if i not in suspects] or suspects[:1]
            ended, running = self._run_at_once({i: jobs[i] for i in at_once})
            outcomes |= ended
            if at_once == suspects[:1]:
                killed = RuntimeError("its process was killed")
                outcomes |= {i: self.ended(jobs[i], killed) for i in running}
                suspects = suspects[1:]
            else:
                suspects += running
        return [outcomes[i] for i in range(len(jobs))]

    def _run_at_once(self, jobs: dict[int, Job]) -> tuple[dict[int, JobReturn], list[int]]:
        """Return the results of `jobs`, and the jobs that were running when a process died."""
        from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor, cpu_count, wait

        cores = cpu_count(only_physical_cores=True)
        n_jobs = self.settings["n_jobs"]
        if n_jobs is not None:
            check_integer("hydra.launcher.n_jobs", n_jobs, 1)
        n_jobs = min(n_jobs or cores, len(jobs))
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // n_jobs))
        workers = ProcessPoolExecutor(
            n_jobs,
            timeout=IDLE_SECONDS,
            initializer=_wait_for_jobs,
            env={"OMP_NUM_THREADS": threads},
        )
        outcomes: dict[int, JobReturn] = {}
        waiting = list(jobs)
        running: dict[Future[JobReturn], int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < n_jobs:
                    i = waiting.pop(0)
                    running[workers.submit(_run, jobs[i])] = i
                for future in wait(running, return_when="FIRST_COMPLETED").done:
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        return outcomes, list(running.values())
                    i = running.pop(future)
                    outcomes[i] = self.ended(jobs[i], error or future.result())
        except Interrupted as interrupted:  # the workers' own process groups did not get it
            for process in list(workers._processes):
                with contextlib.suppress(ProcessLookupError):  # idle for too long
                    os.kill(process, interrupted.signum)
            wait(running)
            raise
        finally:
            workers.shutdown(kill_workers=True)
        return outcomes, []


def _wait_for_jobs() -> None:
    """Set up a worker: a signal that comes while it is idle waits for its next job, if any. An
    exception then would count as a death, for which joblib kills all workers."""
    os.setpgrp()
    signals.install()
    signals.defer(True)


def _run(job: Job) -> JobReturn:
    """Run `job` in a worker."""
    if signals.received():
        return JobReturn(_return_value=Interrupted(signals.received()))
    signals.defer(False)
    try:
        return job()
    finally:
        signals.defer(True)


class RayLauncher(_Launcher):
    """Runs jobs on a Ray cluster, or on a local one started for them.

    Settings:
        init: arguments of `ray.init`; its `address`, or RAY_ADDRESS, names a cluster.
        remote: arguments of `ray.remote`: the resources a job needs, and how often it is retried
            when its process dies.
    """

    def check(self) -> None:
        """Refuse to launch if Ray is not installed."""
        with extra("ray", needed_for="launcher=ray"):
            import ray  # noqa: F401

    def run(self, jobs: list[Job]) -> list[JobReturn]:
        """Call all of `jobs` as Ray tasks."""
        import ray

        ray.init(**self.settings["init"])
        signals.install()  # over Ray's own handler
        task: Any = ray.remote(**self.settings["remote"])(lambda job: job())
        tasks = {task.remote(job): job for job in jobs}
        outcomes: dict[Any, JobReturn] = {}
        signals.defer(True)  # Ray would turn an exception from a handler into an exit of its own
        try:
            while left := [one for one in tasks if one not in outcomes]:
                for one in ray.wait(left, timeout=0.5)[0]:
                    try:
                        outcomes[one] = self.ended(tasks[one], ray.get(one))
                    except Exception as error:
                        outcomes[one] = self.ended(tasks[one], error)
                if signals.received():
                    for one in left:
                        ray.cancel(one)
                    ray.wait(left, num_returns=len(left), timeout=END_SECONDS)
                    raise Interrupted(signals.received())
        finally:
            signals.defer(False)
            ray.shutdown()
        return [outcomes[one] for one in tasks]


class SlurmLauncher(_Launcher):
    """Submits jobs to a cluster's queue through submitit.

    Settings:
        cluster: `slurm`, or `local` to try it out.
        folder: where submitit keeps its files.
        slurm_max_num_timeout: how often a job that ran out of time is resubmitted.
        The rest: arguments of submitit's `update_parameters`.
    """

    def check(self) -> None:
        """Refuse to launch if submitit is not installed or its cluster is not available."""
        self._executor()

    def _executor(self) -> Any:
        with extra("slurm", needed_for="launcher=slurm"):
            import submitit
        named = ("folder", "cluster", "slurm_max_num_timeout")
        try:
            executor = submitit.AutoExecutor(**{key: self.settings[key] for key in named})
        except (RuntimeError, ValueError) as error:  # no srun, or no such cluster
            raise UserError(
                f"launcher=slurm: {first_line(error)}; start it where jobs can be submitted, or "
                "test it with hydra.launcher.cluster=local"
            ) from None
        executor.update_parameters(
            **{key: value for key, value in self.settings.items() if key not in named}
        )
        return executor

    def run(self, jobs: list[Job]) -> list[JobReturn]:
        """Submit all of `jobs`, and wait for them to end."""
        submitted = self._executor().map_array(_Resubmitted(), jobs)
        outcomes: list[JobReturn] = []
        try:
            for job, one in zip(jobs, submitted, strict=True):
                try:
                    outcomes.append(self.ended(job, one.result()))
                except Exception as error:
                    outcomes.append(self.ended(job, error))
        except Interrupted:
            for one in submitted:
                one.cancel()
            raise
        return outcomes


class _Resubmitted:
    """Calls a job; submitit requeues it when the cluster preempts it."""

    def __call__(self, job: Job) -> JobReturn:
        """Run the job under our signal handlers, which save its state; then call submitit's."""
        submitits = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2)}
        returned = job()
        value = returned._return_value
        if isinstance(value, Interrupted):
            handler = submitits.get(signal.Signals(value.signum))
            if callable(handler):  # it resubmits the job, and exits
                handler(value.signum, None)
        return returned

    def checkpoint(self, job: Job) -> Any:
        """Return the resubmission: the same job, which resumes from its checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, job)
