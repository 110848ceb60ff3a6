"""What is written down of where a run took place, and what is cleared before it."""

import json
import subprocess
import sys
import types

import pytest
import torch

from litchar.training import environment
from litchar.tuning.run import command_line


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one committed file, which the package thinks that it lies in."""
    root = tmp_path / "checkout"
    (root / "src").mkdir(parents=True)

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout

    (root / "src/old.py").write_text("old = 1\n")
    (root / ".gitignore").write_text("*.log\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "One file.")
    monkeypatch.setattr(environment, "ROOT", root)
    return root, git


def test_the_difference_rebuilds_the_code_with_its_new_files(checkout, tmp_path):
    root, git = checkout
    (root / "src/old.py").write_bytes("old = 'é'\n".encode("latin-1"))  # no UTF-8
    (root / "src/new.py").write_bytes(b"new = 1\n")
    (root / "src/staged.py").write_bytes(b"staged = 1\n")
    (root / "src/noise.log").write_text("ignored")
    (root / "my.txt").write_text("a text to train on is no code")
    assert environment.describe(torch.device("cpu"))["uncommitted"]
    git("add", "src/staged.py")
    staged = git("status", "--porcelain")
    environment.record(tmp_path, {})
    assert git("status", "--porcelain") == staged  # what a person has staged stays

    changed = {path.name: path.read_bytes() for path in (root / "src").glob("*.py")}
    git("stash", "--include-untracked")
    assert {path.name for path in (root / "src").iterdir()} == {"old.py", "noise.log"}
    git("apply", str(tmp_path / "code.diff"))
    assert {path.name: path.read_bytes() for path in (root / "src").glob("*.py")} == changed
    assert not (root / "my.txt").exists()


def test_no_password_is_recorded(monkeypatch, tmp_path):
    url = "tune.storage=postgresql://me:secret@host/studies"
    monkeypatch.setattr("sys.argv", ["tune.py", url, "data.path=https://host/@a"])
    environment.record(tmp_path, {})
    command = json.loads((tmp_path / "environment.json").read_text())["command"]
    assert command[1:] == [
        "tune.storage=postgresql://***@host/studies",
        "data.path=https://host/@a",
    ]
    assert "secret" not in command_line()


def test_unchanged_code_and_code_outside_of_a_checkout_have_no_difference(
    checkout, tmp_path, monkeypatch
):
    root, _ = checkout
    (root / "my.txt").write_text("a text to train on is no code")
    assert not environment.describe(torch.device("cpu"))["uncommitted"]
    (tmp_path / "code.diff").touch()  # of another revision, before the run was gone on with
    environment.record(tmp_path, {})
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    environment.record(tmp_path, {})
    (root / "src/own.py").write_text("own = 1\n")
    monkeypatch.setattr(environment, "ROOT", root / "src")  # installed within another project
    described = environment.describe(torch.device("cpu"))
    assert (described["revision"], described["uncommitted"]) == (None, False)
    assert (tmp_path / "environment.json").exists()
    assert not (tmp_path / "code.diff").exists()


def test_the_next_run_of_a_process_is_another_one_at_weights_and_biases(monkeypatch):
    """wandb.init would return the run that is under way."""
    wandb = types.SimpleNamespace(run="the first job's")
    wandb.finish = lambda: setattr(wandb, "run", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(environment._started, "jobs", 1)
    environment.begin()
    assert wandb.run is None
    environment.begin()  # nothing is under way
