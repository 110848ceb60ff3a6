"""A worker of a study: from a composed configuration to the best settings and a report."""

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import optuna
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from litchar.atomic import atomic_write
from litchar.errors import (
    BusyError,
    DivergedError,
    Interrupted,
    UserError,
    causes,
    check_integer,
    is_disk_full,
    is_number,
    is_users,
)
from litchar.errors import reason as said
from litchar.launched import launched
from litchar.overrides import built, literal, without_passwords
from litchar.run_dir import is_busy
from litchar.settings import read_json
from litchar.terminal import Terminal
from litchar.training import run as training
from litchar.training.callbacks import is_validation, metrics_of
from litchar.training.devices import device_of, settle_devices
from litchar.training.trainer import quiet_libraries
from litchar.tuning.report import described, print_report, write_report
from litchar.tuning.slots import root
from litchar.tuning.space import Value, suggest
from litchar.tuning.storage import open_storage
from litchar.tuning.study import Search, check_same_search, open_study, study_directory
from litchar.tuning.worker import Worker

ALL_REFUSED = 5  # if so many trials, and all so far, are refused, what they share is at fault


def run(config: DictConfig) -> None:
    """Take part in the study that `config.tune` describes until all its trials are finished.

    Raises:
        UserError: the configuration, the search space or the text is invalid, or the study of this
            name searches something else.
        Interrupted: a signal ended the worker; the current trial is saved.
    """
    if launched() is not None:
        raise UserError(
            "torchrun and srun start the processes of one run; start each worker of a study by "
            "itself"
        )
    quiet_libraries()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_default_handler()
    terminal = Terminal()
    tune = config.tune
    check_integer("tune.trials", tune.trials, 1)
    beat = tune.beat_seconds
    if not is_number(beat) or not beat > 0:
        raise UserError(f"tune.beat_seconds={beat}: must be a number above 0")
    directory = study_directory(config)
    search = Search.of(config)
    make_sampler = sampler_maker(config)
    pruner = _made("tune.pruner", tune.pruner, BasePruner)
    trainer = search.compose({}).trainer
    check_pruner(pruner, settle_devices(trainer, device_of(trainer.accelerator)).world_size)
    storage = open_storage(tune.storage, directory)
    study = open_study(storage, directory, search, command_line())
    study.pruner = pruner
    terminal.say(f"Study {directory.name}: {tune.trials} trials; {directory}")
    with Worker(study, storage, directory, tune.trials, tune.beat_seconds, make_sampler) as worker:
        while (trial := worker.take()) is not None:
            search.note_text()
            check_same_search(study, search)
            run_trial(trial, worker, search, directory / "trials", terminal)
            _stop_if_all_are_refused(study)
    write_report(study, tune.trials, search, directory)
    print_report(study, tune.trials, directory, terminal)


def sampler_maker(config: DictConfig) -> Callable[[int], BaseSampler]:
    """Return a function that makes the sampler for a trial, seeded by the study's seed and, its
    argument, the trial's index among the study's slots.

    Raises:
        UserError: `tune.sampler` is invalid, or tries every combination.
    """
    settings = config.tune.sampler
    name = str(settings.get("_target_")).rpartition(".")[2]
    if name in ("GridSampler", "BruteForceSampler"):
        raise UserError(
            f"tune.sampler: {name} tries every combination; use a sweep for that: "
            "python scripts/train.py -m KEY=1,2,3"
        )

    def make(number: int) -> BaseSampler:
        words = np.random.SeedSequence([config.seed, number]).generate_state(1)
        sampler: BaseSampler = _made("tune.sampler", settings, BaseSampler, seed=int(words[0]))
        return sampler

    make(0)  # it rejects invalid settings
    return make


def _made(key: str, settings: DictConfig, kind: type, **given: Any) -> Any:
    """Return the sampler or the pruner that `settings` describe.

    Raises:
        UserError: they describe something else, or it does not take one of them, or lacks one.
    """
    made = built(key, settings, **given)
    if not isinstance(made, kind):
        one = kind.__module__.rpartition("._")[0]  # optuna.samplers, of optuna.samplers._base
        raise UserError(f"{key}._target_={settings.get('_target_')}: must be one of {one}")
    return made


def check_pruner(pruner: BasePruner, world_size: int) -> None:
    """Raise UserError if runs on several ranks are pruned, of which only the first would stop."""
    if world_size > 1 and not isinstance(pruner, optuna.pruners.NopPruner):
        raise UserError("a trial on several devices cannot be pruned; set tune/pruner=none")


def run_trial(
    trial: optuna.Trial, worker: Worker, search: Search, runs: Path, terminal: Terminal
) -> None:
    """Train with the values that the sampler suggests, or resume the run of a lost trial.

    Raises:
        Interrupted: a signal ended the trial.
    """
    try:
        values = suggest(trial, search.space)
    except ImportError as error:  # the sampler needs a package that is missing
        worker.finish(trial, "interrupted")
        raise UserError(f"tune.sampler: {said(error)}") from None
    slot = root(trial)
    terminal.say(f"trial {slot}: {described(values)}")
    about = {"study": trial.study.study_name, "trial": slot, "values": values}
    watch = Watch(trial, about)
    reason = None
    run_dir = _free_run_dir(runs, slot, trial.number)
    attributes: dict[str, Any] = {"run": str(run_dir)}
    try:
        loss = _train(search, values, run_dir, watch)
        outcome = "pruned" if watch.pruned else "completed"
    except Interrupted:
        worker.finish(trial, "interrupted", **attributes)
        terminal.say(f"trial {slot}: interrupted; repeat the command to continue it")
        raise
    except BusyError:  # another process took it just now; a retry gets another directory
        worker.finish(trial, "interrupted", **attributes)
        return
    except DivergedError as error:
        outcome, loss, reason = "diverged", None, str(error)
    except Exception as error:
        if any(isinstance(cause, OSError) and is_disk_full(cause) for cause in causes(error)):
            worker.finish(trial, "interrupted", **attributes)  # not its settings' fault
            raise
        if not is_users(error):
            worker.finish(trial, "failed", **attributes, reason=f"{type(error).__name__}: {error}")
            raise
        outcome, loss, reason = "infeasible", None, " ".join(said(error).split())
    if reason is not None:
        attributes["reason"] = reason
    if (run_dir / "trial.json").exists():
        _mark(run_dir, **about, outcome=outcome)
    if not worker.finish(trial, outcome, loss, **attributes):
        reason = "another worker took it over meanwhile; its result counts"
    result = f"val loss {watch.best:.4f}, " if watch.best is not None else ""
    terminal.say(f"trial {slot}: {result}{outcome}{f': {reason}' if reason else ''}")


class Watch(Callback):
    """Reports each validation of a run to the study, and stops the run if the pruner says so.

    Validations are numbered from 1; a resumed run reports those that are missing.
    """

    def __init__(self, trial: optuna.Trial, about: dict[str, Any]) -> None:
        self.trial = trial
        self.about = about
        self.pruned = False
        self.best: float | None = None
        self._reported = set(trial.study._storage.get_trial(trial._trial_id).intermediate_values)
        self._pruned_at: int | None = None  # the step at which an earlier trial pruned this run

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the pruner against the number of ranks, which may itself be searched."""
        check_pruner(self.trial.study.pruner, trainer.world_size)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the trial into the run's directory; a run that was pruned before stays pruned."""
        run_dir = Path(trainer.default_root_dir)
        self._pruned_at = read_json(run_dir / "trial.json").get("pruned_at")
        if self._pruned_at is None:
            _mark(run_dir, **self.about, outcome=None)
        elif trainer.global_step >= self._pruned_at:
            self.best = metrics_of(trainer).best.get("val/loss")
            self.pruned = trainer.should_stop = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the validation loss, and stop the run if the pruner says so."""
        if not is_validation(trainer):
            return
        metrics, step = metrics_of(trainer), trainer.global_step
        self.best = metrics.best["val/loss"]
        for number, point in enumerate(metrics.history, 1):
            if number not in self._reported:
                self.trial.report(point["val/loss"], number)
                self._reported.add(number)
        ends = trainer.should_stop or step >= trainer.max_steps > 0
        if not ends and (step == self._pruned_at or self.trial.should_prune()):
            self.pruned = trainer.should_stop = True
            _mark(Path(trainer.default_root_dir), **self.about, outcome="pruned", pruned_at=step)


def command_line() -> str:
    """Return the command line that was typed, without passwords."""
    typed = map(without_passwords, sys.argv[1:])
    return shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *typed])


def _train(search: Search, values: Mapping[str, Value], run_dir: Path, watch: Watch) -> float:
    """Train or resume a run, with stdout going to `train.log`; return its best validation loss."""
    if (done := _result(run_dir)) is not None:  # its worker was killed before it could report it
        watch.best, watch.pruned = done
        return watch.best
    config = search.compose(values, "resume=auto")
    config.run_dir = literal(str(run_dir))
    (run_dir / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, run_dir / ".hydra" / "config.yaml")
    # A path need not be valid UTF-8.
    with (
        open(run_dir / "train.log", "a", encoding="utf-8", errors="backslashreplace") as log,
        contextlib.redirect_stdout(log),
    ):
        loss = training.run(config, run_dir, [watch])
    if loss is None:
        raise UserError("a trial ended without a validation; see trainer.limit_val_batches")
    return loss


def _result(run_dir: Path) -> tuple[float, bool] | None:
    """Return the best validation loss of a completed run and whether it was pruned, else None."""
    summary, mark = (read_json(run_dir / name) for name in ("summary.json", "trial.json"))
    loss = summary.get("best_val_loss")
    if summary.get("status") != "completed" or "outcome" not in mark or not isinstance(loss, float):
        return None
    return loss, mark["outcome"] == "pruned"


def _mark(run_dir: Path, **mark: Any) -> None:
    """Write into a run's directory which trial it belongs to, and the trial's outcome."""
    with atomic_write(run_dir / "trial.json") as draft:
        draft.write_text(json.dumps(mark, indent=2) + "\n")


def _free_run_dir(runs: Path, slot: int, number: int) -> Path:
    """Return a run directory for a slot: the slot's own, where a lost trial left its checkpoints,
    or another if a worker that was taken for dead is still training there."""
    run_dir = runs / f"{slot:04}"
    return runs / f"{slot:04}-{number}" if is_busy(run_dir) else run_dir


def _stop_if_all_are_refused(study: optuna.Study) -> None:
    ended = [trial.user_attrs for trial in study.get_trials(deepcopy=False)]
    refused = [one["reason"] for one in ended if one.get("outcome") == "infeasible"]
    if len(refused) >= ALL_REFUSED and len(refused) == sum("outcome" in one for one in ended):
        raise UserError(f"all {len(refused)} trials were refused; the last one: {refused[-1]}")
