"""A run's progress on the terminal: a bar, and a line for each validation."""

import os
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as ProgressBarCallback
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from litchar.text.vocabulary import printable
from litchar.training.callbacks import Samples, is_validation, language_model

REFRESH_SECONDS = 0.25
MOST_SECONDS = 1e9  # that are worth telling
SILENT_SECONDS = 60.0  # of which a log, where no bar is redrawn, has a line at least


class ProgressBar(ProgressBarCallback):
    """A progress bar where the console is a terminal, and a line per validation everywhere.

    Args:
        console: where to print.
        samples: generates the sample whose beginning is shown with each validation.
    """

    def __init__(self, console: Console, samples: Samples) -> None:
        super().__init__()
        self.console = console
        self.samples = samples
        self._bar: Progress | None = None
        self._shown: dict[str, float] = {}
        self._refresh_at = 0.0
        self._began = (0, 0.0)  # at which step, and when

    def show(self, metrics: dict[str, float]) -> None:
        """Update the figures to show."""
        self._shown |= metrics

    def disable(self) -> None:
        """Show nothing; Lightning calls this on every rank but the first."""
        self.console.quiet = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the bar."""
        self._began = trainer.global_step, time.monotonic()
        self._refresh_at = time.monotonic() + SILENT_SECONDS
        if redraws(self.console) and trainer.is_global_zero:
            self._bar = Progress(
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                auto_refresh=False,  # a redrawing thread would take time from the step
                transient=True,
                expand=True,
            )
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar.add_task("", total=total, completed=trainer.global_step, figures="")
            self._bar.start()
            self._refresh_at = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Update the bar, a few times a second, or print a line if there has long been none."""
        if time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + (REFRESH_SECONDS if self._bar else SILENT_SECONDS)
        shown = {
            "loss": ("train/loss", "{:.3f}"),
            "val": ("val/loss", "{:.3f}"),
            "chars/s": ("speed/chars_per_second", "{:,.0f}"),
        }
        figures = "  ".join(
            f"{label} {form.format(self._shown[key])}"
            for label, (key, form) in shown.items()
            if key in self._shown
        )
        if self._bar is None:
            line = f"step {trainer.global_step:>6,}   {figures}   {self._time(trainer)}"
            self.console.print(line, soft_wrap=True)
            return
        task = self._bar.task_ids[0]
        steps, total = trainer.global_step, max(trainer.max_steps, 0) or None  # which may be new
        self._bar.update(task, total=total, completed=steps, figures=figures, refresh=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a line: step, losses, and the beginning of a sample."""
        if not is_validation(trainer):
            return
        losses = language_model(trainer).losses
        figures = f"step {trainer.global_step:>6,}"
        if "train/eval_loss" in losses:
            figures += f"   train {losses['train/eval_loss']:.4f}"
        figures += f"   val {losses['val/loss']:.4f} ({losses['val/bpc']:.3f} bpc)"
        width = self.console.width if self.console.is_terminal else 100
        if self._bar is None:
            spent = f"   {self._time(trainer)}"
            figures += spent if len(figures + spent) <= width else ""
            self._refresh_at = time.monotonic() + SILENT_SECONDS
        text = printable(" ".join(self.samples.text.split()))
        room = max(0, width - len(figures) - 6)
        if cell_len(text) > room:
            text = set_cell_size(text, room - 3) + "..." if room > 10 else ""
        line = Text(figures).append(f"   {text}" if text else "", "dim")
        self.console.print(line, soft_wrap=True)  # in one call: the bar redraws after each

    def _time(self, trainer: L.Trainer) -> str:
        """Return the time since training began and, if there are steps left, what they may take."""
        step, at = self._began
        passed = time.monotonic() - at
        done, left = trainer.global_step - step, trainer.max_steps - trainer.global_step
        rest = passed * left / done if done > 0 and left > 0 else 0.0
        return _clock(passed) + (f", {_clock(rest)} left" if 0 < rest < MOST_SECONDS else "")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Remove the bar, and show the cursor that it hides."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def redraws(console: Console) -> bool:
    """Return whether `console` is an interactive terminal that can redraw a line.

    A pipe, a CI log (even one with colours), and `TERM=dumb`, which screen readers and editors set,
    get plain lines only.
    """
    return console.is_interactive and console.file.isatty() and not os.environ.get("CI")
