"""Launchers' messages: for finished jobs, and where a launcher cannot work."""

import shutil
import sys

import pytest
from hydra.core.utils import JobReturn

from hydra_plugins.litchar_launchers import (
    Job,
    ParallelLauncher,
    RayLauncher,
    SlurmLauncher,
)
from litchar.errors import UserError
from litchar.training.sweep import Outcome


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        (Outcome("seed=1", "completed", 1.23456), "completed: seed=1: best val loss 1.2346"),
        (Outcome("seed=1", "completed", None), "completed: seed=1: not validated"),
        (Outcome("seed=1", "diverged", None, "at step 3"), "diverged: seed=1: at step 3"),
        (ValueError("no"), "failed: seed=1: ValueError: no"),
    ],
)
def test_each_outcome_has_its_line(returned, line, capsys):
    job = Job(None, None, None, ["seed=1", 'hydra.sweep.subdir="seed=1"'], 3, {})
    known = JobReturn(_return_value=returned)
    assert ParallelLauncher().ended(job, known) is known
    assert capsys.readouterr().out == f"{line}\n"


def test_a_job_of_another_sweeper_has_a_number():
    assert Job(None, None, None, ["seed=1"], 3, {}).name == "job 3"


@pytest.mark.parametrize(
    ("launcher", "name", "package"),
    [(RayLauncher, "ray", "ray"), (SlurmLauncher, "slurm", "submitit")],
)
def test_a_missing_extra_is_named(launcher, name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    needs = rf'launcher={name} needs the package {package}: pip install -e "\.\[{name}\]"'
    with pytest.raises(UserError, match=needs):
        launcher().check()


@pytest.mark.parametrize(
    ("cluster", "why"), [("slurm", "Could not detect .srun."), ("slrum", "executor named slrum")]
)
def test_where_there_is_no_such_cluster_it_says_so(cluster, why, monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    settings = {"folder": str(tmp_path), "cluster": cluster, "slurm_max_num_timeout": 1}
    with pytest.raises(UserError, match=rf"launcher=slurm: .*{why}.*cluster=local"):
        SlurmLauncher(**settings).check()
