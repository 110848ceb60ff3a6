"""The recorded environment of a run, and the process state reset before it."""

import json
import shutil
import subprocess
import sys
import types

import pytest
import torch

from litchar.training import environment, process
from litchar.tuning.run import command_line


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one committed file, which the package takes for its own."""
    root = tmp_path / "checkout"
    (root / "src").mkdir(parents=True)

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout

    (root / "src/old.py").write_text("old = 1\n")
    (root / ".gitignore").write_text("*.log\n")
    (root / "README.md").write_text("what it is\n")
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
    described = environment.describe(torch.device("cpu"))
    git("add", "src/staged.py")
    staged = git("status", "--porcelain")
    environment.record(tmp_path, described)
    assert git("status", "--porcelain") == staged  # what a person has staged stays

    changed = {path.name: path.read_bytes() for path in (root / "src").glob("*.py")}
    git("stash", "--include-untracked")
    assert {path.name for path in (root / "src").iterdir()} == {"old.py", "noise.log"}
    git("apply", str(tmp_path / "code.diff"))
    assert {path.name: path.read_bytes() for path in (root / "src").glob("*.py")} == changed
    assert not (root / "my.txt").exists()


def test_code_is_what_was_imported(checkout):
    root, git = checkout

    def code():
        environment._code.cache_clear()
        return environment.describe(torch.device("cpu"))["code"]

    found = [code()]
    (root / "README.md").write_text("what else it is\n")
    git("commit", "-qam", "Another file.")
    assert code() == found[0]
    for name in ("old.py", "new.py"):
        (root / "src" / name).write_text("changed = 1\n")
        assert environment.describe(torch.device("cpu"))["code"] == found[-1]  # in this process
        found.append(code())
    git("add", ".")
    git("commit", "-qm", "Both.")
    assert code() == found[-1]
    (root / "src/new.py").rename(root / "src/newer.py")
    found.append(code())
    assert len(set(found)) == 4
    environment._code.cache_clear()


def test_git_writes_nothing_into_a_checkout_that_may_be_anothers(checkout):
    """Without write permission, git would silently leave out new files."""
    root, _ = checkout
    (root / "src/new.py").write_bytes(b"new = 1\n")
    before = sorted((root / ".git").rglob("*"))
    assert b"+new = 1" in environment._difference()
    assert sorted((root / ".git").rglob("*")) == before


def test_the_difference_needs_no_index_that_one_may_read(checkout, monkeypatch):
    """As where the owner of a shared checkout has a strict umask."""
    root, _ = checkout
    (root / "src/old.py").write_text("old = 2\n")
    (root / "src/new.py").write_text("new = 1\n")
    before = environment._difference()

    def refuse(source, _):
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr("litchar.training.environment.shutil.copy2", refuse)
    assert b"+new = 1" in before
    assert environment._difference() == before


@pytest.mark.parametrize(
    "variables",
    [
        {"GIT_DIR": "{}/other/.git", "GIT_INDEX_FILE": "{}/other/.git/index"},  # as in a hook
        {"GIT_INDEX_FILE": "{}/other/.git/index.lock"},  # as in one of `git commit --all`
        {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"},  # as in a container
        {"GIT_CONFIG_GLOBAL": "{}/settings"},
        {"GIT_EXTERNAL_DIFF": "/bin/true"},
    ],
)
def test_what_git_is_told_elsewhere_changes_no_record(checkout, tmp_path, monkeypatch, variables):
    root, git = checkout
    (root / "src/old.py").write_text("old = 2\n")
    revision = git("rev-parse", "HEAD").decode().strip()
    plain = git("diff", "HEAD")
    git("clone", "-q", str(root), str(tmp_path / "other"))
    git("-C", str(tmp_path / "other"), "rm", "-q", "README.md")
    git("-C", str(tmp_path / "other"), "commit", "-q", "-m", "Not ours.")
    shutil.copy(tmp_path / "other/.git/index", tmp_path / "other/.git/index.lock")
    (tmp_path / "settings").write_text(
        "[diff]\nnoprefix = true\nexternal = /bin/true\n[color]\nui = always\n"
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    found = environment.describe(torch.device("cpu"))
    assert (found["revision"], found["uncommitted"]) == (revision, True)
    assert environment._difference() == plain


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
    described = environment.describe(torch.device("cpu"))
    assert not described["uncommitted"]
    (tmp_path / "code.diff").touch()  # of another revision, before the run was gone on with
    environment.record(tmp_path, described)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert not environment.describe(torch.device("cpu"))["uncommitted"]
    (root / "src/own.py").write_text("own = 1\n")
    monkeypatch.setattr(environment, "ROOT", root / "src")  # installed within another project
    described = environment.describe(torch.device("cpu"))
    assert (described["revision"], described["uncommitted"]) == (None, False)
    assert (tmp_path / "environment.json").exists()
    assert not (tmp_path / "code.diff").exists()


def test_the_next_run_of_a_process_is_another_one_at_weights_and_biases(monkeypatch):
    """Otherwise wandb.init would return the active run."""
    wandb = types.SimpleNamespace(run="the first job's")
    wandb.finish = lambda: setattr(wandb, "run", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(process._started, "jobs", 1)
    process.begin()
    assert wandb.run is None
    process.begin()  # nothing is under way


def test_a_sweeps_job_has_no_peak_that_may_be_an_earlier_ones(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setitem(process._started, "jobs", 2)
    assert process.peak_memory_bytes(cpu) > 1e7
    monkeypatch.setattr(process, "Path", lambda name: tmp_path / name.lstrip("/"))  # as on macOS
    assert process.peak_memory_bytes(cpu) is None
    monkeypatch.setitem(process._started, "jobs", 1)
    assert process.peak_memory_bytes(cpu) > 1e7
