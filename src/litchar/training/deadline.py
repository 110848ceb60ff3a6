"""How a run that only time ends learns its number of steps."""

import math
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from omegaconf import DictConfig

from litchar.errors import UserError
from litchar.settings import plain
from litchar.terminal import Terminal


class Deadline(Timer):
    """Plans the end of a run that only time ends: once `share` of the time is over, the total
    number of steps is known and becomes `trainer.max_steps`.

    From there on the run counts steps: the learning rate decays as in a run planned with that
    total, to its end, however long that takes.

    As for Lightning, time begins with the first step and includes validation; a resumed run goes on
    with the time of its checkpoint.

    Args:
        share: of the steps, for which the schedule need not know the total; above 0, at most 1.
        terminal: where it says when the decay begins.
    """

    def __init__(self, seconds: float, share: float, terminal: Terminal) -> None:
        super().__init__(timedelta(seconds=seconds))
        self.seconds = seconds
        self.share = share
        self.terminal = terminal
        self._total: int | None = None

    @property
    def state_key(self) -> str:
        """The Timer's: a run resumed without or with `trainer.max_steps` still knows its time."""
        return Timer.__qualname__

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        """End a resumed run as planned, not once its time is over, as the Timer would."""
        if self._total is not None:
            trainer.fit_loop.epoch_loop.max_steps = self._total

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start timing; plan a run that is resumed for another time which is mostly over."""
        super().on_train_start(trainer, pl_module)
        if trainer.max_steps < 0 and self._offset >= self.share * self.seconds:
            self._plan(trainer, self._offset / self.seconds)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Plan the run after the step in which it is time, by rank 0's clock."""
        if trainer.max_steps >= 0 or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if trainer.strategy.broadcast(self.time_elapsed()) >= self.share * self.seconds:
            self._plan(trainer, self.share)

    def _plan(self, trainer: L.Trainer, share: float) -> None:
        """Settle the total, of which `share` has been taken; rounded up, so that the decay has not
        begun yet."""
        step = trainer.global_step
        self._total = max(step, math.ceil(step / share), trainer.min_steps or 0)
        trainer.fit_loop.epoch_loop.max_steps = self._total
        if self._total > step:
            self.terminal.say(f"The learning rate decays from step {step:,} to {self._total:,}")

    def state_dict(self) -> dict[str, Any]:
        """Return the time so far, and the total for which time."""
        return super().state_dict() | {"total_steps": self._total, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the time so far, and the total unless it was for another time."""
        super().load_state_dict(state_dict)
        if state_dict.get("seconds") == self.seconds:
            self._total = state_dict["total_steps"]


def seconds_of(max_time: str | DictConfig) -> float:
    """Return `trainer.max_time` in seconds.

    Raises:
        UserError: it is not a time.
    """
    try:
        timer = Timer(plain(max_time) if isinstance(max_time, DictConfig) else max_time)
    except (MisconfigurationException, TypeError) as error:
        raise UserError(f"trainer.max_time={max_time}: {error}") from None
    return timer.time_remaining() or 0.0
