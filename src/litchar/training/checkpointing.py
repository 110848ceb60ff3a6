"""When a run saves its checkpoints, and how Lightning is made to write them atomically."""

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
    """Makes the Trainer save and load checkpoints through `litchar.checkpoints`.

    Attributes:
        failure: why a file could not be written; no other is written until this is cleared. It is
            stored, not raised: only one rank writes, and the others would wait for it forever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: OSError | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Save `checkpoint` at `path` atomically."""
        self.try_to(lambda: save(checkpoint, Path(path)))

    def try_to(self, write: Callable[[], None]) -> None:
        """Call `write` unless there is a `failure`; store an OSError as one."""
        if self.failure is None:
            try:
                write()
            except OSError as error:
                self.failure = error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the checkpoint at `path`, without executing any code in it."""
        return load(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the checkpoint at `path`, unless its replacement could not be saved."""
        if self.failure is None:
            Path(path).unlink(missing_ok=True)


class Checkpoints(CheckpointCallback):
    """Saves `last.ckpt` at each validation and at intervals, `best.ckpt` at the best validation.

    The one before the last is kept as `previous.ckpt`, in case the disk damages the last.

    All ranks save at the same step: rank 0's clock decides when, and a signal to any rank counts
    for all.

    Args:
        directory: where the checkpoints are kept.
        files: writes them.
        metrics: knows which validation was the best.
        every_seconds: the most training time that a crash may cost.
        terminal: where a checkpoint that could not be saved is reported.

    Attributes:
        saved_step: the step of the last checkpoint saved.
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
        self._tried_step = 0  # of the last attempt to save
        self._failure: OSError | None = None  # of that attempt
        self._best_saved = 0  # the step of `best.ckpt`
        self._stops = False  # once the step is complete

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Defer signals to the end of the step while training runs."""
        signals.defer(stage == "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let signals end the program immediately again, on every rank."""
        signals.defer(False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start timing the interval between checkpoints.

        A run resumed from an older checkpoint, or in another directory, may lack the `best.ckpt`
        of its recorded best step, or have one from later on: then the next validation counts as
        the best.
        """
        self._agreement = Agreement()
        self._saved_at = time.monotonic()
        self.saved_step = self._tried_step = trainer.global_step
        has_best = trainer.is_global_zero and self._has_best()  # its disk counts
        if not trainer.strategy.broadcast(has_best):
            self.metrics.best_step = 0
            best = self.directory / "best.ckpt"
            if trainer.is_global_zero and best.exists():  # of another step, or damaged
                best.unlink()
        self._best_saved = self.metrics.best_step

    def _has_best(self) -> bool:
        """Return whether `best.ckpt` is intact and of the best step."""
        try:
            return Checkpoint.load(self.directory / "best.ckpt").step == self.metrics.best_step
        except UserError:
            return False

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start to agree with the other ranks, if any, on signals and on whether to save."""
        self._tell_of_others()
        self._agreement.ask(self._wishes(trainer))

    def _tell_of_others(self) -> None:
        """Report that another callback could not save, and clear the failure."""
        if self.files.failure is not None:
            self.terminal.say(f"a callback's checkpoint was not saved ({self.files.failure})")
            self.files.failure = None

    def _wishes(self, trainer: L.Trainer) -> tuple[int, int]:
        """Return the signal received, or 0, and whether it is time to save (1 on rank 0 only)."""
        is_time = time.monotonic() - self._saved_at > self.every_seconds
        return signals.received(), int(is_time and trainer.is_global_zero)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save after `every_seconds` and after the last step; on a signal, save and end.

        If validation follows, saving waits for it: a run resumed from before would skip it. Only
        complete steps are saved, never accumulated gradients. The last step is saved here: once
        training has ended, its epoch counts as complete and the weights may be their average.
        """
        signum, is_time = self._agreement.answer(self._wishes(trainer))
        accumulates = trainer.fit_loop.epoch_loop._should_accumulate()
        if accumulates and trainer.should_stop:  # e.g. time is up
            self._stops, trainer.should_stop = True, False
        elif self._stops and not accumulates:
            self._stops, trainer.should_stop = False, True
        is_due = signum or is_time or trainer.fit_loop.done
        if is_due and not validation_follows(trainer) and not accumulates:
            self._save(trainer, signum)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save `last.ckpt`, and `best.ckpt` if this is the best validation."""
        if not is_validation(trainer):
            return
        is_best = self.metrics.best_step == trainer.global_step
        self._save(trainer, self._signal(trainer), is_best)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last state if not yet attempted: a callback may stop a run as an epoch ends."""
        if trainer.should_stop and trainer.global_step > self._tried_step:
            self._save(trainer, self._signal(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fail if the last state was not saved.

        Raises:
            UserError: the last state could not be written; raised on every rank.
        """
        self._tell_of_others()
        if self._failure is not None:
            raise UserError(
                f"{self.directory}: the end of the run was not saved ({self._failure.strerror}); "
                f"free some space and resume from step {self.saved_step:,} with the same command "
                f"and run_dir={shlex.quote(str(self.directory.parent))} resume=auto (a sweep or "
                "study: with its own command)"
            ) from self._failure

    def _signal(self, trainer: L.Trainer) -> int:
        """Return the signal that any rank has received so far, or 0."""
        self._agreement.ask(self._wishes(trainer))
        return self._agreement.answer(self._wishes(trainer))[0]

    def _save(self, trainer: L.Trainer, signum: int, is_best: bool = False) -> None:
        """Save the state with the clock of steps stopped; end the run if there is a signal."""
        self.metrics.clock.stop(trainer.lightning_module.device)
        self.metrics.check_state(trainer)
        self._tried_step = trainer.global_step
        self._failure, best_failed = self._write(trainer, is_best)
        if best_failed:  # go back to the best on disk
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
        """Flush the loggers and write the checkpoint.

        Returns:
            the error, if any, and whether it prevented a best checkpoint; the same on all ranks
        """
        self._tell_of_others()
        for logger in trainer.loggers:
            self.files.try_to(logger.write if isinstance(logger, MetricsCSV) else logger.save)
        best, last = self.directory / "best.ckpt", self.directory / "last.ckpt"
        if trainer.is_global_zero:
            self.files.try_to(lambda: link_or_copy(last, self.directory / "previous.ckpt"))
        # The best is written once, under both names: writing takes time.
        trainer.save_checkpoint(best if is_best else last)
        best_failed = is_best and self.files.failure is not None
        if trainer.is_global_zero and is_best:
            self.files.try_to(lambda: link_or_copy(best, last))
        told: tuple[OSError | None, bool]
        told = trainer.strategy.broadcast((self.files.failure, best_failed))
        self.files.failure = None
        return told


def link_or_copy(file: Path, other: Path) -> None:
    """Atomically make `other` a hard link to (else a copy of) `file`, if `file` exists."""
    if not file.exists() or (other.exists() and file.samefile(other)):
        return
    with atomic_write(other) as draft:
        try:
            os.link(file, draft)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(file, draft)
    flush_directory(other.parent)


class Agreement:
    """Lets all ranks decide alike without slowing a step: asked as it begins, answered at its end.

    A single rank answers with what it knows at the end.
    """

    def __init__(self) -> None:
        self._group = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")  # on the CPU, beside the gradients'

    def ask(self, wishes: tuple[int, ...]) -> None:
        """Start an asynchronous all-reduce of `wishes`."""
        if self._group is not None:
            self._asked = torch.tensor(wishes)
            self._work = dist.all_reduce(self._asked, dist.ReduceOp.MAX, self._group, async_op=True)

    def answer(self, wishes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the maximum of each wish over all ranks; `wishes` itself on a single rank."""
        if self._group is None:
            return wishes
        self._work.wait()
        return tuple(self._asked.tolist())


def validation_follows(trainer: L.Trainer) -> bool:
    """Return whether validation follows the current batch, which may have just ended."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
