"""Loggers Lightning lacks: a CSV with one row per step, a TensorBoard that survives a full disk."""

import contextlib
import csv
import inspect
import io
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.tensorboard import SummaryWriter

from litchar.atomic import atomic_write
from litchar.settings import flatten, within

EVENTS = "events.out.tfevents"  # prefix of TensorBoard's files; a timestamp follows


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger, which carries on if its files cannot be written for a while.

    TensorBoard writes in a thread that dies at the first error, raised again by every later call:
    a full disk or a deleted directory would end the run. Here the pending points are lost
    (`metrics.csv` has them all) and a new file is started.
    """

    def __init__(self, save_dir: str, **settings: Any) -> None:
        super().__init__(save_dir, **settings)
        # Lightning passes on what it does not know itself, but only once training begins.
        inspect.signature(SummaryWriter.__init__).bind(self, **self._kwargs)

    def cut(self, step: int) -> None:
        """Hide what a resumed run wrote after `step`.

        TensorBoard reads files in the order of the timestamps in their names. If the clock has been
        set back since, existing files are given earlier ones, so that the new file comes last.
        """
        self._kwargs["purge_step"] = step + 1
        files = sorted(Path(self.log_dir).glob(f"{EVENTS}.*"))
        if files and files[-1].name >= f"{EVENTS}.{int(time.time()):010d}":
            for number, file in enumerate(files):
                rest = file.name.removeprefix(f"{EVENTS}.").partition(".")[2]
                with contextlib.suppress(OSError):  # another user's, or the disk is full
                    file.rename(file.with_name(f"{EVENTS}.{number:010d}.{rest}"))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the metrics of `step`."""
        self._or_begin_anew(lambda: super(TensorBoard, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_hyperparams(
        self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        """Keep hyperparameters; with final metrics, write a row of the HParams page."""
        # As strings: Lightning's logger drops empty lists, and TensorBoard accepts only UTF-8.
        shown = {
            key: value
            if isinstance(value, int | float)
            else str(value).encode(errors="backslashreplace").decode()
            for key, value in params.items()
        }
        self._or_begin_anew(lambda: super(TensorBoard, self).log_hyperparams(shown, metrics, step))

    @rank_zero_only
    def log_text(self, tag: str, text: str, step: int) -> None:
        """Write plain text, indented so that no Markdown or HTML in it is interpreted."""
        self.log_markdown(tag, "\n".join("    " + line for line in text.splitlines()), step)

    @rank_zero_only
    def log_markdown(self, tag: str, markdown: str, step: int) -> None:
        """Write Markdown, of which TensorBoard renders tables as well."""
        self._or_begin_anew(lambda: self.experiment.add_text(tag, markdown, step))

    @rank_zero_only
    def log_image(self, tag: str, image: Image.Image, step: int) -> None:
        """Write an image as PNG, with its colours unchanged."""
        png = io.BytesIO()
        image.save(png, "PNG", compress_level=1)
        value = Summary.Value(
            tag=tag,
            image=Summary.Image(
                height=image.height,
                width=image.width,
                colorspace=3,
                encoded_image_string=png.getvalue(),
            ),
        )
        self._or_begin_anew(
            lambda: self.experiment.file_writer.add_summary(Summary(value=[value]), step)
        )

    @rank_zero_only
    def log_layout(self, layout: dict[str, dict[str, list[Any]]]) -> None:
        """Lay out the Custom Scalars page, as torch's `SummaryWriter.add_custom_scalars` does."""
        self._or_begin_anew(lambda: self.experiment.add_custom_scalars(layout))

    @rank_zero_only
    def log_points(
        self, name: str, points: np.ndarray, columns: list[str], rows: list[list[str]]
    ) -> None:
        """Show points in the Projector, replacing those shown before.

        Args:
            points: (N, D)
            columns: headings of the metadata; the first column labels the points.
            rows: metadata of each point, without tabs or line breaks.
        """
        directory = Path(self.log_dir)
        config = ProjectorConfig()
        config.embeddings.add(
            tensor_name=name, tensor_path=f"{name}.tsv", metadata_path=f"{name}_labels.tsv"
        )
        tables = {
            f"{name}.tsv": [[f"{x:.5g}" for x in point] for point in points.tolist()],
            f"{name}_labels.tsv": [columns, *rows],
        }
        files = {
            file: "".join("\t".join(row) + "\n" for row in table) for file, table in tables.items()
        }
        files["projector_config.pbtxt"] = text_format.MessageToString(config)
        with contextlib.suppress(OSError):  # e.g. disk full: the next call tries again
            for file, content in files.items():
                with atomic_write(directory / file) as draft:
                    draft.write_text(content, encoding="utf-8", errors="backslashreplace")

    @rank_zero_only
    def save(self) -> None:
        """Flush pending points."""
        self._or_begin_anew(super().save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush pending points and close the file."""
        self._or_begin_anew(lambda: super(TensorBoard, self).finalize(status))

    def _or_begin_anew(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
                raise  # Lightning wraps even an OSError in a ValueError
            self._experiment = None
            self._kwargs.pop("purge_step", None)  # or the new file would hide the points before it


# The settings by which runs are compared.
HYPERPARAMETERS = (
    "seed",
    "compile",
    "init_from",
    "data.path",
    "data.unit",
    "data.block_size",
    "data.batch_size",
    "model",
    "optimizer",
    "scheduler",
    "trainer.max_steps",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
)


def hyperparameters(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that the HParams page shows, by dotted key."""
    return {
        key: value
        for key, value in flatten(settings).items()
        if value is not None and within(key, HYPERPARAMETERS)
    }


class MetricsCSV(Logger):
    """Writes all metrics to `metrics.csv`, one row per step that has any.

    Lightning's own CSVLogger writes a row per call, which separates a step's training and
    validation metrics, and deletes the file when a run is resumed.

    Args:
        path: of the file; rows of an existing file are kept.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []  # of the file
        self._rows: dict[int, dict[str, Any]] = {}  # not written yet; the last two may grow
        self._written = -1  # the last step in the file

    @property
    def name(self) -> str:
        """The logger's name."""
        return "metrics"

    @property
    def version(self) -> str:
        """Empty: there is only one file."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics to the row of `step`; a new step writes the earlier rows.

        The row just before is kept back: some of Lightning's callbacks count steps from 0.
        """
        number = step or 0
        if number not in self._rows:
            self.save(number - 1)
        self._rows.setdefault(number, {"step": number}).update(metrics)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` has the hyperparameters."""

    @rank_zero_only
    def save(self, before: float = math.inf) -> None:
        """Call `write`; if that fails, e.g. on a full disk, keep the rows for the next time.

        Lightning calls this too, where an error would end the run.
        """
        with contextlib.suppress(OSError):
            self.write(before)

    @rank_zero_only
    def write(self, before: float = math.inf) -> None:
        """Write pending rows to the file, all or none of them.

        Args:
            before: write only the rows of steps below it.

        Raises:
            OSError: the file cannot be written; the rows are kept.
        """
        rows = [self._rows[step] for step in sorted(self._rows) if step < before]
        if not rows:
            return
        if not self.path.exists():
            self._columns = []
        new = dict.fromkeys(key for row in rows for key in row if key not in self._columns)
        if new or rows[0]["step"] <= self._written:  # a row already written has grown
            self._rewrite(_merged([*self._read(), *rows]), [*self._columns, *new])
        else:
            self._append(rows)
        self._written = max(self._written, rows[-1]["step"])
        self._rows = {step: row for step, row in self._rows.items() if step >= before}

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Keep only the rows up to `step` of an existing file: later ones will be written again.
        What a power cut has left half-written is dropped."""
        rows = self._read()
        if rows:
            kept = [row for row in _merged(rows) if int(row["step"]) <= step]
            self._rewrite(kept, [column for column in rows[0] if column is not None])
            self._written = max((int(row["step"]) for row in kept), default=-1)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the remaining rows."""
        self.save()

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _append(self, rows: list[dict[str, Any]]) -> None:
        with open(self.path, "r+", newline="", encoding="utf-8") as file:
            length = file.seek(0, os.SEEK_END)
            try:
                csv.DictWriter(file, self._columns).writerows(rows)
                file.flush()
            except OSError:
                file.truncate(length)
                raise

    def _rewrite(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        with (
            atomic_write(self.path) as draft,
            open(draft, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        self._columns = columns


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per step, in order of the steps; malformed rows are dropped."""
    merged: dict[int, dict[str, Any]] = {}
    for row in rows:
        if str(row["step"]).isdecimal() and None not in row:
            known = {column: figure for column, figure in row.items() if figure not in ("", None)}
            merged[int(row["step"])] = merged.get(int(row["step"]), {}) | known
    return [merged[step] for step in sorted(merged)]
