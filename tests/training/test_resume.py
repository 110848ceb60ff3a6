"""A stopped and resumed run is bitwise identical to one that was never stopped."""

import csv
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from hydra._internal.utils import get_args_parser

import litchar.text
from conftest import ROOT, SMALL, assert_same_run, composed, figures, summary
from litchar import cli
from litchar.checkpoints import Checkpoint, load, save
from litchar.errors import DivergedError, Interrupted, UserError, is_disk_full
from litchar.overrides import quote
from litchar.run_dir import is_busy, remove_traces, sole_owner
from litchar.training.callbacks import Metrics
from litchar.training.resolve import resolve_as_before
from litchar.training.resume import redirect, run_of

CONF = ROOT / "conf"


def stopped_at(step, signum=signal.SIGTERM):
    return (
        "+callbacks.stop._target_=conftest.SignalAt",
        f"+callbacks.stop.step={step}",
        f"+callbacks.stop.signum={int(signum)}",
    )


SETTING = ("model.dropout=0.2", "trainer.max_steps=25", "trainer.log_every_n_steps=4")


EPOCHS = (
    "trainer.limit_train_batches=7",
    "trainer.check_val_every_n_epoch=1",
    "trainer.val_check_interval=3",
)
SCHEDULED = (
    "+callbacks.more._target_=lightning.pytorch.callbacks.GradientAccumulationScheduler",
    "+callbacks.more.scheduling={0:2}",
)


@pytest.mark.parametrize(
    ("step", "setting"),
    [
        pytest.param(1, (), marks=pytest.mark.slow),
        (7, ("callbacks=default", "data.num_workers=2")),  # within an interval
        pytest.param(10, (), marks=pytest.mark.slow),  # as validation is due
        pytest.param(20, ("callbacks=early_stopping",), marks=pytest.mark.slow),
        (12, ("trainer.accumulate_grad_batches=2",)),
        pytest.param(25, (), marks=pytest.mark.slow),  # the last step
        pytest.param(3, ("trainer.precision=64-true",), marks=pytest.mark.slow),
        (8, SCHEDULED),
        (10, EPOCHS),  # which Lightning counts batches within
        pytest.param(12, ("trainer.val_check_interval={hours:1}",), marks=pytest.mark.slow),
        (
            20,
            (
                "callbacks=early_stopping",
                "callbacks.early_stopping.patience=1",
                "callbacks.early_stopping.min_delta=9",
            ),
        ),
        (10, ("target_val_loss=2.8",)),
    ],
)
def test_a_run_stopped_by_a_signal_goes_on_exactly(train, step, setting):
    whole = train(*SETTING, *setting, name="whole")
    with pytest.raises(Interrupted) as stop:
        train(*SETTING, *setting, *stopped_at(step), name="stopped")
    assert stop.value.code == 128 + signal.SIGTERM
    stopped = whole.with_name("stopped")
    assert summary(stopped)["status"] == "interrupted"
    assert Checkpoint.load(stopped / "checkpoints/last.ckpt").step == step
    train(*SETTING, *setting, "resume=auto", name="stopped")
    assert summary(stopped)["status"] == "completed"
    assert_same_run(whole, stopped)


def test_a_run_stopped_many_times_goes_on_exactly(train):
    whole = train(*SETTING, name="whole")
    for step in (1, 4, 10, 17):  # 10: as validation is due
        with pytest.raises(Interrupted):
            train(*SETTING, *stopped_at(step, signal.SIGUSR1), "resume=auto", name="stopped")
    train(*SETTING, "resume=auto", name="stopped")
    assert_same_run(whole, whole.with_name("stopped"))


def test_a_run_that_goes_on_from_an_older_checkpoint_forgets_a_later_best(train):
    """`best.ckpt` and the best figures belong to the same step, one that the run has reached."""
    line = ("trainer.val_check_interval=5", "data.test_fraction=0.1", "scheduler=constant")
    run_dir = train(*line, name="run")
    best = run_dir / "checkpoints/best.ckpt"
    assert Checkpoint.load(best).step == summary(run_dir)["best_step"] == 20
    data = load(run_dir / "checkpoints/previous.ckpt")
    metrics = data["callbacks"]["Metrics"]
    metrics["best_step"], metrics["history"][0]["val/loss"] = 5, 0.1
    assert metrics["history"][0]["step"] == 5
    save(data, older := run_dir / "older.ckpt")
    for name in ("run", "elsewhere"):
        went_on = train(*line, f"resume={older}", "trainer.max_steps=16", name=name)
        found = summary(went_on)
        assert Checkpoint.load(went_on / "checkpoints/best.ckpt").step == found["best_step"] == 16


def test_a_run_that_goes_back_to_before_its_first_validation_forgets_its_best(train):
    line = ("trainer.val_check_interval=10", "scheduler=constant")
    run_dir = train(*line)
    assert Checkpoint.load(run_dir / "checkpoints/best.ckpt").step == 20
    with pytest.raises(Interrupted):
        train(*line, *stopped_at(7), name="early")
    dies = ("+callbacks.dies._target_=conftest.Dies", "+callbacks.dies.step=8")
    early = run_dir.with_name("early") / "checkpoints/last.ckpt"
    shutil.copy(early, run_dir / "checkpoints/previous.ckpt")
    with pytest.raises(ZeroDivisionError):
        train(*line, *dies, f"resume={run_dir}/checkpoints/previous.ckpt")
    assert not (run_dir / "checkpoints/best.ckpt").exists()


def test_a_run_that_goes_back_and_is_killed_at_once_goes_on_from_there(train):
    line = (*SETTING, "trainer.val_check_interval=5")
    with pytest.raises(Interrupted):
        train(*line, *stopped_at(20))
    run_dir = train(*line, name="whole").with_name("run")
    dies = ("+callbacks.dies._target_=conftest.Dies", "+callbacks.dies.step=17")
    with pytest.raises(ZeroDivisionError):
        train(*line, *dies, f"resume={run_dir}/checkpoints/previous.ckpt")
    train(*line, "resume=auto")
    assert_same_run(run_dir.with_name("whole"), run_dir)


def test_a_run_ends_with_a_whole_step_though_it_is_told_to_within_one(train):
    """As by the Timer when `trainer.max_time` has passed."""
    stop = "+callbacks.stop._target_=conftest.StopsAt", "+callbacks.stop.batch=18"
    line = ("trainer.accumulate_grad_batches=4", "trainer.val_check_interval=20")
    run_dir = train(*line, *stop)
    loop = load(run_dir / "checkpoints/last.ckpt")["loops"]["fit_loop"]
    assert loop["epoch_loop.batch_progress"]["total"]["ready"] == 20
    assert summary(run_dir)["steps"] == 5


def test_a_run_whose_least_steps_are_more_than_it_takes_validates_the_last(train):
    least = ("trainer.min_steps=100", "trainer.val_check_interval=4")
    assert summary(train(*least, "trainer.max_steps=5", name="run"))["best_step"] == 5
    went_on = train(least[1], "trainer.max_steps=7", "resume=auto", name="run")
    assert summary(went_on)["best_step"] == 7


def test_a_damaged_last_that_is_the_best_too_costs_the_steps_since_the_one_before(train):
    run_dir = train(*SETTING, "trainer.val_check_interval=5", name="run")
    last = run_dir / "checkpoints/last.ckpt"
    assert last.samefile(run_dir / "checkpoints/best.ckpt")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 255
    last.write_bytes(content)
    train(*SETTING, "trainer.val_check_interval=5", "resume=auto", name="run")
    assert Checkpoint.load(last).step == Checkpoint.load(last.with_name("best.ckpt")).step == 25


UNVALIDATED = "trainer.limit_val_batches=0"
EVERY_OTHER = ("trainer.check_val_every_n_epoch=2", "trainer.limit_train_batches=4")
EPOCHS_OF_SEVEN = ("trainer.limit_train_batches=7", "trainer.val_check_interval=4")
AVERAGE = "+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging"


@pytest.mark.parametrize(
    "setting",
    [
        ("trainer.val_check_interval=5",),
        # The last step is not validated: within an epoch, at the end of one, and where the weights
        # are replaced by their average.
        (UNVALIDATED, "trainer.limit_train_batches=4", "trainer.accumulate_grad_batches=2"),
        pytest.param(
            (*EVERY_OTHER, "trainer.val_check_interval=4", "trainer.accumulate_grad_batches=2"),
            marks=pytest.mark.slow,
        ),
        (UNVALIDATED, AVERAGE, "+callbacks.ema.decay=0.8"),
    ],
)
def test_more_steps_go_on_from_a_completed_run(train, setting):
    setting = (*setting, "scheduler=constant", "callbacks=none")
    whole = train(*setting, "trainer.max_steps=20", name="whole")
    train(*setting, "trainer.max_steps=10", name="longer")
    longer = train(*setting, "trainer.max_steps=20", "resume=auto", name="longer")
    a, b = (load(run / "checkpoints/last.ckpt")["state_dict"] for run in (whole, longer))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    same = ("characters_seen", "best_step", "val_loss", "train_loss")
    a, b = ([summary(run)[key] for key in same] for run in (whole, longer))
    assert a == b


@pytest.mark.parametrize(
    "setting",
    [
        # The average replaces the weights when training ends.
        (AVERAGE, "+callbacks.ema.decay=0.8", *EPOCHS_OF_SEVEN),
        # A step that has all its batches would otherwise be taken with one.
        (
            "trainer.accumulate_grad_batches=2",
            "trainer.limit_train_batches=14",
            "trainer.val_check_interval=8",
        ),
    ],
)
def test_a_run_that_a_callback_ends_with_an_epoch_goes_on_exactly(train, setting):
    setting = ("scheduler=constant", "callbacks=none", *setting)
    stop = "{_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/loss,min_delta:10.0,"
    stop = f"+callbacks.stop={stop}patience:1,check_on_train_epoch_end:true}}"
    assert summary(train(*setting, stop, name="stopped"))["steps"] == 14
    stopped, whole = train(*setting, "resume=auto", name="stopped"), train(*setting, name="whole")
    a, b = (load(run / "checkpoints/last.ckpt") for run in (stopped, whole))
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=0)
    assert a["epoch"] == b["epoch"] == 2  # which are as long as they were
    batches = "epoch_loop.batch_progress"
    assert a["loops"]["fit_loop"][batches] == b["loops"]["fit_loop"][batches]


@pytest.mark.parametrize(
    "setting",
    [
        ("trainer.limit_train_batches=5", "trainer.val_check_interval=5"),
        (*EVERY_OTHER, "trainer.val_check_interval=4"),
    ],
)
def test_a_checkpoint_of_an_epochs_end_goes_on_with_the_next(train, setting):
    mine = "_target_:lightning.pytorch.callbacks.ModelCheckpoint,save_top_k:-1"
    setting = (
        *setting,
        "callbacks=none",
        f"+callbacks.mine={{{mine},save_on_train_epoch_end:true}}",
    )
    whole = train(*setting, name="whole")
    (first,) = whole.glob("checkpoints/epoch=0-*")
    gone_on = train(*setting, quote(f"resume={first}"), name="gone_on")
    a, b = (load(run / "checkpoints/last.ckpt") for run in (whole, gone_on))
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=0)
    assert a["epoch"] == b["epoch"]
    a, b = ([row["step"] for row in c["callbacks"]["Metrics"]["history"]] for c in (a, b))
    assert a == b


def test_the_first_of_more_steps_has_the_learning_rate_of_the_longer_run(train):
    """At the end of the shorter run it was 0."""
    states = [
        load(train(*more, name="longer") / "checkpoints/last.ckpt")["state_dict"]
        for more in (["trainer.max_steps=10"], ["trainer.max_steps=11", "resume=auto"])
    ]
    moved = [
        (a != b).float().mean().item() for a, b in zip(*(s.values() for s in states), strict=True)
    ]
    assert min(moved) > 0.9


def test_the_time_of_a_resumed_run_is_that_of_all_its_processes(train, monkeypatch):
    for seconds, total in ((100.0, 100.0), (7.0, 107.0)):
        monkeypatch.setattr("litchar.training.process.seconds_since_start", lambda s=seconds: s)
        more = ("resume=auto", f"trainer.max_steps={10 * total / 100:.0f}")
        assert summary(train(*more, name="longer"))["total_seconds"] == total


def test_a_run_lies_where_tensorboard_can_write(train, tmp_path):
    with pytest.raises(UserError, match="this name is not valid UTF-8"):
        train(name=os.fsdecode(b"r\xe9"))


def test_more_steps_keep_the_interval_that_was_left_open(train):
    open_interval = ("trainer.val_check_interval=null", "trainer.max_steps=20")
    train(*open_interval, name="run")
    run_dir = train(*open_interval[:1], "trainer.max_steps=40", "resume=auto", name="run")
    assert summary(run_dir)["steps"] == 40
    with open(run_dir / "metrics.csv", newline="") as file:
        validated = [int(row["step"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert validated == sorted({*range(3, 40, 3), 20, 40})  # 40 steps by themselves: every 4


def test_a_run_that_goes_on_is_as_long_as_it_was_to_be(train):
    with pytest.raises(Interrupted):
        train(*stopped_at(3), name="run")
    run_dir = train("trainer.max_steps=null", "resume=auto", name="run")
    assert summary(run_dir)["steps"] == 20


def test_a_text_that_the_line_leaves_out_is_the_one_it_was(train, text_file):
    directory = text_file.with_name("a ${b}")
    directory.mkdir()
    (directory / "read.md").write_text(text_file.read_text())
    (directory / "other.txt").write_text("another text")
    place = (quote(f"data.path={directory}"), quote("data.pattern=*.md"))
    train("data=text", *place, *SMALL, only=True)
    more = ("data=text", *SMALL, "trainer.max_steps=25", "resume=auto")
    assert summary(train(*more, only=True))["steps"] == 25


def test_a_text_with_a_source_comes_from_there_if_no_copy_is_named(train, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(Path(litchar.text.__file__).with_name("ml.txt").read_bytes())
    short = (*SMALL, "data.train_sample=0", "data.max_val_characters=500")
    train("data=ml", f"data.path={copy}", *short, only=True)
    copy.unlink()
    run_dir = train("data=ml", *short, "trainer.max_steps=25", "resume=auto", only=True)
    assert summary(run_dir)["steps"] == 25


@pytest.mark.parametrize(
    ("now", "length"),
    [
        ([], (-1, "00:01:00:00")),
        (["trainer.max_steps=30"], (30, None)),
        (["trainer.max_time=00:00:30:00"], (None, "00:00:30:00")),
        (["trainer.max_epochs=2"], (None, None)),
    ],
)
def test_time_alone_ends_a_run_that_goes_on_unless_another_length_is_given(compose, now, length):
    config = compose(*now)
    then = {"trainer": {"max_steps": -1, "max_time": "00:01:00:00"}}
    resolve_as_before(config, then, Path("last.ckpt"))
    assert (config.trainer.max_steps, config.trainer.max_time) == length


def test_batches_of_another_size_may_validate_a_run_that_goes_on(train, compose):
    first = train("data.val_batch_size=5", "trainer.max_steps=10", name="run")
    config = compose()
    last = first / "checkpoints/last.ckpt"
    resolve_as_before(config, load(last)["litchar"]["config"], last)
    assert config.data.val_batch_size == 5
    run_dir = train("data.val_batch_size=7", "resume=auto", name="run")
    assert summary(run_dir)["steps"] == 20


def test_a_run_killed_before_its_first_checkpoint_leaves_no_points_behind(train):
    whole = train(name="whole")
    stopped = whole.with_name("stopped")
    with pytest.raises(Interrupted):
        train(*stopped_at(8), name="stopped")
    shutil.rmtree(stopped / "checkpoints")
    train("resume=auto", name="stopped")
    assert_same_run(whole, stopped)


def test_a_directory_without_checkpoints_is_not_resumed(train, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint in this directory"):
        train(f"resume={tmp_path / 'empty'}")


def test_a_checkpoint_goes_on_only_after_whole_steps(train):
    with pytest.raises(UserError, match="must be a multiple"):
        train("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=5")


def test_a_checkpoint_can_be_named(train):
    run_dir = train(name="first")
    again = train(f"resume={run_dir}/checkpoints/best.ckpt", "trainer.max_steps=30", name="again")
    assert summary(again)["steps"] == 30


def test_resume_auto_begins_where_there_is_nothing(train):
    assert summary(train("resume=auto"))["status"] == "completed"


def test_another_setting_or_text_is_refused_and_named(train, text_file):
    run_dir = train(name="run")
    before = sorted((path, path.stat().st_mtime_ns) for path in (text_file.parent).rglob("*.ckpt"))
    with pytest.raises(UserError, match=r"optimizer.lr: 0.004 then, 0.1 now\); use the same, or"):
        train("resume=auto", "optimizer.lr=0.1", name="run")
    (run_dir / ".hydra").mkdir()
    (run_dir / ".hydra/overrides.yaml").write_text("- data=text\n- data.path=a b\n- run_dir=x\n")
    with pytest.raises(UserError, match=r"use the same \(data=text 'data.path=a b'\), or"):
        train("resume=auto", "optimizer.lr=0.1", name="run")
    sources = {"config_sources": [{"provider": "command-line", "path": "/of/mine"}]}
    recorded = json.dumps({"hydra": {"runtime": sources}})
    (run_dir / ".hydra/hydra.yaml").write_text(recorded)
    with pytest.raises(UserError, match=r"use the same \(--config-dir /of/mine data=text 'data"):
        train("resume=auto", "optimizer.lr=0.1", name="run")
    text_file.write_text(text_file.read_text().replace("and", "dan"))
    with pytest.raises(UserError, match="the text has changed"):
        train("resume=auto", name="run")
    assert before == sorted(
        (path, path.stat().st_mtime_ns) for path in (text_file.parent).rglob("*.ckpt")
    )


@pytest.mark.parametrize(
    "damage",
    ["flipped", *(pytest.param(d, marks=pytest.mark.slow) for d in ("truncated", "empty"))],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(train, capsys, damage):
    whole = train(*SETTING, name="whole")
    with pytest.raises(Interrupted):
        train(*SETTING, *stopped_at(17), name="run")
    last = whole.with_name("run") / "checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    last.write_bytes({"truncated": content[:-1000], "empty": b"", "flipped": content}[damage])
    capsys.readouterr()
    run_dir = train(*SETTING, "resume=auto", name="run")
    output = capsys.readouterr().out
    assert "last.ckpt: not a complete checkpoint" in output
    assert "Resuming from previous.ckpt, step 10" in output
    assert_same_run(whole, run_dir)


def test_a_checkpoint_of_lightnings_own_callback_is_one_of_the_run(train):
    mine = "+callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint"
    often = ("+callbacks.mine.every_n_train_steps=5", "+callbacks.mine.save_top_k=-1")
    weights = ("+callbacks.mine.save_last=true", "+callbacks.mine.save_weights_only=true")
    with pytest.raises(UserError, match=r"last\.ckpt is the run's own checkpoint"):
        train(mine, "+callbacks.mine.filename=last")
    train(mine, *weights, name="last")
    train(mine, *weights, "trainer.max_steps=25", "resume=auto", name="last")
    run_dir = train(mine, *often)
    older = run_dir / "checkpoints/epoch=0-step=15.ckpt"
    assert Checkpoint.load(older).step == 15
    assert run_of(older) == run_dir
    train(mine, *often, f"resume='{older}'")
    assert summary(run_dir)["steps"] == 20


def test_when_every_checkpoint_is_damaged_nothing_is_overwritten(train):
    run_dir = train(name="run")
    for path in (run_dir / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        train("resume=auto", name="run")
    assert {path.read_bytes() for path in (run_dir / "checkpoints").iterdir()} == {b"damaged"}


def test_a_refused_resume_changes_nothing(train):
    run_dir = train(*SETTING)
    rows = (run_dir / "metrics.csv").read_text()
    before = f"resume={run_dir}/checkpoints/previous.ckpt"
    with pytest.raises(Exception, match="dpd"):
        train(*SETTING, before, "trainer.strategy=dpd")
    assert (run_dir / "metrics.csv").read_text() == rows


def test_a_full_disk_costs_no_step_and_no_checkpoint(train, capsys):
    whole = train(*SETTING, name="whole")
    full = (
        "+callbacks.full._target_=conftest.FullDisk",
        "+callbacks.full.first=12",
        "+callbacks.full.last=22",
        "+callbacks.full.most_bytes=50000",
    )
    capsys.readouterr()
    run_dir = train(*SETTING, *full, name="full")
    assert "the checkpoint was not saved (File too large)" in capsys.readouterr().out
    assert_same_run(whole, run_dir)
    assert load(run_dir / "checkpoints/previous.ckpt")["global_step"] == 10


def test_a_full_disk_costs_a_callback_no_checkpoint_that_it_had(train, tmp_path, capsys):
    full = (
        "+callbacks.full._target_=conftest.FullDisk",
        "+callbacks.full.first=8",
        "+callbacks.full.last=15",
        "+callbacks.full.most_bytes=20000",
    )
    mine = (
        "+callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint",
        "+callbacks.mine.every_n_train_steps=3",
        "+callbacks.mine.save_top_k=1",
        f"+callbacks.mine.dirpath={tmp_path}/mine",
    )
    capsys.readouterr()
    train(*mine, *full)
    assert "a callback's checkpoint was not saved ([Errno 27] File" in capsys.readouterr().out
    kept = [path.name for path in (tmp_path / "mine").iterdir()]
    assert sorted(kept) == ["epoch=0-step=18.ckpt", "epoch=0-step=6.ckpt"]


def test_the_last_checkpoint_of_a_callback_that_is_not_saved_is_told_too(
    train, monkeypatch, capsys
):
    def full(checkpoint, path):
        if path.name.startswith("epoch"):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(checkpoint, path)

    monkeypatch.setattr("litchar.training.checkpointing.save", full)
    mine = "+callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint"
    train(mine, "+callbacks.mine.save_on_train_epoch_end=true")
    assert "a callback's checkpoint was not saved ([Errno 28]" in capsys.readouterr().out


def test_weights_alone_are_not_gone_on_with(train):
    mine = "{_target_:lightning.pytorch.callbacks.ModelCheckpoint,save_weights_only:true}"
    (kept,) = train(f"+callbacks.mine={mine}").glob("checkpoints/epoch*")
    with pytest.raises(UserError, match=r"resume: .*holds only weights; .* with init_from"):
        train(quote(f"resume={kept}"), name="child")


def test_a_signal_at_the_last_step_says_that_it_was_not_saved_and_promises_nothing(train, capsys):
    full = ("first=22", "last=99", "most_bytes=50000")
    with pytest.raises(Interrupted):
        train(
            *stopped_at(25),
            *SETTING,
            "+callbacks.full._target_=conftest.FullDisk",
            *(f"+callbacks.full.{setting}" for setting in full),
        )
    assert "step 25: the checkpoint was not saved (File too large)\n" in capsys.readouterr().out


@pytest.mark.parametrize(("first", "most_bytes"), [(1, 100), (22, 50000)])  # 100: no row either
def test_a_run_whose_end_is_not_saved_fails_and_is_gone_on_with(train, capsys, first, most_bytes):
    whole = train(*SETTING, name="whole")
    full = (
        "+callbacks.full._target_=conftest.FullDisk",
        f"+callbacks.full.first={first}",
        "+callbacks.full.last=99",
        f"+callbacks.full.most_bytes={most_bytes}",
    )
    saved = 0 if first == 1 else 20
    words = rf"File too large.*step {saved}.*run_dir=.*resume=auto"
    with pytest.raises(UserError, match=words) as refusal:
        train(*SETTING, *full, name="full")
    assert is_disk_full(refusal.value.__cause__)  # and no setting's fault
    with pytest.raises(SystemExit):
        cli._exit_on(refusal.value, True, ROOT / "conf", "train")
    shown = capsys.readouterr()
    assert re.search(f"^error: .*{words}", shown.err, re.MULTILINE)
    said = re.findall(r"step (\d+): the checkpoint was not saved", shown.out)
    assert said == (["10", "20"] if first == 1 else [])  # and after 25 none is tried
    run_dir = whole.with_name("full")
    assert summary(run_dir)["status"] == "failed"
    train(*SETTING, "resume=auto", name="full")
    assert_same_run(whole, run_dir)


@pytest.fixture
def small_disk(tmp_path):
    """A run directory on a file system of 1 MB."""
    place = tmp_path / "outputs/runs/small"
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_tmpfs_costs_no_step_and_no_checkpoint(train, small_disk, capsys):
    whole = train(*SETTING, name="whole")
    full = ("+callbacks.full._target_=conftest.FillDisk", "+callbacks.full.first=12")
    capsys.readouterr()
    run_dir = train(*SETTING, *full, "+callbacks.full.last=22", name="small")
    assert "the checkpoint was not saved (No space left on device)" in capsys.readouterr().out
    rows, _, kept, _ = figures(whole)
    assert (rows, kept) == (figures(run_dir)[0], figures(run_dir)[2])
    assert load(run_dir / "checkpoints/last.ckpt")["global_step"] == 25
    assert load(run_dir / "checkpoints/previous.ckpt")["global_step"] == 10


def test_a_deleted_run_directory_is_made_again(train):
    run_dir = train(
        "+callbacks.delete._target_=conftest.DeleteAt", "+callbacks.delete.step=15", name="run"
    )
    assert summary(run_dir)["status"] == "completed"
    assert Checkpoint.load(run_dir / "checkpoints/last.ckpt").step == 20


def test_a_loss_that_a_validation_finds_diverged_has_a_gradient_too(train, tmp_path):
    words = r"the loss is (nan|inf) at step \d \(the norm of the gradient is (nan|inf) at step 10"
    with pytest.raises(DivergedError, match=words):
        train("trainer.log_every_n_steps=100", "optimizer=adamw", "optimizer.lr=1e9")
    assert not (tmp_path / "outputs/runs/run/samples.txt").exists()  # nor is it validated at all


def test_a_second_signal_within_a_step_says_that_the_step_was_not_saved(train, capsys):
    stops = [f"+callbacks.{name}._target_=conftest.SignalIn" for name in ("first", "second")]
    at = [f"+callbacks.{name}.batch=15" for name in ("first", "second")]
    with pytest.raises(Interrupted):
        train(*stops, *at, name="stopped")
    said = capsys.readouterr().out
    assert re.search(r"Interrupted at step 14; an earlier step is saved in .*stopped\n", said)


@pytest.mark.parametrize(
    ("every", "lr", "words"),
    [(3, "1e38", r"loss is .* at step 2 .* at step 3"), (1, "1e39", r"a weight is .* at step 1")],
)
def test_no_callback_saves_what_is_not_finite(train, tmp_path, every, lr, words):
    mine = f"{{_target_:lightning.pytorch.callbacks.ModelCheckpoint,every_n_train_steps:{every}}}"
    far = ("optimizer=adamw", f"optimizer.lr={lr}", "scheduler.warmup_steps=0")
    with pytest.raises(DivergedError, match=words):
        train(f"+callbacks.mine={mine}", *far, "trainer.gradient_clip_val=null", name="run")
    assert not list(tmp_path.glob("outputs/runs/run/checkpoints/*"))


def test_the_losses_that_a_callback_saves_are_means_over_the_ranks():
    metrics = Metrics(Path(), 1, None)
    metrics._losses = [torch.tensor(1.0)]
    mean = SimpleNamespace(reduce=lambda own, reduce_op: (own + 3.0) / 2)
    saved = {"callbacks": {}}
    trainer = SimpleNamespace(strategy=mean, log_every_n_steps=5, lightning_module=torch.nn.ReLU())
    metrics.on_save_checkpoint(trainer, None, saved)
    assert saved["callbacks"][metrics.state_key]["batch_losses"] == [2.0]


def test_the_step_at_which_a_run_diverged_is_counted_as_steps_were_then(train):
    scheduled = (*SCHEDULED[:1], "+callbacks.more.scheduling={0:1,1:4}")
    spoiled = ("+callbacks.spoils._target_=conftest.Spoils", "+callbacks.spoils.step=11")
    with pytest.raises(DivergedError, match=r"is nan at step 11 \(.*gradient_clip_val=1.0"):
        train(
            *scheduled,
            *spoiled,
            "trainer.limit_train_batches=8",
            "trainer.val_check_interval=24",
            "trainer.log_every_n_steps=100",
            "trainer.gradient_clip_val=0",
        )


def test_a_diverged_run_stops_and_names_the_step_and_the_gradient(train):
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step [23] .*gradient"):
        train(
            "optimizer.lr=1e30",
            "scheduler=constant",
            "trainer.gradient_clip_val=null",
            "trainer.log_every_n_steps=1",
            name="run",
        )


def test_weights_that_are_not_finite_are_not_saved(train, tmp_path):
    with pytest.raises(DivergedError):
        train(
            "optimizer.lr=1e38",
            "scheduler=constant",
            "trainer.max_steps=200",
            "scheduler.warmup_steps=0",
            "trainer.val_check_interval=1",
            name="run",
        )
    run_dir = tmp_path / "outputs/runs/run"
    assert summary(run_dir)["status"] == "diverged"
    for path in (run_dir / "checkpoints").glob("*.ckpt"):
        assert all(weight.isfinite().all() for weight in Checkpoint.load(path).weights.values())


def test_two_processes_cannot_train_in_one_directory(train, tmp_path):
    (tmp_path / "outputs/runs/run").mkdir(parents=True)
    with FileLock(tmp_path / "outputs/runs/run/.lock"), pytest.raises(UserError, match="another"):
        train(name="run")


def test_who_asks_whether_a_directory_is_trained_in_keeps_nobody_out(train):
    run_dir, asking = train(), True
    busy = []

    def ask():
        while asking:
            busy.append(is_busy(run_dir))

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        while asker.is_alive() and not busy:  # until it has asked once, when nobody trains
            time.sleep(0.001)
        for _ in range(200):
            with sole_owner(run_dir):
                pass
    finally:
        asking = False
        asker.join()
    assert not all(busy)


# Which run a command line means


@pytest.fixture
def finished_like(train, tmp_path):
    """Make the directory of a run with these arguments and this status."""

    def make(name, arguments, status):
        from omegaconf import OmegaConf

        run_dir = tmp_path / "outputs/runs" / name
        (run_dir / ".hydra").mkdir(parents=True)
        OmegaConf.save(composed("train", *arguments), run_dir / ".hydra/config.yaml")
        (run_dir / "summary.json").write_text(f'{{"status": "{status}"}}')
        return run_dir

    return make


def test_auto_means_the_newest_unfinished_run_of_the_same_configuration(finished_like):
    same = ["model.n_layer=3"]
    finished_like("2026-01-01_a", same, "interrupted")
    wanted = finished_like("2026-01-02_b", [*same, "trainer.max_steps=9"], "running")
    finished_like("2026-01-03_c", ["model.n_layer=4"], "interrupted")
    finished_like("2026-01-04_d", same, "completed")
    finished_like("2026-01-05_e", same, "diverged")
    busy = finished_like("2026-01-06_f", same, "running")
    with FileLock(busy / ".lock"):
        found = redirect([*same, "resume=auto"], CONF, "train")
    assert found[-2:] == [f'run_dir="{wanted}"', "hydra.output_subdir=.hydra/resumed-1"]
    shutil.rmtree(busy)
    found = redirect([*same, "resume=auto"], CONF, "train")
    assert found[-2:] == [f'run_dir="{wanted}"', "hydra.output_subdir=.hydra/resumed-1"]
    alone = ["model.n_layer=5", "resume=auto"]
    assert redirect(alone, CONF, "train") == alone
    assert redirect(same, CONF, "train") == same


@pytest.mark.parametrize(
    ("its", "taken", "wanted", "found"),
    [
        ("null", 7, 8, True),
        ("null", 7, 6, False),
        ("9", 0, 9, True),
        ("9", 0, 10, True),
        ("9", 0, 8, False),
        ("9", 7, "null", True),
        ("9", 7, -1, True),
    ],
)
def test_auto_cuts_no_longer_run_short(finished_like, its, taken, wanted, found):
    run_dir = finished_like("2026-01-01_a", [f"trainer.max_steps={its}"], "interrupted")
    (run_dir / "summary.json").write_text(f'{{"status": "interrupted", "steps": {taken}}}')
    line = [f"trainer.max_steps={wanted}", "resume=auto"]
    assert (redirect(line, CONF, "train") != line) == found


def test_a_run_is_not_resumed_to_an_end_that_it_has_passed(train):
    run_dir = train("trainer.max_steps=9", name="run")
    kept = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"last\.ckpt has taken 9 steps, more than the 8 asked for"):
        train("trainer.max_steps=8", "resume=auto", name="run")
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == kept
    assert summary(train("trainer.max_steps=9", "resume=auto", name="run"))["steps"] == 9


@pytest.mark.parametrize("content", ["", "{", "- a", "a", "\0", "data:\n- 1\n", "data"])
def test_auto_passes_over_a_damaged_run(finished_like, content):
    wanted = finished_like("2026-01-01_a", [], "interrupted")
    damaged = finished_like("2026-01-02_b", [], "interrupted")
    (damaged / ".hydra/config.yaml").write_text(content)
    assert f'run_dir="{wanted}"' in redirect(["resume=auto"], CONF, "train")


def test_auto_begins_anew_for_another_text_and_takes_the_newest_whatever_its_name(finished_like):
    mine = ["data.path=/a.txt"]
    older = finished_like("zzz", mine, "interrupted")
    newer = finished_like("2026-01-02_b", mine, "interrupted")
    os.utime(older / "summary.json", (1, 1))
    assert f'run_dir="{newer}"' in redirect([*mine, "resume=auto"], CONF, "train")
    other = ["data.path=/b.txt", "resume=auto"]
    assert redirect(other, CONF, "train") == other


def test_a_checkpoint_away_from_its_run_goes_on_elsewhere(tmp_path):
    checkpoint = tmp_path / "downloaded.ckpt"
    checkpoint.touch()
    line = [f"resume='{checkpoint}'"]
    assert redirect(line, CONF, "train") == line


def test_a_path_means_the_run_of_that_checkpoint(finished_like):
    run_dir = finished_like("2026-01-01_a", [], "interrupted")
    (run_dir / "checkpoints").mkdir()
    checkpoint = run_dir / "checkpoints/last.ckpt"
    checkpoint.touch()
    for name in (run_dir, checkpoint):
        found = redirect([f"resume='{name}'"], CONF, "train")
        assert f'run_dir="{run_dir}"' in found
    with pytest.raises(UserError, match="no such checkpoint"):
        redirect(["resume=/nowhere.ckpt"], CONF, "train")


def test_a_directory_that_holds_no_checkpoint_is_left_as_it_is(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="there is no checkpoint in this directory"):
        redirect([f"resume='{tmp_path}'"], CONF, "train")  # before Hydra writes there


def test_a_directory_that_holds_a_run_is_not_overwritten(finished_like):
    run_dir = finished_like("2026-01-01_a", [], "completed")
    with pytest.raises(UserError, match="already holds a run"):
        redirect([f"run_dir='{run_dir}'"], CONF, "train")
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints/last.ckpt").touch()
    other = finished_like("2026-01-02_b", [], "completed")
    line = [f"resume='{run_dir}'", f"run_dir='{other}'"]
    with pytest.raises(UserError, match="already holds a run"):
        redirect(line, CONF, "train")
    same = [f"resume='{run_dir}'", f"run_dir='{other}/../{run_dir.name}'"]
    assert redirect(same, CONF, "train")[:2] == same


@pytest.mark.parametrize("way", ["++run_dir", "--config-dir", "experiment"])
def test_however_it_is_named_a_run_is_not_overwritten_and_gone_on_with(
    finished_like, tmp_path, way
):
    run_dir = finished_like("2026-01-01_a", [], "interrupted")
    mine = tmp_path / "mine/experiment/mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(f"# @package _global_\nrun_dir: {run_dir}\n")
    line = {
        "++run_dir": [f"++run_dir='{run_dir}'"],
        "--config-dir": [f"run_dir='{run_dir}'", "--config-dir", str(tmp_path)],
        "experiment": ["experiment=mine", f"--config-dir={tmp_path}/mine"],
    }[way]
    with pytest.raises(UserError, match="already holds a run"):
        redirect(line, CONF, "train")
    found = redirect(["++resume=auto", *line], CONF, "train")
    subdir = "hydra.output_subdir=.hydra/resumed-1"
    assert found == ["++resume=auto", line[0], subdir, *line[1:]]
    assert get_args_parser().parse_args(found).overrides == ["++resume=auto", line[0], subdir]


@pytest.mark.parametrize("part", [".hydra", "checkpoints", "summary.json"])
def test_a_directory_with_a_part_of_a_run_is_left_as_it_is(tmp_path, part):
    line = [f"run_dir='{tmp_path / 'run'}'"]
    assert redirect(line, CONF, "train") == line
    (tmp_path / "run" / part).mkdir(parents=True)
    with pytest.raises(UserError, match="already holds a run"):
        redirect(line, CONF, "train")


def test_a_refused_resumption_leaves_what_was_recorded_before(tmp_path):
    for number in (2, 10, 9):  # the latest record is not the one that was touched last
        (tmp_path / f".hydra/resumed-{number}").mkdir(parents=True)
    for name in ("summary.json", ".lock"):
        (tmp_path / name).touch()
    remove_traces(tmp_path)
    found = sorted(path.name for path in tmp_path.glob(".hydra/*"))
    assert found == ["resumed-2", "resumed-9"]
    (tmp_path / ".lock").unlink()  # fails if it is gone: another process may hold it
    shutil.rmtree(tmp_path / ".hydra")
    (tmp_path / ".hydra").mkdir()  # of the run itself
    remove_traces(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hydra", "summary.json"]


def test_only_what_hydra_wrote_is_removed(tmp_path, monkeypatch):
    def left(*names):
        run_dir = tmp_path / "run"
        shutil.rmtree(run_dir, ignore_errors=True)
        (run_dir / ".hydra").mkdir(parents=True)
        (run_dir / ".lock").touch()
        for name in names:
            (run_dir / name).write_text("mine")
        remove_traces(run_dir)
        return run_dir.exists() and sorted(path.name for path in run_dir.iterdir())

    assert left() is False
    assert left("notes.txt") == ["notes.txt"]
    assert left("train.log") == ["train.log"]  # why a rank failed, say
    (tmp_path / "own/.hydra").mkdir(parents=True)
    (tmp_path / "link").symlink_to("own")
    remove_traces(tmp_path / "link")
    assert list((tmp_path / "link").iterdir()) == []
    monkeypatch.chdir(tmp_path / "own")
    (tmp_path / "own/.hydra").mkdir()
    remove_traces(tmp_path / "own")
    assert list(Path.cwd().iterdir()) == []
    remove_traces(tmp_path / "gone")


def test_a_signal_as_training_is_about_to_begin_is_recorded(train, tmp_path, monkeypatch):
    def interrupted(*_):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("litchar.training.run.environment.record", interrupted)
    with pytest.raises(Interrupted):
        train()
    assert summary(tmp_path / "outputs/runs/run")["status"] == "interrupted"


@pytest.mark.parametrize(
    "option", ["--help", "-h", "--cfg=job", "-cjob", "--multirun", "-m", "--info=all"]
)
def test_what_shows_a_run_or_sweeps_may_name_a_directory_that_holds_one(finished_like, option):
    run_dir = finished_like("2026-01-01_a", [], "completed")
    line = [option, f"run_dir='{run_dir}'"]
    assert redirect(line, CONF, "train") == line
    line = ["-c", "job", f"run_dir='{run_dir}'"]  # and not --config-dir, which is -cd
    assert redirect(line, CONF, "train") == line


def test_a_directory_where_another_process_trains_is_left_as_it_is(finished_like):
    run_dir = finished_like("2026-01-01_a", [], "running")
    (run_dir / "summary.json").unlink()  # which is written when torch is there
    with pytest.raises(UserError, match="already holds a run"):
        redirect([f"run_dir='{run_dir}'"], CONF, "train")
    with FileLock(run_dir / ".lock"), pytest.raises(UserError, match="another process is training"):
        redirect([f"run_dir='{run_dir}'", "resume=auto"], CONF, "train")


# Killed at random moments, in processes of their own


def storm(kills, train, text_file, steps, seconds):
    """Kill a run `kills` times, resume it each time, and compare it with an undisturbed one."""
    settings = (
        f"data.path={text_file}",
        "data.block_size=16",
        "data.batch_size=8",
        "data.train_sample=512",
        "model.n_layer=1",
        "model.n_head=2",
        "model.n_embd=16",
        "model.dropout=0.1",
        "trainer.accelerator=cpu",
        f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={steps // 10}",
        "trainer.log_every_n_steps=7",
        "checkpoint.every_seconds=0.05",
    )
    whole = train(*settings, name="whole", only=True, dashboard=True)  # as from the command line
    run_dir = whole.parent / "storm"
    command = [sys.executable, str(ROOT / "scripts/train.py"), *settings]
    draw = random.Random(0)
    killed = 0
    while killed < kills:
        process = subprocess.Popen(
            [*command, f"run_dir={run_dir}", "resume=auto"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        last = run_dir / "checkpoints/last.ckpt"
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns > before):
            time.sleep(0.01)  # until it trains
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        output, _ = process.communicate()
        if process.returncode == 0:  # it was done before it was killed: from the beginning
            shutil.rmtree(run_dir)
            continue
        assert process.returncode == -signal.SIGKILL, f"after {killed} kills: {output}"
        assert "not a complete checkpoint" not in output
        killed += 1
    assert train(*settings, "resume=auto", name="storm", only=True, dashboard=True) == run_dir
    assert_same_run(whole, run_dir)


def test_a_run_killed_at_a_random_moment_goes_on_exactly(train, text_file):
    storm(1, train, text_file, steps=100, seconds=0.05)


@pytest.mark.slow
def test_a_run_killed_fifty_times_goes_on_exactly(train, text_file):
    storm(50, train, text_file, steps=40_000, seconds=1.0)
