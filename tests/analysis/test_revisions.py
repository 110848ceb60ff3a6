"""Comparing two revisions of the code: checked out, trained on the same seeds, cleaned up."""

import csv
import json
import os
import signal
import subprocess
import threading
import time

import pytest
import torch

from conftest import ROOT
from litchar.analysis import revisions
from litchar.analysis.compare import main
from litchar.checkpoints import save
from litchar.training import environment

# Stands in for training: copies the record that a test made for this revision.
TRAIN = """
import os, pathlib, shutil, sys, time
given = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
code = pathlib.Path(__file__).parents[1]
if "new.option" in given and not (code / "new").exists():
    sys.exit("error: new.option: there is no such key")
if "--cfg" in sys.argv:
    sys.exit()
made = pathlib.Path(os.environ["MADE"])
if "wait" in given:
    (made / "started").touch()
    time.sleep(600)
revision = (code / "revision").read_text()
shutil.copytree(made / revision / given["seed"], given["run_dir"])
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with the revisions `old` and `new`, in place of the project's own."""
    code = tmp_path / "code"
    (code / "scripts").mkdir(parents=True)
    (code / "scripts/train.py").write_text(TRAIN)

    def git(*arguments):
        who = ("-c", "user.name=n", "-c", "user.email=e@example.com")
        command = ["git", "-C", str(code), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    for revision in ("old", "new"):
        (code / "revision").write_text(revision)
        (code / revision).touch()
        git("add", "."), git("commit", "-q", "-m", revision), git("tag", revision)
    monkeypatch.setattr(revisions, "ROOT", code)
    monkeypatch.setattr(environment, "ROOT", code)
    monkeypatch.setenv("MADE", str(tmp_path / "made"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "made").mkdir()
    yield git
    assert len(git("worktree", "list").splitlines()) == 1
    assert not list((tmp_path / "temporary").iterdir())


@pytest.fixture
def made(tmp_path):
    """Make the record that a revision's training produces for a seed."""

    def made(revision, seed, loss, weight=0.5, grad_norm=1.0, columns=()):
        run = tmp_path / "made" / revision / str(seed)
        run.mkdir(parents=True)
        (run / "summary.json").write_text(json.dumps({"best_val_loss": loss}))
        row = {"step": 1, "grad_norm": grad_norm, "val/loss": loss, "speed/x": os.urandom(3).hex()}
        with open(run / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, [*row, *columns])
            writer.writeheader()
            writer.writerow(row)
        checkpoint = {"litchar": {}, "state_dict": {"model.w": torch.tensor([1.0, weight])}}
        save(checkpoint, run / "checkpoints/last.ckpt")

    return made


def compared(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["--revisions", *arguments])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_revisions_that_differ_by_more_than_seeds_do(repository, made, capsys):
    for seed in (1, 2, 3):
        made("old", seed, 2.0 + seed / 100)
        made("new", seed, 1.99 + seed / 100 + (seed == 3) * 0.001, columns=["newer"])
    code, out, _ = compared(capsys, "old", "new")
    assert code == 0
    assert "old: 2.0200 (n=3, sd 0.0100)" in out
    # Less than seeds differ, but so at each: -0.0097 on average, 0.0097 / 0.000577 * 3 ** 0.5 = 29.
    words = "seed by seed -0.0097, 95% interval -0.0111 to -0.0082; they differ (paired t-test, "
    assert f"{words}p = 0.0012)" in " ".join(out.split())
    code, out, _ = compared(capsys, "old", "new", "--assert-equal", "--seeds", "2")
    assert code == 1
    assert "first differ at seed 2: step 1: val/loss is 2.02 and 2.01" in out


def test_revisions_that_do_not(repository, made, capsys):
    for seed, (old, new) in enumerate([(2.0, 2.01), (2.04, 2.03), (1.97, 2.0)], 1):
        made("old", seed, old)
        made("new", seed, new)
    out = " ".join(compared(capsys, "old", "new")[1].split())
    # t = 0.01 / 0.02 * 3 ** 0.5, and with two degrees of freedom p = 1 - t / (t ** 2 + 2) ** 0.5.
    assert "; this does not show that they differ (paired t-test, p = 0.48)" in out


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({}, 0, "the same to the bit"),
        ({"weight": 0.5000001}, 1, "seed 1: model.w differs by up to 1.19e-07"),
        ({"grad_norm": 1.0000001}, 1, "grad_norm is 1.0 and 1.0000001"),
    ],
)
def test_equal_means_to_the_bit(repository, made, capsys, change, code, words):
    made("old", 1, 2.0)
    made("new", 1, 2.0, **change)
    found = compared(capsys, "old", ".", "--assert-equal", "--seeds", "1")
    assert found[0] == code
    assert words in found[1]


def test_an_option_that_one_does_not_know_is_refused(repository, made, capsys):
    made("new", 1, 2.0)
    arguments = ("--seeds", "1", "--", "new.option=1")
    code, out, error = compared(capsys, "new", "old", *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert "--revisions old ended with exit code 1: new.option: there is no such key" in error
    assert out == ""  # nothing was trained before


def test_a_revision_that_is_none_is_refused_before_any_is_trained(repository, made, capsys):
    made("new", 1, 2.0)
    code, out, error = compared(capsys, "new", "odl", "--seeds", "1")
    assert (code, out, error) == (2, "", "error: --revisions odl: no such revision\n")


def test_without_git_one_line_says_so(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    words = "error: --revisions old: git is not installed; install it to check out revisions\n"
    assert compared(capsys, "old", "new") == (2, "", words)


def test_a_signal_takes_the_worktrees_away(repository, tmp_path, capsys):
    def stop():
        while not (tmp_path / "made/started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    code, _, _ = compared(capsys, "old", "new", "--", "wait=1")
    assert code == 128 + signal.SIGTERM


@pytest.mark.slow
def test_the_code_here_is_equal_to_itself(text_file, capsys):
    small = ["model.n_embd=8", "model.n_head=1", "data.block_size=8", "trainer.max_steps=6"]
    main_arguments = ["HEAD", ".", "--assert-equal", "--seeds", "1", "--", *small]
    code, out, error = compared(capsys, *main_arguments, f"data.path={text_file}")
    assert code == 0, (out, error)
    listed = subprocess.run(["git", "-C", ROOT, "worktree", "list"], capture_output=True, text=True)
    assert "litchar-" not in listed.stdout
