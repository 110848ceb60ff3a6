"""Loggers that Lightning lacks: one CSV row a step, and a TensorBoard that outlives a full disk."""

import contextlib
import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger, which goes on when its files cannot be written for a while.

    TensorBoard writes in a thread that ends at the first error, and raises it at every later call:
    a full disk or a deleted directory would end the run. Here the points that were waiting are
    lost (`metrics.csv` has them all), and a new file begins.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write figures of `step`."""
        self._or_begin_anew(lambda: super(TensorBoard, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_text(self, tag: str, text: str, step: int) -> None:
        """Write a text, which is shown as it is: indented, Markdown and HTML mean nothing."""
        markdown = "\n".join("    " + line for line in text.splitlines())
        self._or_begin_anew(lambda: self.experiment.add_text(tag, markdown, step))

    @rank_zero_only
    def save(self) -> None:
        """Write what is waiting."""
        self._or_begin_anew(super().save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is waiting, and close the file."""
        self._or_begin_anew(lambda: super(TensorBoard, self).finalize(status))

    def _or_begin_anew(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
                raise  # Lightning wraps what goes wrong in a ValueError
            self._experiment = None
            self._kwargs.pop("purge_step", None)  # or the new file would hide the points before it


class MetricsCSV(Logger):
    """Writes every figure to `metrics.csv`: one row for each step that has any.

    Lightning's own CSVLogger writes a row for each call, so that a step's training and validation
    figures stand apart, and deletes the file when a run is resumed.

    Args:
        path: of the file; rows of a file that is there are kept.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []  # of the file
        self._rows: list[dict[str, Any]] = []  # not in the file yet; the last may still grow

    @property
    def name(self) -> str:
        """The logger's name."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one file, and so no version."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        """This logger has no further object to log with."""
        return

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add figures to the row of `step`; a new step writes the row before."""
        if self._rows and self._rows[-1]["step"] == step:
            self._rows[-1] |= metrics
            return
        with contextlib.suppress(OSError):  # a full disk, say: the rows are kept for the next time
            self.save()
        self._rows.append({"step": step, **metrics})

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Hyper-parameters stand in `config.yaml`."""

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are not in the file yet, all or none of them.

        Raises:
            OSError: they cannot be written; they are kept.
        """
        if not self._rows:
            return
        if not self.path.exists():
            self._columns = []
        new = dict.fromkeys(key for row in self._rows for key in row if key not in self._columns)
        if new:
            self._rewrite([*self._read(), *self._rows], [*self._columns, *new])
        else:
            self._append(self._rows)
        self._rows = []

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Keep the rows up to `step` of a file that is there; the rest will be written again."""
        rows = self._read()
        if rows:
            self._rewrite([row for row in rows if int(row["step"]) <= step], list(rows[0]))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def _append(self, rows: list[dict[str, Any]]) -> None:
        with open(self.path, "r+", newline="") as file:
            length = file.seek(0, os.SEEK_END)
            try:
                csv.DictWriter(file, self._columns).writerows(rows)
                file.flush()
            except OSError:
                file.truncate(length)
                raise

    def _rewrite(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(".metrics.csv.draft")
        try:
            with open(draft, "w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
            os.replace(draft, self.path)
        finally:
            draft.unlink(missing_ok=True)
        self._columns = columns
