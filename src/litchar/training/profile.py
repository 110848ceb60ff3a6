"""`profile=true`: where the time of a training step goes."""

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.profiler import profile

from litchar.terminal import Terminal

SKIP = 10  # warm-up batches; 0 if the run is too short for them
RECORD = 5  # batches to record


class Profile(Callback):
    """Records a few batches with torch.profiler, and writes `trace.json` and `table.txt`.

    The trace is a timeline of every operation, for https://ui.perfetto.dev or chrome://tracing; the
    table sums them up. The overhead is paid once, and counts in part towards the time of steps.

    Args:
        directory: where to write.
        terminal: where to print that path.
    """

    def __init__(self, directory: Path, terminal: Terminal) -> None:
        self.directory = directory
        self.terminal = terminal
        self._batches = 0  # seen by this process
        self._first = SKIP  # the first batch to record
        self._profile: profile | None = None

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start recording at the first batch to record."""
        if self._batches == 0 and trainer.max_steps > 0:
            steps = trainer.max_steps - trainer.global_step
            self._first = 0 if steps * trainer.accumulate_grad_batches < SKIP + RECORD else SKIP
        if self._batches == self._first and trainer.is_global_zero:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would print between our lines
            self._profile = profile()
            self._profile.start()
        self._batches += 1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Write the recording once it is complete."""
        if self._batches >= SKIP + RECORD or trainer.global_step == trainer.max_steps:
            self._write()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what was recorded, if the run ends early."""
        self._write()

    def _write(self) -> None:
        if self._profile is None:
            return
        recorded, self._profile = self._profile, None
        recorded.stop()
        averages = recorded.key_averages()
        on_device = any(event.self_device_time_total for event in averages)
        table = averages.table(
            sort_by="self_device_time_total" if on_device else "self_cpu_time_total",
            row_limit=40,
            max_name_column_width=70,
        )
        trace = self.directory / "trace.json"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "table.txt").write_text(table)
            recorded.export_chrome_trace(str(trace))
        except (OSError, RuntimeError) as error:
            self.terminal.say(f"The profile could not be written to {self.directory}: {error}")
            return
        self.terminal.say(f"Profile: {trace}, for https://ui.perfetto.dev; table.txt beside it")
