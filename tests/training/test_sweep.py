"""A sweep started again, after whatever happened, runs the missing jobs and nothing else."""

import csv
import multiprocessing
import os
import pickle
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import litchar.training.run
from conftest import ROOT, SignalAt, assert_same_run, summary
from litchar.analysis.comparison import Comparison
from litchar.cli import Task, hydra_main
from litchar.errors import UserError
from litchar.overrides import quote
from litchar.training.resume import redirect
from litchar.training.summary import write_summary
from litchar.training.sweep import NAME_BYTES, identity, job_name, make_plan, recorded

SMALL = (
    "data.block_size=8",
    "data.batch_size=4",
    "data.train_sample=0",
    "model.n_layer=1",
    "model.n_head=1",
    "model.n_embd=8",
    "trainer.accelerator=cpu",
    "trainer.max_steps=8",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=4",
    "trainer.enable_progress_bar=false",
    "report=false",
    "callbacks=none",
)


class Swept:
    """A finished sweep: its exit code, its output, and its jobs' directories."""

    def __init__(self, code, printed, directory):
        self.code = code
        self.out, self.err = printed
        self.directory = directory
        self.jobs = sorted(path.parent for path in directory.glob("*/.hydra"))

    def job(self, part):
        (job,) = (job for job in self.jobs if part in job.name)
        return job


@pytest.fixture
def sweep(tmp_path, text_file, monkeypatch, capsys):
    """Sweep in this process as the script does, by default without the final comparison."""

    def sweep(*arguments, name="s", small=SMALL, compared=False):
        if not compared:
            nothing = Comparison(None, [], [], {}, [])
            monkeypatch.setattr("litchar.analysis.compare.report_on", lambda *_: nothing)
        named = () if name is None else (f"sweep.name={name}",)
        line = ["-m", f"data.path={text_file}", *small, *named, *arguments]
        monkeypatch.setattr(sys, "argv", ["train.py", *line])
        capsys.readouterr()
        code = 0
        try:
            script = str(ROOT / "scripts/train.py")
            hydra_main(script, "train", "litchar.training.run:main", before=redirect)
        except SystemExit as stop:
            code = stop.code
        return Swept(code, capsys.readouterr(), tmp_path / "outputs/sweeps" / str(name))

    return sweep


def everything(directory):
    """Return every file below a directory, with its modification time and content."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_the_same_line_again_touches_nothing_and_more_values_run_alone(sweep, train):
    first = sweep("model.n_embd=8,16", "seed=1")
    assert first.code == 0
    assert [job.name.rpartition("_")[0] for job in first.jobs] == [
        "model.n_embd-16",
        "model.n_embd-8",
    ]
    before = {job: everything(job) for job in first.jobs}
    other_order = ("seed=1", "trainer.enable_model_summary=false", "model.n_embd=16,8")
    again = sweep(*other_order)
    assert again.code == 0
    assert "Job" not in again.out
    wider = sweep("model.n_embd=8,16", "seed=1,2")
    assert wider.out.count("\nJob ") == 2
    assert len(wider.jobs) == 4
    assert {job: everything(job) for job in first.jobs} == before

    # The last of four jobs in one process equals the same job in a process of its own.
    (text,) = {job.parents[3] / "text.txt" for job in wider.jobs}
    alone = train(*SMALL, f"data.path={text}", "model.n_embd=16", "seed=2", only=True)
    assert_same_run(alone, wider.job("n_embd-16_seed-2"))

    events = EventAccumulator(str(wider.job("n_embd-16_seed-2") / "tensorboard")).Reload()
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"model.n_embd" in plugin
    assert b"data.block_size" not in plugin
    with pytest.raises(KeyError):
        events.Scalars("hp_metric")
    assert events.Scalars("best_val_loss")[-1].value == pytest.approx(
        summary(alone)["best_val_loss"]
    )


def test_a_place_that_can_be_no_directory_is_named_in_one_line(sweep, tmp_path):
    (tmp_path / "outputs").symlink_to("/nowhere/at/all")
    swept = sweep("seed=1,2")
    assert swept.code == 2
    assert swept.err.startswith(f"error: {tmp_path / 'outputs'}: cannot be written (File exists); ")
    assert swept.err.count("\n") == 1


@pytest.mark.linux
@pytest.mark.slow
def test_a_text_whose_name_is_no_utf8_is_swept_and_compared(sweep, text_file):
    named = text_file.with_name(os.fsdecode(b"caf\xe9.txt"))
    named.write_text(text_file.read_text()[::-1])
    swept = sweep(f"data.path={quote(str(text_file))},{quote(str(named))}", compared=True)
    assert (swept.code, swept.err) == (0, "")
    assert (swept.directory / "sweep.png").exists()


def test_another_sweep_of_the_same_name_is_refused_and_the_difference_named(sweep):
    one, two = "optimizer.weight_decay=choice(0.1)", "trainer.max_steps=2"
    first = sweep(one, two)
    before = everything(first.directory)
    for line, words in (
        ([one, "trainer.max_steps=3"], "trainer.max_steps: 2 then, 3 now"),
        ([one, two, "scheduler=cosine"], "scheduler._target_: "),
        ([two, "optimizer.lr=1e-3,1e-2"], "optimizer.weight_decay: swept then, not named now"),
    ):
        other = sweep(*line)
        assert (other.code, other.out) == (2, "")
        assert words in other.err
        assert other.err.count("\n") == 1
    assert everything(first.directory) == before
    # A key with one value may get a list, and a key with a list one of its values.
    more = sweep("optimizer.weight_decay=0.1", two, "seed=1337,2")
    assert more.code == 0
    assert len(more.jobs) == 2


@pytest.mark.parametrize("content", ['{"a":', "[5]", '{"a": 5}', '{"swept": 5, "shared": {}}'])
def test_a_damaged_record_is_named(sweep, tmp_path, content):
    record = tmp_path / "outputs/sweeps/s/sweep.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    swept = sweep("seed=1,2")
    assert swept.code == 2
    assert swept.err.startswith(f"error: {record}: damaged; give the sweep another name, or delete")


def test_another_value_within_a_group_that_has_a_list_is_refused(sweep):
    sweep("model=transformer,gpt2", "model.dropout=0.0", "trainer.max_steps=1")
    for line, now in ((["model.dropout=0.5"], "0.5"), ([], "not set")):
        other = sweep("model=transformer,gpt2", *line, "trainer.max_steps=1")
        assert other.code == 2
        assert f"another sweep (model.dropout: 0.0 then, {now} now)" in other.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep.name=../x", "seed=1,2"], "sweep.name=../x"),
        (["sweep.name=a/b", "seed=1,2"], "sweep.name=a/b"),
        (["sweep.name=..", "seed=1,2"], "sweep.name=.."),
        (["sweep.name=", "seed=1,2"], "sweep.name="),
        (["sweep.retry_failed=true,false", "seed=1,2"], "not a list"),
        (["sweep.retry_failed=perhaps", "seed=1,2"], "must be true or false"),
        (["optimizer.lr=interval(0.1,1)"], "lr=interval(0.1,1): a sweep takes lists of values"),
        (["run_dir=here", "seed=1,2"], "sweep.name=NAME"),
        (["resume=here.ckpt", "seed=1,2"], "resumes its own jobs"),
        (["init_from=latest", "seed=1,2"], "from the previous one"),
        (["init_from=a.ckpt,latest"], "from the previous one"),
        (["seed=1,2", "scheduler=cosine,nothing"], "scheduler=nothing: there is no such file"),
        (["seed=1,2", "model.n_layr=1,2"], "did you mean model.n_layer?"),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_line(sweep, tmp_path, arguments, words):
    refused = sweep(*arguments, name=None)
    assert refused.code == 2
    assert words in refused.err
    assert refused.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_without_a_name_is_called_by_the_date(sweep, tmp_path):
    assert sweep("seed=1,2", "sweep.name=null", "trainer.max_steps=1", name=None).code == 0
    (directory,) = (tmp_path / "outputs/sweeps").iterdir()
    assert directory.name.startswith("20")


def test_a_single_run_has_no_sweep(tmp_path):
    with pytest.raises(Exception, match="add -m"):
        redirect(["sweep.name=x", "seed=1"], ROOT / "conf", "train")


class ExitAt(Callback):
    """Exits the process from within a job, as user code might."""

    def on_train_start(self, *_):
        sys.exit(5)


class DivergeOnce(Callback):
    """Makes the loss infinite the first time."""

    times = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        if trainer.global_step == 6 and not DivergeOnce.times:
            DivergeOnce.times += 1
            outputs["loss"].fill_(float("inf"))


@pytest.fixture
def with_callback(monkeypatch):
    """Give jobs, by a part of their name, callbacks that are not in their configurations."""
    made = litchar.training.run.make_trainer

    def with_callback(callbacks):
        def make_trainer(setup, *rest):
            trainer, *others = made(setup, *rest)
            here = [one for part, one in callbacks.items() if part in setup.run_dir.name]
            trainer.callbacks[:0] = here
            return trainer, *others

        monkeypatch.setattr(litchar.training.run, "make_trainer", make_trainer)

    return with_callback


@pytest.mark.parametrize(
    "content", ["null", "[]", "[1]", "", pytest.param("[" * 100_000, id="deep")]
)
def test_a_summary_that_is_no_object_counts_for_nothing(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    assert recorded(tmp_path) is None
    assert write_summary(tmp_path, status="failed")["status"] == "failed"
    assert recorded(tmp_path).status == "failed"


def test_failures_end_alone_are_recorded_and_tried_again_when_asked(sweep, with_callback):
    line = ("model.n_embd=8,9,12,16", "model.n_head=2", "trainer.log_every_n_steps=1")
    with_callback({"n_embd-12": ExitAt(), "n_embd-16": DivergeOnce()})
    first = sweep(*line)
    assert first.code == 1
    assert "3 of 4 jobs failed, the others completed; retry" in first.err
    assert first.err.count("\n") == 1
    reasons = {
        "n_embd-9": "not divisible",
        "n_embd-12": "SystemExit: 5",
        "n_embd-16": "loss is inf",
    }
    for part, words in reasons.items():
        job = first.job(part)
        status = "diverged" if "inf" in words else "failed"
        assert summary(job)["status"] == status
        assert words in summary(job)["error"]
        (listed,) = (
            text for text in first.out.splitlines() if text.startswith(f"{status}: {job.name}")
        )
        assert words in listed
    assert summary(first.job("n_embd-8_"))["status"] == "completed"

    compared = sweep(*line, compared=True)  # which says it, and so it is not said again
    for part, words in reasons.items():
        assert compared.out.count(words) == 1, part

    before = {job: everything(job) for job in first.jobs}
    again = sweep(*line)
    assert again.code == 1
    assert "Job" not in again.out
    assert again.out == first.out[-len(again.out) :]  # the same list
    assert {job: everything(job) for job in first.jobs} == before

    with_callback({})
    retried = sweep(*line, "sweep.retry_failed=true")
    assert retried.out.count("\nJob ") == 3
    assert "1 of 4 jobs failed" in retried.err
    assert summary(first.job("n_embd-16"))["steps"] == 8
    assert everything(first.job("n_embd-8_")) == before[first.job("n_embd-8_")]


def test_where_every_job_failed_no_other_is_said_to_be_completed(sweep):
    failed = sweep("model.n_embd=9,11", "model.n_head=2")
    assert failed.err == "error: 2 of 2 jobs failed; retry them with sweep.retry_failed=true\n"


def in_a_fork(function):
    """Run `function` in a fork of this process; return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join()
    return process.exitcode


class AfterBatches(SignalAt):
    """Sends a signal in the middle of the process's nth batch, in whichever job that is."""

    def on_before_optimizer_step(self, *_):
        self.step -= 1
        if self.step == 0:
            os.kill(os.getpid(), self.signum)


def test_a_sweep_stopped_and_killed_goes_on_and_equals_an_undisturbed_one(sweep, with_callback):
    line = ("model.n_embd=8,16", "model.dropout=0.1")
    whole = sweep(*line, name="whole")
    stops = [(3, signal.SIGKILL), (11, signal.SIGTERM)]
    for batches, signum in stops:

        def until_stopped(batches=batches, signum=signum):
            with_callback({"": AfterBatches(batches, signum)})
            code = sweep(*line).code
            os._exit(code)

        expected = -signum if signum == signal.SIGKILL else 128 + signum
        assert in_a_fork(until_stopped) == expected
    with_callback({})
    rest = sweep(*line)
    assert rest.code == 0
    assert rest.out.count("\nJob ") == 1
    for one, other in zip(whole.jobs, rest.jobs, strict=True):
        assert one.name == other.name
        assert_same_run(one, other)


def test_two_processes_share_a_sweep(sweep):
    line = ("seed=1,2,3", "trainer.max_steps=20")

    def half():
        swept = sweep(*line)
        (swept.directory / f"{os.getpid()}.txt").write_text(swept.out)
        os._exit(swept.code)

    both = [multiprocessing.get_context("fork").Process(target=half) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    swept = sweep(*line)
    printed = [path.read_text() for path in swept.directory.glob("*.txt")]
    assert sum(text.count("completed in") for text in printed) == 3
    assert [summary(job)["status"] for job in swept.jobs] == ["completed"] * 3
    assert "Job" not in swept.out


def test_a_job_is_its_configuration_however_it_is_written(compose):
    def settings(*overrides, swept=()):
        return identity(OmegaConf.to_container(compose(*overrides)), frozenset(swept))

    free = ("name=other", "data.num_workers=2", "model.dropout=null")
    path = f"data.path={os.path.abspath('a.txt')}"
    one = settings("optimizer.lr=1e-3", "data.path=a.txt", "seed=1")
    assert one == settings("seed=1", path, "optimizer.lr=0.001", *free)
    assert one != settings("seed=2", path, "optimizer.lr=0.001")
    assert one != settings("seed=1", path, "optimizer.lr=0.001", *free, swept=["data.num_workers"])


@pytest.mark.parametrize(
    "text",
    [
        {"path": "a.txt"},
        {"path": ["a.txt", "/b.txt"]},
        {"path": [1984]},
        {"mixture": [{"path": "a.txt", "weight": 2}, {"path": ["/b.txt"]}]},
        {"name": "dataset"},
    ],
)
def test_relative_paths_mean_another_text_in_another_directory(text, tmp_path, monkeypatch):
    def identity_in(directory):
        (tmp_path / directory / "dataset").mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / directory)
        return identity({"data": text})

    one = identity_in("one")
    assert one == identity_in("one")
    assert one != identity_in("two")


def test_what_is_no_path_on_this_machine_means_the_same_in_any_directory(tmp_path, monkeypatch):
    text = {"path": "https://x.org/a.txt", "mixture": ["a.txt"], "name": "user/dataset"}
    here = identity({"data": text})
    monkeypatch.chdir(tmp_path)
    assert identity({"data": text}) == here


def test_no_job_begins_from_the_latest_run_wherever_that_is_set(tmp_path):
    set_by_an_experiment = [(["experiment=mine"], {"init_from": "latest"})]
    with pytest.raises(UserError, match="from the previous one"):
        make_plan(tmp_path, {}, {}, set_by_an_experiment)


def test_two_terminals_that_begin_a_sweep_in_another_order_train_the_same_jobs(tmp_path):
    def jobs(*line: str) -> set[Path]:
        parsed = OverridesParser.create().parse_overrides(["seed=1,2", "x=3,4"])
        grid = [(list(line), {"seed": 1, "x": 3})]
        return set(make_plan(tmp_path, {o.key_or_group: o for o in parsed}, {}, grid).jobs)

    assert jobs("seed=1", "x=3") == jobs("x=3", "seed=1")


def test_names_of_jobs_are_bounded_and_differ():
    long = [f"name={'x' * 300}{end}" for end in "ab"]
    hostile = ["data.path='a/../b c,=?*'", "name=文字é" + "文" * 80]
    names = [job_name([text], {"key": text}) for text in [*long, *hostile]]
    assert len(set(names)) == 4
    for name in names:
        assert len(name.encode()) <= NAME_BYTES + 9
        assert not set(name) & set("/=, '?*")
    assert "文字é" in names[-1]
    assert job_name([], {}).startswith("defaults_")


def test_lists_of_paths_are_swept_unless_they_name_a_file(tmp_path, monkeypatch):
    assert quote("data.path=a.txt,b c.txt", sweeps=True) == 'data.path="a.txt","b c.txt"'
    assert quote("data.path=a.txt,b.txt") == 'data.path="a.txt,b.txt"'
    assert quote("data.path=choice(a,b)", sweeps=True) == "data.path=choice(a,b)"
    (tmp_path / "a,b").touch()
    monkeypatch.chdir(tmp_path)
    assert quote("data.path=a,b", sweeps=True) == 'data.path="a,b"'


def test_what_a_worker_is_sent_can_be_pickled():
    task = pickle.loads(pickle.dumps(Task("litchar.training.run:main", {"seed": None})))
    assert task.target == "litchar.training.run:main"


@pytest.mark.slow
def test_a_sweep_of_twelve_jobs_killed_five_times_has_the_table_of_an_undisturbed_one(
    tmp_path, text_file
):
    """In subprocesses, killed and terminated in turn at random moments."""
    line = [
        sys.executable,
        str(ROOT / "scripts/train.py"),
        "-m",
        f"data.path={text_file}",
        *SMALL,
        "trainer.max_steps=150",
        "trainer.val_check_interval=50",
        "checkpoint.every_seconds=0.1",
        "model.dropout=0.1",
        "model.n_layer=1,2",
        "optimizer.lr=1e-2,1e-3",
        "seed=1,2,3",
    ]
    sweeps = tmp_path / "outputs/sweeps"
    subprocess.run([*line, "sweep.name=whole"], check=True, capture_output=True)
    draw = random.Random(0)
    for stop in range(5):
        signum = (signal.SIGKILL, signal.SIGTERM)[stop % 2]
        process = subprocess.Popen(
            [*line, "sweep.name=storm"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        before = trained(sweeps / "storm")
        while process.poll() is None and trained(sweeps / "storm") == before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1.5))
        process.send_signal(signum)
        _, errors = process.communicate()
        expected = -signum if signum == signal.SIGKILL else 128 + signum
        assert process.returncode == expected, errors
    subprocess.run([*line, "sweep.name=storm"], check=True, capture_output=True)
    tables = []
    for name in ("whole", "storm"):
        with open(sweeps / name / "sweep.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        timed = ("seconds", "per_second", "memory")
        tables.append(
            [{k: v for k, v in r.items() if not any(t in k for t in timed)} for r in rows]
        )
    assert len(tables[0]) == 4
    assert [row["n"] for row in tables[0]] == ["3"] * 4
    assert tables[0] == tables[1]
    for one in (sweeps / "whole").glob("*/summary.json"):
        assert_same_run(one.parent, sweeps / "storm" / one.parent.name)


def trained(directory):
    """Return how many times jobs of a sweep began to train; each time creates an event file."""
    return len(list(directory.glob("*/tensorboard/events*")))


@pytest.mark.linux
@pytest.mark.slow
def test_memory_and_files_stay_as_they_were_after_the_first_jobs(sweep, monkeypatch):
    resident, files = [], []
    train = litchar.training.run.train

    def measured(*arguments, **options):
        status = Path("/proc/self/status").read_text()
        resident.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)  # MiB
        files.append(len(os.listdir("/proc/self/fd")))
        return train(*arguments, **options)

    monkeypatch.setattr(litchar.training.run, "train", measured)
    seeds = ",".join(str(seed) for seed in range(60))
    assert sweep(f"seed={seeds}", "model.n_embd=64", "data.batch_size=16").code == 0
    assert len(resident) == 60
    assert statistics.median(resident[-10:]) < statistics.median(resident[10:20]) + 8
    assert files[-1] <= files[10]
