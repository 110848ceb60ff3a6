"""Launchers: results equal those of one process, and the sweep survives its workers' deaths."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, SMALL, summary, wait_until

pytestmark = pytest.mark.slow  # each worker takes seconds to import

SETTING = (*SMALL, "sweep.name=s")
LAUNCHERS = {
    "parallel": ("hydra.launcher.n_jobs=2",),
    "ray": ("+hydra.launcher.init.num_cpus=2", "hydra.launcher.init.include_dashboard=false"),
    "slurm": ("hydra.launcher.cluster=local", "hydra.launcher.gpus_per_node=0"),
}


@pytest.fixture(params=LAUNCHERS)
def launcher(request):
    """The command-line arguments for a launcher."""
    if request.param != "parallel":
        pytest.importorskip({"ray": "ray", "slurm": "submitit"}[request.param])
    return (f"launcher={request.param}", *LAUNCHERS[request.param])


@pytest.fixture
def command(text_file):
    return [
        sys.executable,
        str(ROOT / "scripts/train.py"),
        "-m",
        f"data.path={text_file}",
        *SETTING,
    ]


@pytest.fixture
def sweep(command):
    def sweep(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return sweep


@pytest.fixture
def jobs(tmp_path):
    """Return the directories of the sweep's jobs, by seed."""

    def jobs() -> dict[int, Path]:
        found = (path.parent for path in tmp_path.glob("outputs/sweeps/s/*/summary.json"))
        return {summary(job)["seed"]: job for job in found}

    return jobs


def test_jobs_in_workers_are_those_in_one_process(sweep, jobs, train, launcher):
    result = sweep(*launcher, "seed=1,2,3")
    assert result.returncode == 0, result.stderr
    assert sorted(jobs()) == [1, 2, 3]
    for seed, job in jobs().items():
        alone = train(f"seed={seed}", name=f"alone{seed}")
        assert summary(job)["val_loss"] == summary(alone)["val_loss"]
        assert "step     20" in (job / "output.txt").read_text()
        assert result.stdout.count(f"completed: {job.name}") == 1
    assert "step     20" not in result.stdout

    again = sweep(*launcher, "seed=1,2,3,4")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("completed:") == 1
    assert sorted(jobs()) == [1, 2, 3, 4]


def test_a_job_whose_process_is_killed_takes_no_other_along(sweep, jobs, launcher):
    killed = (
        "+callbacks.stop._target_=conftest.SignalAt",
        f"+callbacks.stop.signum={int(signal.SIGKILL)}",
        "+callbacks.stop.step=13,1000000",  # the second never
    )
    result = sweep(*launcher, *killed, "seed=1,2")
    assert result.returncode == 1
    assert "2 of 4 jobs failed" in result.stderr
    assert "Traceback" not in result.stderr
    statuses = sorted(
        json.loads(path.read_text())["status"]
        for path in next(iter(jobs().values())).parent.glob("*/summary.json")
    )
    assert statuses == ["completed", "completed", "running", "running"]


def test_a_signal_to_a_sweep_saves_its_jobs(command, sweep, jobs, train, launcher):
    line = [*launcher, "seed=1,2", "trainer.max_steps=1000000", "trainer.log_every_n_steps=1"]
    process = subprocess.Popen(
        [*command, *line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(
        lambda: all((j / "metrics.csv").exists() for j in jobs().values()) and len(jobs()) == 2,
        process,
    )
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    deadline = time.monotonic() + 60
    for job in jobs().values():  # submitit's own processes may take a moment longer
        while summary(job)["status"] == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert summary(job)["status"] == "interrupted"
        assert (job / "checkpoints/last.ckpt").exists()


def test_a_signal_saves_the_job_that_runs_beside_an_idle_worker(command, tmp_path):
    slow = ("data.batch_size=16384", "trainer.log_every_n_steps=1")  # steps that take a second
    process = subprocess.Popen(
        [
            *command,
            "launcher=parallel",
            *slow,
            *LAUNCHERS["parallel"],
            "trainer.max_steps=1,1000000",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    sweep = tmp_path / "outputs/sweeps/s"
    wait_until(lambda: list(sweep.glob("*max_steps-1000000*/metrics.csv")), process)
    wait_until(lambda: "completed: " in process.stdout.readline(), process)
    (long,) = sweep.glob("*max_steps-1000000*")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert summary(long)["status"] == "interrupted"
    assert (long / "checkpoints/last.ckpt").exists()


def test_a_job_that_its_cluster_preempts_is_put_back_and_goes_on(sweep, jobs, train):
    pytest.importorskip("submitit")
    preempted = (
        "+callbacks.stop._target_=conftest.SignalAt",
        f"+callbacks.stop.signum={int(signal.SIGUSR2)}",
        "+callbacks.stop.step=7",
    )
    result = sweep("launcher=slurm", *LAUNCHERS["slurm"], *preempted, "seed=1,2")
    assert result.returncode == 0, result.stderr
    for seed, job in jobs().items():
        assert "Interrupted at step 7" in (job / "output.txt").read_text()
        assert "Resuming from last.ckpt, step 7" in (job / "output.txt").read_text()
        alone = train(f"seed={seed}", name=f"alone{seed}")
        assert summary(job)["val_loss"] == summary(alone)["val_loss"]


@pytest.mark.parametrize(("n_jobs", "shown"), [("0", "0"), ("true", "True")])
def test_a_number_of_jobs_that_is_none_is_refused(sweep, n_jobs, shown):
    result = sweep("launcher=parallel", f"hydra.launcher.n_jobs={n_jobs}", "seed=1,2")
    assert result.returncode == 2
    assert f"hydra.launcher.n_jobs={shown}: must be a whole number" in result.stderr
    assert result.stderr.count("\n") == 1
