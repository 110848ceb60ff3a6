"""A worker, one of a study's processes: it takes trials, and takes over those of dead workers."""

import contextlib
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from litchar.run_dir import is_locked
from litchar.tuning.slots import FINISHED, filled, is_mine, lost, place, root

POLL_SECONDS = 1.0  # between checks on other workers' trials, when none is left to take
SILENT_BEATS = 4  # missed heartbeats after which a worker is taken for dead


class Worker:
    """Takes trials of a study until all are finished, by this or any other worker.

    Workers on the same machine see that a worker is alive by a lock that it holds until it ends,
    however it does; others, by the heartbeats that it writes to the storage. No clocks are
    compared: a worker is dead if its heartbeat does not change while another one watches.

    Args:
        directory: of the study on this machine.
        total: the number of trials in the study.
        beat_seconds: the time between heartbeats.
        make_sampler: returns the sampler for a trial, given its index among the study's slots.
    """

    def __init__(
        self,
        study: Study,
        storage: BaseStorage,
        directory: Path,
        total: int,
        beat_seconds: float,
        make_sampler: Callable[[int], BaseSampler],
    ) -> None:
        self.study = study
        self.storage = storage
        self.study_id = storage.get_study_id_from_name(study.study_name)
        self.total = total
        self.beat_seconds = beat_seconds
        self.make_sampler = make_sampler
        self.name = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._locks = directory / "workers"
        self._lock = FileLock(self._locks / f"{self.name}.lock")
        self._trial_id: int | None = None
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._seen: dict[int, tuple[Any, float]] = {}  # others' beats, and since when

    def __enter__(self) -> "Worker":
        self._locks.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beats.join()
        self._lock.release()
        if self._trial_id is None:  # else the unlocked file tells others that its worker is dead
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def take(self) -> Trial | None:
        """Return a trial to run: a lost one, else a new one; None if all are finished.

        Wait while other workers run the remaining trials, in case one of them is killed.
        """
        while True:
            self._bury_the_dead()
            held = filled(self._trials(), self.total)
            again = next((trial for trial in held if lost(trial)), None)
            if again is not None or len(held) < self.total:
                trial = self._create(again)
                if trial is not None:
                    return trial
            elif all(trial.state in FINISHED for trial in held):
                return None
            else:
                time.sleep(POLL_SECONDS)

    def finish(
        self, trial: Trial, outcome: str, value: float | None = None, **attributes: Any
    ) -> bool:
        """Record a trial's outcome: `completed`, `pruned`, `diverged`, `infeasible`, `failed` or
        `interrupted`, which is retried.

        Returns:
            False if another worker has taken over the trial in the meantime.
        """
        state = {
            "completed": TrialState.COMPLETE,
            "interrupted": TrialState.FAIL,
            "failed": TrialState.FAIL,
        }.get(outcome, TrialState.PRUNED)
        try:
            for name, attribute in attributes.items():
                trial.set_user_attr(name, attribute)
            trial.set_user_attr("outcome", outcome)
            self.study.tell(trial, value if outcome == "completed" else None, state)
            told = True
        except (UpdateFinishedTrialError, ValueError):
            told = False
        self._trial_id = None
        return told

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _create(self, again: FrozenTrial | None) -> Trial | None:
        """Return a trial for a new or a lost trial's slot; None if another worker was first."""
        attributes: dict[str, Any] = {"worker": self.name, "host": platform.node(), "beat": 0}
        if again is None:
            template = create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        else:
            template = create_trial(
                state=TrialState.RUNNING,
                params=again.params,
                distributions=again.distributions,
                user_attrs=attributes | {"root": root(again), "retry_of": again.number},
                system_attrs=again.system_attrs,  # the pruner's progress
                intermediate_values=again.intermediate_values,
            )
        trial_id = self.storage.create_new_trial(self.study_id, template)
        number = self.storage.get_trial_number_from_id(trial_id)
        trials = self._trials()
        if not is_mine(number, trials, self.total):
            self.storage.set_trial_user_attr(trial_id, "outcome", "withdrawn")
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return None
        slot = number if again is None else root(again)
        self.study.sampler = self.make_sampler(place(slot, trials))
        self._trial_id = trial_id
        return Trial(self.study, trial_id)

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(self.beat_seconds):
            beat += 1
            if (trial_id := self._trial_id) is not None:
                with contextlib.suppress(Exception):  # the network is down: the next beat will do
                    self.storage.set_trial_user_attr(trial_id, "beat", beat)

    def _bury_the_dead(self) -> None:
        """Mark the trials of dead workers as failed, so that they are retried."""
        now = time.monotonic()  # before reading the trials, which may take long
        for trial in self._trials():
            if trial.state == TrialState.RUNNING and not self._lives(trial, now):
                with contextlib.suppress(UpdateFinishedTrialError):  # another worker was first
                    if "outcome" not in trial.user_attrs:
                        self.storage.set_trial_user_attr(trial._trial_id, "outcome", "lost")
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _lives(self, trial: FrozenTrial, now: float) -> bool:
        worker = str(trial.user_attrs.get("worker"))
        lock = self._locks / f"{worker}.lock"
        if trial.user_attrs.get("host") == platform.node() and lock.exists():
            return is_locked(lock)
        beat, since = self._seen.get(trial.number, (None, 0.0))
        if beat != (worker, trial.user_attrs.get("beat")):
            since = now
            self._seen[trial.number] = (worker, trial.user_attrs.get("beat")), since
        return now - since < SILENT_BEATS * self.beat_seconds
