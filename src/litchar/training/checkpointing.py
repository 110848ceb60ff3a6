"""When a run saves its checkpoints, and how Lightning is made to write them whole."""

import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.plugins import CheckpointIO

from litchar import signals
from litchar.atomic import atomic_write
from litchar.checkpoints import Checkpoint, load, save
from litchar.checkpoints.files import flush_directory
from litchar.errors import Interrupted, UserError
from litchar.terminal import Terminal
from litchar.training.callbacks import Metrics, is_validation
from litchar.training.loggers import MetricsCSV


class AtomicCheckpointIO(CheckpointIO):
    """Lets the Trainer save and load as `litchar.checkpoints` does.

    Attributes:
        failure: why a file could not be written; until it is cleared no other is. It is not raised:
            of several ranks one writes, and the others would wait for it for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: OSError | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Save `checkpoint` at `path`, whole or not at all."""
        self.try_to(lambda: save(checkpoint, Path(path)))

    def try_to(self, write: Callable[[], None]) -> None:
        """Write, and keep an OSError as the `failure`."""
        if self.failure is None:
            try:
                write()
            except OSError as error:
                self.failure = error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the checkpoint at `path`; nothing in it is run."""
        return load(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the checkpoint at `path`, if there is one, and what takes its place was saved."""
        if self.failure is None:
            Path(path).unlink(missing_ok=True)


class Checkpoints(CheckpointCallback):
    """Saves `last.ckpt` at each validation and every so often, and `best.ckpt` at the best one.

    The last but one is kept as `previous.ckpt`, for the case that the disk damages the last.

    All ranks take part, and by the same step: the first one's clock says when, and a signal to any
    of them is one to all.

    Args:
        directory: where they are kept.
        files: writes them.
        metrics: knows which validation was the best.
        every_seconds: the longest time of training that a crash may cost.
        terminal: tells the person that a checkpoint could not be saved.

    Attributes:
        saved_step: of the last that was.
    """

    def __init__(
        self,
        directory: Path,
        files: AtomicCheckpointIO,
        metrics: Metrics,
        every_seconds: float,
        terminal: Terminal,
    ) -> None:
        self.directory = directory
        self.files = files
        self.metrics = metrics
        self.every_seconds = every_seconds
        self.terminal = terminal
        self._saved_at = 0.0
        self.saved_step = 0
        self._tried_step = 0  # of the last that was to be saved
        self._failure: OSError | None = None  # of that
        self._best_saved = 0  # the step of it
        self._stops = False  # with the next whole step

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let a signal wait for the end of the step from here on, while training runs."""
        signals.defer(stage == "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let signals end the program at once again, on every rank."""
        signals.defer(False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count the time since the last checkpoint.

        Whoever goes on from an older checkpoint, or in another directory, has no file of the best
        step that the record names: then the next validation is the best.
        """
        self._agreement = Agreement()
        self._saved_at = time.monotonic()
        self.saved_step = self._tried_step = trainer.global_step
        has_best = trainer.is_global_zero and self._has_best()  # whose disk counts
        if self.metrics.best_step and not trainer.strategy.broadcast(has_best):
            self.metrics.best_step = 0
            if trainer.is_global_zero:  # of a step to come, or damaged
                (self.directory / "best.ckpt").unlink(missing_ok=True)
        self._best_saved = self.metrics.best_step

    def _has_best(self) -> bool:
        """Return whether `best.ckpt` is whole, and of the best step."""
        try:
            return Checkpoint.load(self.directory / "best.ckpt").step == self.metrics.best_step
        except UserError:
            return False

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Ask the other ranks, if there are any, what they know of a signal and of the time."""
        self._tell_of_others()
        self._agreement.ask(self._wishes(trainer))

    def _tell_of_others(self) -> None:
        """Say that another callback could not save, and let the next be tried."""
        if self.files.failure is not None:
            self.terminal.say(f"a callback's checkpoint was not saved ({self.files.failure})")
            self.files.failure = None

    def _wishes(self, trainer: L.Trainer) -> tuple[int, int]:
        """Return the signal that this rank has received, and whether it is time to save."""
        is_time = time.monotonic() - self._saved_at > self.every_seconds
        return signals.received(), int(is_time and trainer.is_global_zero)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save after `every_seconds` and the last step; or, if a signal asks for it, save and end.

        A step that is validated is saved after that: a run resumed from before would skip it. And
        only whole steps are saved, no accumulated gradients. The last step is saved here, as once
        the run has ended its epoch counts as whole, and its weights may be their average.
        """
        signum, is_time = self._agreement.answer(self._wishes(trainer))
        accumulates = trainer.fit_loop.epoch_loop._should_accumulate()
        if accumulates and trainer.should_stop:  # the time is over, say
            self._stops, trainer.should_stop = True, False
        elif self._stops and not accumulates:
            self._stops, trainer.should_stop = False, True
        is_due = signum or is_time or trainer.fit_loop.done
        if is_due and not is_validated(trainer) and not accumulates:
            self._save(trainer, signum)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last state, and the best."""
        if not is_validation(trainer):
            return
        is_best = self.metrics.best_step == trainer.global_step
        self._save(trainer, self._signal(trainer), is_best)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last state, if that was not tried: a callback may end a run with an epoch."""
        if trainer.should_stop and trainer.global_step > self._tried_step:
            self._save(trainer, self._signal(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End as a failure if the last state was not saved.

        Raises:
            UserError: it cannot be saved, on any rank.
        """
        self._tell_of_others()
        if self._failure is not None:
            raise UserError(
                f"{self.directory}: the end of the run was not saved ({self._failure.strerror}); "
                f"make room there and go on from step {self.saved_step:,} with the same command "
                f"and run_dir={shlex.quote(str(self.directory.parent))} resume=auto (a sweep or a "
                "study: with its own line)"
            ) from self._failure

    def _signal(self, trainer: L.Trainer) -> int:
        """Return the signal that any rank has received by now, or 0."""
        self._agreement.ask(self._wishes(trainer))
        return self._agreement.answer(self._wishes(trainer))[0]

    def _save(self, trainer: L.Trainer, signum: int, is_best: bool = False) -> None:
        """Save the state, outside of the clock that counts steps; end if a signal says so."""
        self.metrics.clock.stop(trainer.lightning_module.device)
        self.metrics.check_state(trainer)
        self._tried_step = trainer.global_step
        self._failure, best_failed = self._write(trainer, is_best)
        if best_failed:  # not on disk: the next validation that is better than that is
            self.metrics.best_step = self._best_saved
        self._best_saved = self.metrics.best_step
        if self._failure is None:
            self.saved_step = trainer.global_step
        elif signum or not trainer.fit_loop.done:
            self.terminal.say(
                f"step {trainer.global_step:,}: the checkpoint was not saved "
                f"({self._failure.strerror})"
                f"{'' if signum else '; training goes on and tries again'}"
            )
        self._saved_at = time.monotonic()
        if signum:
            raise Interrupted(signum)

    def _write(self, trainer: L.Trainer, is_best: bool) -> tuple[OSError | None, bool]:
        """Write what the loggers have, and the checkpoint.

        Returns:
            what went wrong, and whether the best was lost by it, as all ranks are told
        """
        self._tell_of_others()
        for logger in trainer.loggers:
            self.files.try_to(logger.write if isinstance(logger, MetricsCSV) else logger.save)
        best, last = self.directory / "best.ckpt", self.directory / "last.ckpt"
        if trainer.is_global_zero:
            self.files.try_to(lambda: name_too(last, self.directory / "previous.ckpt"))
        # One file has both names where it is the best: it takes time to write.
        trainer.save_checkpoint(best if is_best else last)
        best_failed = is_best and self.files.failure is not None
        if trainer.is_global_zero and is_best:
            self.files.try_to(lambda: name_too(best, last))
        told: tuple[OSError | None, bool]
        told = trainer.strategy.broadcast((self.files.failure, best_failed))
        self.files.failure = None
        return told


def name_too(file: Path, other: Path) -> None:
    """Let `other` name what `file` names, if that is there: always a whole one."""
    if not file.exists() or (other.exists() and file.samefile(other)):
        return
    other.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(other) as draft:
        try:
            os.link(file, draft)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(file, draft)
    flush_directory(other.parent)


class Agreement:
    """Lets all ranks decide alike, for no time of a step: asked as it begins, answered at its end.

    What a rank alone answers is what it knows at the end.
    """

    def __init__(self) -> None:
        self._group = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")  # on the host, beside the gradients'

    def ask(self, wishes: tuple[int, ...]) -> None:
        """Tell the others."""
        if self._group is not None:
            self._asked = torch.tensor(wishes)
            self._work = dist.all_reduce(self._asked, dist.ReduceOp.MAX, self._group, async_op=True)

    def answer(self, wishes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the most that any rank asked for; `wishes`, if there is no other."""
        if self._group is None:
            return wishes
        self._work.wait()
        return tuple(self._asked.tolist())


def is_validated(trainer: L.Trainer) -> bool:
    """Return whether validation follows the batch that has just ended."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
