"""Atomic writes: files are complete or absent."""

import os

import pytest

from litchar.atomic import DRAFT, atomic_write, write_csv


@pytest.mark.parametrize("fault", ["while it is written", "while it is put there"])
def test_a_directory_is_whole_or_as_before(tmp_path, monkeypatch, fault):
    output = tmp_path / "out"
    output.mkdir()
    (output / "old").touch()
    replace = os.replace

    def broken(*_):
        raise OSError(5, "Input/output error")

    def write():
        with atomic_write(output) as draft:
            draft.mkdir()
            (draft / "new").touch()
            if fault == "while it is written":
                broken()
            monkeypatch.setattr(os, "replace", broken)

    with pytest.raises(OSError, match="Input"):
        write()
    monkeypatch.setattr(os, "replace", replace)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(output) == ["old"]
    with atomic_write(output) as draft:
        draft.mkdir()
        (draft / "new").touch()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(output) == ["new"]


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path):
    write_csv(tmp_path / "runs.csv", [{"run": "before"}])

    class Unfit:
        def __str__(self) -> str:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_csv(tmp_path / "runs.csv", [{"run": Unfit()}])
    assert os.listdir(tmp_path) == ["runs.csv"]
    assert (tmp_path / "runs.csv").read_text() == "run\nbefore\n"


def test_a_file_takes_no_directorys_place(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(OSError, match="directory"), atomic_write(tmp_path / "out") as draft:
        draft.touch()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["old"]


def test_what_a_link_names_is_written_and_no_pipe_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with atomic_write(tmp_path / "link") as draft:
        draft.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a device or a pipe"), atomic_write(tmp_path / "pipe"):
        raise AssertionError
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "pipe"]


def test_what_a_killed_process_left_is_gone_when_its_run_goes_on(train):
    run_dir = train("trainer.max_steps=5")
    for place in (".", "checkpoints", "tensorboard"):
        (run_dir / place / f"{DRAFT}0123abcd-summary.json").touch()
    (run_dir / f"{DRAFT}0123abcd-exported").mkdir()  # a directory, in which there is something
    (run_dir / f"{DRAFT}0123abcd-exported" / "config.json").touch()
    train("trainer.max_steps=10", "resume=auto")
    assert not list(run_dir.rglob(f"{DRAFT}*"))
