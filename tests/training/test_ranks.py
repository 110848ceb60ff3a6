"""A run on several devices equals the run on one: the same batches, losses, files and exits.

The ranks are CPU processes that communicate through gloo. Each takes seconds to import, so tests
share runs where they can.
"""

import contextlib
import csv
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning.fabric.accelerators import MPSAccelerator
from omegaconf import OmegaConf
from torch.distributed import HashStore
from torch.distributed.fsdp import FSDPModule

from conftest import ROOT, SMALL, scalars, summary, wait_until
from litchar import signals
from litchar.checkpoints import Checkpoint, load
from litchar.errors import DivergedError, Interrupted, RankError, UserError
from litchar.launched import Place, launched
from litchar.training import ranks
from litchar.training.devices import device_of, settle_devices

SETTING = ("scheduler=constant", "trainer.max_steps=20", "trainer.val_check_interval=10")
TWO = ("trainer=ddp", "trainer.devices=2")
NOISE = {"abs": 2e-5, "rel": 2e-5}  # of float32: in nats, and of activations larger than 1


def rows(run_dir: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv, without speeds."""
    with open(run_dir / "metrics.csv", newline="") as file:
        return [
            {key: float(value) for key, value in row.items() if value and "speed" not in key}
            for row in csv.DictReader(file)
        ]


def assert_same_curve(run_dir: Path, other: Path, steps: int = 10**9) -> None:
    a, b = ([row for row in rows(run) if row["step"] <= steps] for run in (run_dir, other))
    assert [row.keys() for row in a] == [row.keys() for row in b]
    for row, expected in zip(a, b, strict=True):
        assert row == pytest.approx(expected, **NOISE)


@pytest.mark.parametrize("trainer", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_train_as_one_device_does_and_one_device_goes_on(train, trainer):
    train = functools.partial(train, dashboard=True)
    one = train(*SETTING, name="one")
    two = train(*SETTING, f"trainer={trainer}", "trainer.devices=2", name="two")
    assert_same_curve(two, one)
    assert (two / "samples.txt").read_text() == (one / "samples.txt").read_text()
    a, b = (load(run / "checkpoints/last.ckpt") for run in (one, two))
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=1e-4, atol=1e-5)
    (a, b) = (checkpoint["optimizer_states"][0] for checkpoint in (a, b))
    assert [group["params"] for group in a["param_groups"]] == [
        group["params"] for group in b["param_groups"]
    ]
    torch.testing.assert_close(a["state"], b["state"], rtol=1e-3, atol=1e-5)
    for run in (one, two):
        train(*SETTING, "trainer.max_steps=30", "resume=auto", name=run.name)
    assert [row["step"] for row in rows(two)][-2:] == [25, 30]
    assert_same_curve(two, one)


def test_a_sharded_model_whose_head_has_a_bias_trains_without_a_warning(train, recwarn):
    train("trainer=fsdp", "model.head_bias=true", "trainer.max_steps=2")
    assert not [warning for warning in recwarn if "FSDP" in str(warning.message)]


@pytest.mark.slow
def test_a_sweeps_ranks_get_their_job_and_nothing_else(tmp_path, text_file):
    """Two jobs of two ranks, from the command line, in a worker."""
    result = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/train.py",
            "-m",
            f"data.path={text_file}",
            *SMALL,
            *SETTING,
            "trainer=ddp,fsdp",
            # whose keys are numbers on every rank
            "+callbacks.as_before._target_=lightning.pytorch.callbacks."
            "GradientAccumulationScheduler",
            "+callbacks.as_before.scheduling={0:1}",
            "trainer.devices=2",
            "launcher=parallel",
            "hydra.launcher.n_jobs=1",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    jobs = sorted(path.parent for path in tmp_path.glob("outputs/**/summary.json"))
    directories = [path.parent for path in tmp_path.glob("outputs/**/.hydra")]
    assert len(jobs) == 2
    assert sorted(directories) == jobs  # no rank composed a run of its own
    logs = list(tmp_path.glob("outputs/**/train.log"))
    assert not any(log.read_text() for log in logs)  # nobody had a warning
    assert not list(tmp_path.glob("outputs/runs/*"))
    assert result.stdout.count("completed: ") == 2  # one console: a line for each job
    for job in jobs:
        assert (job / "output.txt").read_text().count("step     20") == 1
        figures = summary(job)
        assert figures["status"] == "completed"
        assert figures["characters_seen"] == 20 * 8 * 16
        assert [step for step, _ in scalars(job / "tensorboard")["val/loss"]] == [10, 20]


# How a run ends


def on_rank(rank: int, step: int, signum: int) -> tuple[str, ...]:
    """Return overrides that make `rank` send itself a signal in the middle of `step`."""
    return (
        "+callbacks.stop._target_=conftest.SignalAt",
        f"+callbacks.stop.step={step}",
        f"+callbacks.stop.signum={int(signum)}",
        f"+callbacks.stop.rank={rank}",
    )


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])  # a launcher may tell any
def test_a_signal_to_one_rank_ends_all_with_one_checkpoint(train, rank):
    dropout = "model.dropout=0.2"
    whole = train(*SETTING, dropout, name="whole")
    with pytest.raises(Interrupted) as stop:
        train(*SETTING, *TWO, dropout, *on_rank(rank, 7, signal.SIGTERM), name="stopped")
    assert stop.value.code == 128 + signal.SIGTERM
    stopped = whole.with_name("stopped")
    assert summary(stopped)["status"] == "interrupted"
    # A signal received within a step is known to all ranks by the end of the next.
    assert Checkpoint.load(stopped / "checkpoints/last.ckpt").step == 8
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not torch.distributed.is_initialized()
    assert not {"LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "RANK"} & os.environ.keys()
    # Dropout differs between ranks, so each window of the batch has its own mask.
    assert rows(stopped)[1]["train/loss"] != pytest.approx(rows(whole)[1]["train/loss"], abs=1e-6)
    train(*SETTING, dropout, "resume=auto", name="stopped")
    assert summary(stopped)["status"] == "completed"
    assert summary(stopped)["characters_seen"] == summary(whole)["characters_seen"]


def test_a_killed_rank_ends_the_run(train, tmp_path):
    with pytest.raises(RankError, match="rank 1 was killed by signal 9"):
        train(*SETTING, *TWO, *on_rank(1, 13, signal.SIGKILL), name="run")
    figures = summary(tmp_path / "outputs/runs/run")
    assert figures["status"] == "failed"
    assert figures["error"] == "rank 1 was killed by signal 9, which ended the run"
    assert Checkpoint.load(tmp_path / "outputs/runs/run/checkpoints/last.ckpt").step == 10


@pytest.mark.slow
def test_a_failed_rank_says_why(train, tmp_path):
    fail = ("+callbacks.fail._target_=conftest.FailAt", "+callbacks.fail.step=13")
    with pytest.raises(RankError, match="rank 1: LookupError: lost the thread"):
        train(*SETTING, *TWO, *fail, "+callbacks.fail.rank=1", name="one")
    assert "Traceback" in (tmp_path / "outputs/runs/one/train.log").read_text()
    with pytest.raises(LookupError, match="lost the thread"):
        train(*SETTING, *TWO, *fail, "+callbacks.fail.rank=0", name="zero")
    assert summary(tmp_path / "outputs/runs/zero")["error"] == "lost the thread"


@pytest.mark.linux
def test_a_second_signal_ends_a_run_that_waits_for_a_rank_for_ever(train, tmp_path, monkeypatch):
    """Rank 0 is in a collective, where Python handles no signal; rank 1 never joins it."""
    monkeypatch.setattr(ranks, "NOTICE_SECONDS", 0.1)
    over = threading.Event()
    before = {*children(os.getpid())}  # of other tests, such as a compiler's

    def insist() -> None:
        while not over.wait(0.1) and not any(map(is_stopped, children(os.getpid()))):
            pass
        while not over.wait(0.7):
            os.kill(os.getpid(), signal.SIGINT)

    insisting = threading.Thread(target=insist)
    insisting.start()
    try:
        with pytest.raises(Interrupted) as stop:
            train(*SETTING, *TWO, *on_rank(1, 13, signal.SIGSTOP), name="run")
    finally:
        over.set()
        insisting.join()
    assert stop.value.code == 128 + signal.SIGINT
    assert {*children(os.getpid())} <= before
    assert summary(tmp_path / "outputs/runs/run")["status"] == "interrupted"
    assert Checkpoint.load(tmp_path / "outputs/runs/run/checkpoints/last.ckpt").step == 10


@pytest.mark.linux
def test_a_second_signal_to_rank_0_keeps_it_waiting_for_no_rank(train, tmp_path, monkeypatch):
    """Rank 1, which got none, waits in a collective that rank 0 never joins."""
    monkeypatch.setattr(ranks, "NOTICE_SECONDS", 0.1)
    again = (line.replace(".stop.", ".again.") for line in on_rank(0, 13, signal.SIGINT))
    before = {*children(os.getpid())}
    began = time.monotonic()
    with pytest.raises(Interrupted):
        train(*SETTING, *TWO, *on_rank(0, 13, signal.SIGINT), *again, name="run")
    assert time.monotonic() - began < ranks.END_SECONDS
    assert {*children(os.getpid())} <= before
    assert summary(tmp_path / "outputs/runs/run")["status"] == "interrupted"
    assert Checkpoint.load(tmp_path / "outputs/runs/run/checkpoints/last.ckpt").step == 10


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("heeded", [False, True])
def test_a_signal_that_goes_unheeded_ends_the_run_and_one_that_is_heeded_only_if_repeated(
    monkeypatch, tmp_path, times, heeded
):
    exit_, follower = Mock(), Mock(poll=Mock(return_value=None))
    follower.kill = lambda: follower.poll.configure_mock(return_value=-9)
    monkeypatch.setattr(ranks.os, "_exit", exit_)
    monkeypatch.setattr(ranks, "HEED_SECONDS", 0)
    monkeypatch.setattr(ranks, "NOTICE_SECONDS", 0)
    monkeypatch.setattr(signals, "received", lambda: signal.SIGTERM * heeded)
    leader = ranks.Leader(Place(world_size=2), tmp_path)
    leader._store, leader._processes = HashStore(), [follower]
    leader._over = Mock(wait=Mock(side_effect=[*[False] * 5, True]))
    came = iter([[signal.SIGTERM]] * times)
    leader._watch(lambda: next(came, []))
    if heeded and times == 1:  # it saves, however long that takes
        exit_.assert_not_called()
    else:  # in NCCL; with Gloo, the death of the others ends the collective
        exit_.assert_called_once_with(128 + signal.SIGTERM)
        assert summary(tmp_path)["status"] == "interrupted"


def left_out(rank: int) -> tuple[str, ...]:
    """Return overrides that keep the gradient from one layer of `rank` from step 2 on."""
    return (
        "+callbacks.out._target_=conftest.LeavesOut",
        "+callbacks.out.step=2",
        f"+callbacks.out.rank={rank}",
    )


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_layer_that_one_rank_does_not_use_is_refused_by_ddp(train, tmp_path, rank):
    """Else that rank goes on, and all wait in different collectives for ever."""
    words = r"the loss of rank \d, step 2, does not use .*blocks\.0\.feed_forward.*find_unused"
    with pytest.raises(UserError, match=words):
        train(*SETTING, *TWO, *left_out(rank), name="run")
    figures = summary(tmp_path / "outputs/runs/run")
    assert figures["status"] == "failed"
    assert "\n" not in figures["error"]


@pytest.mark.slow
def test_a_layer_that_one_rank_does_not_use_is_trained_where_it_can_be(train):
    found = train(
        *SETTING, *TWO, "trainer.strategy=ddp_find_unused_parameters_true", *left_out(1), name="ddp"
    )
    if hasattr(FSDPModule, "set_reduce_scatter_unused_params"):  # not in torch 2.9
        sharded = train(*SETTING, "trainer=fsdp", "trainer.devices=2", *left_out(1), name="fsdp")
        assert_same_curve(sharded, found)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_a_full_disk_and_a_diverged_loss_end_alike_on_all_ranks(train, capsys, trainer):
    two = (f"trainer={trainer}", "trainer.devices=2")
    full = (
        "+callbacks.full._target_=conftest.FullDisk",
        "+callbacks.full.first=12",
        "+callbacks.full.last=22",
        "+callbacks.full.most_bytes=50000",
    )
    capsys.readouterr()
    longer = ("trainer.max_steps=25", "checkpoint.every_seconds=0.01")
    run_dir = train(*SETTING, *two, *longer, *full, name="full")
    assert "the checkpoint was not saved (File too large)" in capsys.readouterr().out
    assert summary(run_dir)["status"] == "completed"
    assert load(run_dir / "checkpoints/last.ckpt")["global_step"] == 25
    assert not list(run_dir.rglob(".draft*"))
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step [23] .*gradient"):
        train(
            *SETTING,
            *two,
            "optimizer.lr=1e30",
            "trainer.gradient_clip_val=null",
            "trainer.log_every_n_steps=1",
            name="diverged",
        )
    assert summary(run_dir.with_name("diverged"))["status"] == "diverged"


TINY = ("model.n_layer=2", "model.n_embd=16")


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        (*TINY, "model.n_head=2", "optimizer=muon"),
        (*TINY, "model.n_head=2", "model=gpt2", "trainer.accumulate_grad_batches=2"),
        (*TINY, "model.n_head=2", "model.tie_head=true", "model.init=gpt2"),
        (*TINY, "model=gru", "data.num_workers=1", "data.val_batch_size=3"),
        ("model=bigram", "data.test_fraction=0.1"),
        ("model=bigram", "data.document=line", "data.start_at_document=true", "data.batch_size=64"),
    ],
)
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_every_model_and_optimizer_trains_on_ranks(train, text_file, trainer, setting):
    setting = (
        f"data.path={text_file}",
        "data.block_size=16",
        "data.batch_size=8",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=5",
        *SETTING,
        *setting,
    )
    alone = train(*setting, name="alone", only=True)
    two = (f"trainer={trainer}", "trainer.devices=2")
    ranks = train(*setting, *two, name="ranks", only=True)
    assert_same_curve(ranks, alone)
    if summary(alone)["test_loss"] is not None:
        assert summary(ranks)["test_loss"] == pytest.approx(summary(alone)["test_loss"], **NOISE)


@pytest.mark.slow
def test_sharded_ranks_go_on_from_one_device_and_back(train):
    whole = train(*SETTING, "trainer.max_steps=30", "optimizer=muon", name="whole")
    for steps, devices in ((10, ()), (20, ("trainer=fsdp", "trainer.devices=2")), (30, TWO)):
        train(
            *SETTING,
            "optimizer=muon",
            f"trainer.max_steps={steps}",
            *devices,
            "resume=auto",
            name="parts",
        )
    assert_same_curve(whole.with_name("parts"), whole)


# What devices cannot run


@pytest.mark.parametrize(
    ("overrides", "device", "words"),
    [
        (["trainer.strategy=fsdp"], "cpu", "trainer=fsdp"),
        (["trainer.strategy=ddp_spawn"], "cpu", "use trainer=ddp"),
        (["trainer.devices=0"], "cpu", "trainer.devices=0"),
        (["trainer.num_nodes=true"], "cpu", "trainer.num_nodes=True: must be a whole number"),
        (["trainer.devices=[0,1]"], "cpu", "trainer.devices"),
        (["trainer.devices=2", "trainer.num_nodes=2"], "cpu", "torchrun or srun"),
        (["trainer.val_check_interval='00:00:00:01'", *TWO], "cpu", "ranks have their own clocks"),
        (["trainer.devices=2"], "mps", "an Apple GPU trains alone"),
        (["trainer=ddp"], "mps", "an Apple GPU trains alone"),
        (["trainer.devices=9"], "cuda", "GPUs; ask for fewer"),
        (["trainer.devices=0"], "cuda", "trainer.devices=0: selects no GPU"),
        (["trainer.devices=[]"], "cuda", "selects no GPU; set trainer.accelerator=cpu"),
    ],
)
def test_what_devices_cannot_run_is_refused(compose, overrides, device, words):
    with pytest.raises(UserError, match=re.escape(words)):
        settle_devices(compose(*overrides).trainer, torch.device(device))


@pytest.mark.parametrize(
    ("processor", "disabled", "chosen"),
    [("arm", "0", "mps"), ("arm", "1", "cpu"), ("i386", "0", "cpu")],
)
def test_an_apple_gpu_is_chosen_where_lightning_trains_on_it(
    monkeypatch, processor, disabled, chosen
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr("platform.processor", lambda: processor)
    monkeypatch.setenv("DISABLE_MPS", disabled)
    MPSAccelerator.is_available.cache_clear()
    try:
        assert device_of("auto") == torch.device(chosen)
    finally:
        monkeypatch.undo()
        MPSAccelerator.is_available.cache_clear()


def test_a_signal_before_the_run_has_begun_waits_for_no_rank(monkeypatch):
    follower = Mock(stdin=None, poll=Mock(return_value=None))
    monkeypatch.setattr(ranks, "_start", lambda *_: follower)
    with pytest.raises(Interrupted), ranks.Leader(Place(0, 0, 0, 2), Path("run")):
        raise Interrupted(signal.SIGTERM)
    assert next(call[0] for call in follower.method_calls if call[0] != "poll") == "kill"


def test_a_full_disk_keeps_no_run_waiting_for_a_dead_rank(monkeypatch, capsys):
    ended = Mock()
    monkeypatch.setattr(ranks.os, "_exit", ended)
    monkeypatch.setattr(ranks, "write_summary", Mock(side_effect=OSError))
    leader = ranks.Leader(Place(world_size=2), Path("run"))
    leader._store, leader._over = HashStore(), Mock(wait=Mock(return_value=False))
    leader._processes = [Mock(poll=Mock(return_value=-9))]
    leader._watch(list)
    ended.assert_called_once_with(1)
    said = "error: rank 1 was killed by signal 9, which ended the run\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("codes", "kind", "words"),
    [
        ((1, 1), RuntimeError, "shapes"),  # the others failed likewise, or because of it
        ((1, -9), RankError, "rank 2 was killed by signal 9"),  # which made rank 1 fail as well
    ],
)
def test_the_first_cause_is_told_when_several_ranks_fail(monkeypatch, codes, kind, words):
    monkeypatch.setattr(ranks, "NOTICE_SECONDS", 0)
    leader = ranks.Leader(Place(world_size=3), Path("run"))
    leader._store = HashStore()
    leader._processes = [Mock(poll=Mock(return_value=code)) for code in codes]
    with pytest.raises(kind, match=words), leader.explained():
        raise RuntimeError("shapes do not match")


def test_a_batch_that_ranks_cannot_share_leaves_nothing_behind(train, tmp_path):
    with pytest.raises(UserError, match="batch_size=7 cannot be shared by 2 devices"):
        train(*TWO, "data.batch_size=7", name="run")
    assert not list((tmp_path / "outputs/runs").iterdir())


def test_a_launcher_that_started_another_number_is_refused(compose, monkeypatch):
    torchrun = {"RANK": 5, "LOCAL_RANK": 1, "GROUP_RANK": 1, "WORLD_SIZE": 8, "MASTER_PORT": 1}
    for name, value in (torchrun | {"MASTER_ADDR": "host"}).items():
        monkeypatch.setenv(name, str(value))
    trainer = compose("trainer=ddp", "trainer.num_nodes=2").trainer
    assert settle_devices(trainer, torch.device("cpu")) == Place(5, 1, 1, 8)
    assert trainer.devices == 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)  # more GPUs than processes
    trainer = compose("trainer=ddp", "trainer.num_nodes=2").trainer
    settle_devices(trainer, torch.device("cuda"))
    assert trainer.devices == 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match="num_nodes=1 ask for 4 processes, but 8 were started"):
        settle_devices(compose("trainer=ddp").trainer, torch.device("cuda"))
    with pytest.raises(UserError, match="ask for 2 processes, but 8 were started"):
        settle_devices(compose(*TWO).trainer, torch.device("cpu"))


def test_tasks_of_srun_know_their_place(monkeypatch):
    batch_script = {"SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NODEID": 0, "SLURM_NTASKS": 4}
    for name, value in batch_script.items():
        monkeypatch.setenv(name, str(value))
    assert launched() is None  # one process, whatever the job has room for
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert launched() == Place(3, 1, 1, 4)


def test_who_waits_for_tasks_that_never_come_says_so_and_hears_a_signal(monkeypatch, capsys):
    monkeypatch.setenv("MASTER_PORT", "0")  # any that is free
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    place = Place(world_size=4)
    monkeypatch.setattr(ranks, "launched", lambda: place)
    for name in ("STUCK_SECONDS", "NOTICE_SECONDS"):
        monkeypatch.setattr(ranks, name, 0.1)
    monkeypatch.setattr(ranks, "_given_up", threading.Event())
    monkeypatch.setattr(ranks, "_numbers", itertools.count())
    monkeypatch.setattr(
        ranks, "launchers_store", functools.cache(ranks.launchers_store.__wrapped__)
    )
    ranks.launchers_store().add("joined", 1)
    at_exit = []
    monkeypatch.setattr(ranks.atexit, "register", at_exit.append)
    ranks.dismiss_at_exit(place)
    say = ranks._say_who_is_missing

    def and_ctrl_c(*given):
        say(*given)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ranks, "_say_who_is_missing", and_ctrl_c)
    signals.install()
    at_exit[0]()
    assert "waiting for 2 of the 4 processes" in capsys.readouterr().err
    with pytest.raises(Interrupted), ranks.Leader(place, Path("run")) as leader:
        leader.begin(OmegaConf.create(), torch.device("cpu"))
    at_exit[0]()  # which waits no more, nor says so again
    assert capsys.readouterr().err.count("waiting for") == 1


# As a person starts it


@pytest.fixture
def command(text_file, tmp_path):
    """The command line of a run of two ranks that would never end."""
    return [
        str(ROOT / "scripts/train.py"),
        f"data.path={text_file}",
        "data.block_size=16",
        "data.batch_size=8",
        "model.n_layer=1",
        "model.n_head=2",
        "model.n_embd=16",
        "trainer.accelerator=cpu",
        *TWO,
        "trainer.max_steps=1000000",
        "trainer.val_check_interval=1000000",
        "trainer.log_every_n_steps=1",
        f"run_dir={tmp_path / 'run'}",
    ]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    return state(pid) not in ("", "Z")


def is_stopped(pid: int) -> bool:
    return state(pid) == "T"


def state(pid: int) -> str:
    """Return the letter of a process's state; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.linux
@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_rank_outlives_the_first(command, tmp_path, signum):
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until((tmp_path / "run/metrics.csv").exists, process)
    ranks = children(process.pid)
    assert len(ranks) == 1
    process.send_signal(signum)
    began = time.monotonic()
    output, _ = process.communicate(timeout=30)
    while any(map(is_alive, ranks)):
        assert time.monotonic() < began + 30
        time.sleep(0.01)
    if signum == signal.SIGKILL:
        return
    assert process.returncode == 128 + signum, output
    assert "Traceback" not in output
    figures = summary(tmp_path / "run")
    assert figures["status"] == "interrupted"
    assert Checkpoint.load(tmp_path / "run/checkpoints/last.ckpt").step == figures["steps"]


def test_a_launchers_ranks_wait_for_no_run_that_was_refused(monkeypatch):
    store, place = HashStore(), Place(world_size=2)
    monkeypatch.setattr(ranks, "launched", lambda: place)
    monkeypatch.setattr(ranks, "launchers_store", lambda: store)
    monkeypatch.setattr(ranks, "_process_group", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(ranks, "_numbers", itertools.count())
    monkeypatch.setattr(ranks, "START_SECONDS", 1)
    with pytest.raises(UserError), ranks.Leader(place, Path("run")):
        raise UserError("its settings")
    store.add("ready 0", 1)  # the other rank waits for the first run
    with ranks.Leader(place, Path("run")) as leader:
        leader.begin(OmegaConf.create({"seed": 3}), torch.device("cpu"))
    assert json.loads(store.get("run 0")) == {"config": "seed: 3\n", "run_dir": "run"}


def test_a_launchers_rank_that_a_signal_ends_has_left(monkeypatch, tmp_path):
    store, ended = HashStore(), Mock(side_effect=Interrupted(signal.SIGTERM))
    monkeypatch.setattr(ranks, "launched", lambda: Place(1, 1, 0, 2))
    monkeypatch.setattr(ranks, "launchers_store", lambda: store)
    store.set("run 0", json.dumps({"config": "seed: 3", "run_dir": str(tmp_path)}))
    with pytest.raises(Interrupted):
        ranks.follow_runs(ended)
    assert store.add("left", 0) == 1  # or rank 0 would wait for it
    store = Mock(check=ended, add=Mock(side_effect=[1, RuntimeError]))  # whose server is gone
    with pytest.raises(Interrupted):
        ranks.follow_runs(ended)


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.mark.slow
def test_torchrun_starts_one_run_or_a_sweep(command, tmp_path, train):
    short = ("trainer.devices=auto", "trainer.max_steps=20", "trainer.val_check_interval=10")
    result = subprocess.run(
        [*TORCHRUN, *command, *short], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("step     20") == 1
    assert [path.name for path in (tmp_path / "run").parent.glob("run*")] == ["run"]
    assert not list(tmp_path.glob("outputs/**/.hydra"))
    assert summary(tmp_path / "run")["status"] == "completed"

    line = [part for part in command if not part.startswith("run_dir=")]
    result = subprocess.run(
        [*TORCHRUN, *line, *short, "seed=1,2", "--multirun"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("outputs/**/summary.json"))) == 2
    assert len(list(tmp_path.glob("outputs/**/.hydra"))) == 2
    alone = train("trainer.max_steps=20", "model.n_layer=1", "data.train_sample=16384", "seed=2")
    second = max(tmp_path.glob("outputs/sweeps/**/summary.json"), key=lambda p: p.stat().st_mtime)
    assert summary(second.parent)["val_loss"] == pytest.approx(summary(alone)["val_loss"], **NOISE)


@pytest.mark.slow
def test_torchrun_passes_a_signal_and_a_refusal_on(command, tmp_path):
    process = subprocess.Popen(
        [*TORCHRUN, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until((tmp_path / "run/metrics.csv").exists, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "Interrupted at step" in output
    figures = summary(tmp_path / "run")
    assert figures["status"] == "interrupted"
    assert Checkpoint.load(tmp_path / "run/checkpoints/last.ckpt").step == figures["steps"]

    command = [part for part in command if not part.startswith("run_dir=")]
    result = subprocess.run(
        [*TORCHRUN, *command, "trainer.devices=3"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1  # torchrun's own
    assert "ask for 3 processes, but 2 were started" in result.stderr
    result = subprocess.run(
        [*TORCHRUN, command[0], "--help"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0
    assert result.stdout.count("Train a character-level") == 1
