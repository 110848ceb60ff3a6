"""Exit codes of the argparse commands: on signals, and on files without permission."""

import argparse
import errno
import os
import select
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from litchar import benchmarks, cli, signals
from litchar.analysis import compare, report, scaling


@pytest.mark.parametrize("main", [compare.main, report.main, benchmarks.main])
def test_a_signal_ends_a_command_with_its_code_and_no_traceback(monkeypatch, main):
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda *_: os.kill(os.getpid(), signal.SIGINT)
    )
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (compare.main, ["--what"]),
        (compare.main, ["outputs", "--out"]),
        (report.main, ["--what"]),
        (scaling.main, ["--steps", "0"]),
        (scaling.main, ["--steps", "many"]),
        (benchmarks.main, []),
        (benchmarks.main, ["train", "--what"]),
        (benchmarks.main, ["train", "--repeats", "many"]),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(capsys, main, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert "--help" in line or "at least 1" in line


def test_output_that_has_no_room_changes_no_exit_code(tmp_path):
    """Python would try again to write it at exit, complain, and end with 120."""
    code = (
        "import resource; from litchar.cli import exit_with\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); print('lost'); exit_with('no room')"
    )
    with open(tmp_path / "output", "wb") as output:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            stdout=output,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": ""},
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (2, b"error: no room\n")


class MacsPoll:
    """`select.poll` of macOS, for a pipe without a reader."""

    def register(self, stream, events):
        self.events = events

    def poll(self, timeout):
        return [(1, select.POLLHUP)] if self.events else []


def test_a_pipe_that_nobody_reads_is_known_on_linux_and_macos(monkeypatch):
    reader, writer = os.pipe()
    try:
        assert not signals.is_unread(writer)
        os.close(reader)
        assert signals.is_unread(writer)
        monkeypatch.setattr(select, "poll", MacsPoll)
        assert signals.is_unread(writer)
    finally:
        os.close(writer)


def test_a_directory_that_is_gone_is_named_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for main in (lambda: cli.hydra_main(__file__, "train", "nowhere:nothing"), compare.main):
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said == "error: the current directory was deleted; change to another\n"


def test_a_name_that_no_file_can_have_is_named_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended, cli.exit_codes():
        os.stat("x" * 300)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("xxx: File name too long; give a shorter one\n")


def test_of_a_copy_that_has_no_room_the_place_it_goes_to_is_named(capsys):
    with pytest.raises(SystemExit), cli.exit_codes():
        raise OSError(errno.ENOSPC, "No space left", "/read", None, "/written")
    assert capsys.readouterr().err.startswith(
        "error: /written: No space left; free some space there"
    )


def test_what_may_not_be_read_is_named_in_one_line(monkeypatch, tmp_path, capsys):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(compare, "is_run", forbidden)
    with pytest.raises(SystemExit) as ended:
        compare.main([str(tmp_path)])
    assert ended.value.code == 2
    line = f"error: {tmp_path}: Permission denied; change its permissions, or choose another path\n"
    assert capsys.readouterr().err == line


def test_memory_that_there_is_not_is_named_in_one_line(capsys):
    for ask in (lambda: torch.empty(1 << 60), lambda: np.empty(1 << 55), gpu_is_full):
        with pytest.raises(SystemExit) as ended, cli.exit_codes():
            ask()
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("error: out of memory (")
        assert line.count("\n") == 1


def gpu_is_full():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


def test_what_a_message_quotes_of_a_file_steers_no_terminal(capsys):
    with pytest.raises(SystemExit):
        cli.exit_with("a\u200db.ckpt: \x1b[2J is not a weight")
    assert capsys.readouterr().err == "error: a\u200db.ckpt: \\x1b[2J is not a weight\n"
