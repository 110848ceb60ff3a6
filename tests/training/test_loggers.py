import csv
import errno
import resource
import threading
import time
from unittest.mock import Mock

import pytest
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import FileWriter

from conftest import scalars
from litchar.training import loggers
from litchar.training.loggers import MetricsCSV, TensorBoard, hyperparameters
from litchar.training.trainer import quiet_libraries


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_step_has_one_row_whatever_was_logged_for_it(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = MetricsCSV(path)
    logger.log_metrics({"train/loss": 2.0}, step=5)
    logger.log_metrics({"train/loss": 1.5}, step=10)
    logger.log_metrics({"val/loss": 1.75}, step=10)
    logger.log_metrics({"train/loss": 1.25}, step=15)
    logger.finalize("success")
    assert read(path) == [
        {"step": "5", "train/loss": "2.0", "val/loss": ""},
        {"step": "10", "train/loss": "1.5", "val/loss": "1.75"},
        {"step": "15", "train/loss": "1.25", "val/loss": ""},
    ]


def test_the_hparams_page_shows_the_settings_by_which_runs_are_compared():
    settings = {
        "seed": 1,
        "run_dir": "/somewhere",
        "model": {"n_layer": 2, "n_hidden": None},
        "data": {"block_size": 8, "num_workers": 0},
        "trainer": {"max_steps": 3, "log_every_n_steps": 5},
    }
    shown = {"seed": 1, "model.n_layer": 2, "data.block_size": 8, "trainer.max_steps": 3}
    assert hyperparameters(settings) == shown


def test_a_callback_that_counts_from_0_adds_no_row_out_of_order(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = MetricsCSV(path)
    for step in (5, 10):
        logger.log_metrics({"train/loss": 2.0}, step=step)
        logger.log_metrics({"gpu": 0.5}, step=step - 1)
        logger.log_metrics({"val/loss": 1.75}, step=step)
    logger.save()
    assert [row["step"] for row in read(path)] == ["4", "5", "9", "10"]
    assert [row["val/loss"] for row in read(path)] == ["", "1.75", "", "1.75"]


def test_rows_of_one_step_are_joined_when_a_run_goes_on(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,a,b\n5,1.0,\n4,3.0,\n5,,2.0\n")
    MetricsCSV(path).cut(step=5)
    assert path.read_text().split() == ["step,a,b", "4,3.0,", "5,1.0,2.0"]


def test_names_in_any_script_are_utf8_whatever_the_locale(tmp_path, monkeypatch):
    def in_ascii(*arguments, **options):
        return open(*arguments, **({"encoding": "ascii"} | options))

    monkeypatch.setattr(loggers, "open", in_ascii, raising=False)
    path = tmp_path / "metrics.csv"
    for step in (1, 2, 3):
        logger = MetricsCSV(path)
        logger.cut(step)
        logger.log_metrics({"val/loss_тексты": 2.0}, step)
        logger.write()
        logger.log_metrics({"val/loss_тексты": 1.0}, step + 1)
        logger.write()
    assert path.read_bytes().decode().split()[0] == "step,val/loss_тексты"


def test_a_row_that_is_in_the_file_may_still_grow(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = MetricsCSV(path)
    for step in (0, 1):
        logger.log_metrics({"a": step}, step=step)
    logger.save()  # with a checkpoint
    logger.log_metrics({"b": 5}, step=1)
    logger.log_metrics({"a": 2}, step=2)
    logger.save()
    resumed = MetricsCSV(path)
    resumed.cut(step=1)
    resumed.log_metrics({"a": 7}, step=1)
    resumed.save()
    assert path.read_text().split() == ["step,a,b", "0,0,", "1,7,5"]


def test_a_file_that_is_there_is_continued(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsCSV(path)
    first.log_metrics({"b": 1}, step=1)
    first.log_metrics({"b": 5}, step=2)  # after the checkpoint
    first.save()
    second = MetricsCSV(path)
    second.cut(step=1)
    second.log_metrics({"a": 2, "b": 3}, step=2)
    second.save()
    assert read(path) == [{"step": "1", "b": "1", "a": ""}, {"step": "2", "b": "3", "a": "2"}]


@pytest.mark.parametrize("rest", ["\0" * 60, "1", "3,1.0,9.0,8", "3,1"])
def test_what_a_power_cut_left_is_no_row(tmp_path, rest):
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,a\n1,5.0\n2,4.0\n{rest}")
    logger = MetricsCSV(path)
    logger.cut(step=2)
    logger.log_metrics({"a": 3.0}, step=3)
    logger.save()
    assert path.read_text().split() == ["step,a", "1,5.0", "2,4.0", "3,3.0"]


def test_a_curve_outlives_a_file_that_could_not_be_written(tmp_path):
    logger = TensorBoard(tmp_path, name="", version="", purge_step=1)
    logger.log_metrics({"train/loss": 3.0}, step=1)
    logger.save()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    logger.experiment.add_scalar = fail
    logger.log_metrics({"train/loss": 2.0}, step=2)
    logger.log_metrics({"train/loss": 1.0}, step=3)
    logger.finalize("success")
    assert scalars(tmp_path) == {"train/loss": [(1, 3.0), (3, 1.0)]}


def test_hyperparameters_that_cannot_be_written_end_no_run(tmp_path, monkeypatch):
    logger = TensorBoard(tmp_path, name="", version="")
    with monkeypatch.context() as full:
        full.setattr(FileWriter, "add_summary", Mock(side_effect=OSError(errno.ENOSPC, "full")))
        logger.log_hyperparams({"seed": 1}, {"best_val_loss": 2.0})
    logger.log_hyperparams({"lists": [], "path": "\udcff"}, {"best_val_loss": 2.0})
    logger.finalize("success")
    found = EventAccumulator(str(tmp_path)).Reload()
    shown = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"[]" in shown
    assert rb"\udcff" in shown


def test_a_curve_goes_on_though_the_clock_was_set_back(tmp_path, monkeypatch):
    now = time.time()
    for step, ahead in enumerate((2e5, 1e5, 0.0), start=1):
        monkeypatch.setattr("time.time", lambda ahead=ahead: now + ahead)
        logger = TensorBoard(tmp_path, name="", version="")
        logger.cut(step - 1)
        logger.log_metrics({"train/loss": 4.0 - step}, step=step)
        logger.finalize("success")
    shown = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in shown] == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_a_full_disk_ends_no_run_through_its_loggers(tmp_path, monkeypatch, capsys):
    """Lightning calls `save` at the last step, and `finalize` however the run ended."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    quiet_libraries()
    most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    loggers = [MetricsCSV(tmp_path / "metrics.csv"), TensorBoard(tmp_path, name="", version="")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        for logger in loggers:
            logger.log_metrics({"a": 1.0}, step=1)
            logger.save()
            logger.finalize("failed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    assert not capsys.readouterr().err  # not TensorBoard's thread either
    loggers[0].finalize("success")
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,a", "1,1.0"]


class Draws(Callback):
    """Logs a histogram as in Lightning's documentation."""

    def on_train_end(self, trainer, pl_module):
        trainer.logger.experiment.add_histogram("weights", pl_module.model.head.weight, 20)


def test_the_first_logger_is_tensorboards(train):
    run_dir = train("+callbacks.draws._target_=test_loggers.Draws")
    found = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [event.step for event in found.Histograms("weights")] == [20]
