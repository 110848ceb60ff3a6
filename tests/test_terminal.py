"""Terminal output at any width, with and without colour, animated or plain."""

import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

import litchar.terminal
from conftest import ROOT
from litchar.errors import Interrupted
from litchar.generation.run import show_score
from litchar.generation.scoring import COLOURS, Score
from litchar.overrides import quote
from litchar.text import Vocabulary
from litchar.training.progress import redraws

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;)[0-9;]*m")
DRAWN_OVER = re.compile(r"\x1b\[\d*[AK]|\x1b\[\?25l")  # a line up, a line cleared, no cursor


class Terminal(io.StringIO):
    """A file that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Make stdout a terminal with given properties; return what is written to it."""

    def terminal(columns: int, **environment: str) -> io.StringIO:
        for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        settings = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
        for name, value in (settings | environment).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdout", Terminal())
        return sys.stdout

    return terminal


def is_path(line: str) -> bool:
    return line.startswith(("  python", "  tensorboard", "checkpoint", "report", "/"))


@pytest.mark.parametrize(
    ("columns", "environment", "drawn"),
    [
        (80, {}, True),
        (200, {"NO_COLOR": "1"}, True),
        (80, {"TERM": "dumb"}, False),
        (40, {"CI": "true"}, False),
    ],
)
def test_a_run_fits_its_terminal(train, terminal, columns, environment, drawn):
    output = terminal(columns, **environment)
    train("logger=csv", "callbacks=none")
    shown = output.getvalue()
    assert bool(DRAWN_OVER.search(shown)) == drawn
    assert not COLOUR.search(shown) or "NO_COLOR" not in environment
    plain = CODES.sub("", shown).replace("\r", "\n")
    lines = [line.rstrip() for line in plain.split("\n")]
    validated = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in validated] == ["10", "20"]
    for line in validated:
        assert re.search(r"val \d\.\d{4} \(\d\.\d{3} bpc\)", line)
        assert len(line) <= max(columns, 53)
    figures = lines[lines.index("A sample:") :]
    assert all(len(line) <= columns for line in figures if not is_path(line))
    (path,) = (line for line in lines if line.startswith("checkpoint "))
    assert path.endswith("/best.ckpt")  # in one piece, however narrow
    if environment.get("TERM") == "dumb":
        assert "\x1b" not in shown


def test_a_run_that_ends_early_leaves_no_bar_behind_and_the_cursor_shown(train, terminal):
    output = terminal(80)
    with pytest.raises(Interrupted):
        train("logger=csv", "callbacks=none", "+callbacks.at={_target_:conftest.SignalAt,step:5}")
    drawn, _, said = output.getvalue().partition("Interrupted at step")
    assert drawn.rstrip().endswith("\x1b[2K")
    assert drawn.count("\x1b[?25h") == drawn.count("\x1b[?25l") == 1
    assert not DRAWN_OVER.search(said)


@pytest.mark.parametrize(
    ("file", "environment", "drawn"),
    [
        (Terminal, {"TERM": "xterm"}, True),
        (Terminal, {"TERM": "dumb"}, False),
        (Terminal, {"TERM": "xterm", "TTY_INTERACTIVE": "0"}, False),
        (io.StringIO, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_lines_are_drawn_over_only_where_someone_watches(monkeypatch, file, environment, drawn):
    monkeypatch.delenv("CI", raising=False)
    console = Console(file=file(), _environ=environment)
    assert redraws(console) == drawn
    monkeypatch.setenv("CI", "true")
    assert not redraws(console)


def score() -> Score:
    vocabulary = Vocabulary("abc\n")
    bits = np.array([0.5, 9.0, 1.5, 3.0, 5.0])
    return Score(vocabulary, vocabulary.encode("abca\nb"), -bits * np.log(2))


def test_a_score_can_be_read_without_colour(terminal):
    output = terminal(80, NO_COLOR="1")
    show_score(score(), as_json=False)
    shown = output.getvalue()
    assert not COLOUR.search(shown)
    styles = [CODES.findall(shown.partition(c)[0])[-1:] for c in ("b", "c")]
    assert styles[0] != styles[1]  # dim, and bold on a ground

    output = terminal(80, TERM="dumb")
    show_score(score(), as_json=False)
    shown = output.getvalue()
    assert "\x1b" not in shown
    assert shown.startswith("abca\nb\n")
    assert shown.splitlines()[-5:] == [
        "  9.0 bits: 'c' after 'ab'",
        "  5.0 bits: 'b' after 'abca\\n'",
        "  3.0 bits: '\\n' after 'abca'",
        "  1.5 bits: 'a' after 'abc'",
        "  0.5 bits: 'b' after 'a'",
    ]


def test_every_level_of_surprise_has_a_style_of_its_own_without_colour():
    colours = {"red", "yellow", "green"}
    attributes = [frozenset(style.split()) - colours for _, style in COLOURS]
    assert len(set(attributes)) == len(COLOURS)


def test_a_character_that_the_terminal_cannot_show_ends_nothing(script, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    (tmp_path / "é.txt").write_text("中 and é\n" * 200)
    shown = script("inspect.py", f"data.path={tmp_path}/é.txt", f"page={tmp_path}/page.html")
    assert shown.returncode == 0, shown.stderr
    assert "\\xe9.txt" in shown.stdout
    assert re.search(r"\\u4e2d +CJK UNIFIED IDEOGRAPH-4E2D", shown.stdout)


def test_a_path_is_shown_as_it_is(train, tmp_path, capsys):
    directory = tmp_path / ":car:" / "[bold]"
    directory.mkdir(parents=True)
    (tmp_path / "text.txt").rename(directory / "x.txt")
    train("trainer.max_steps=2", quote(f"data.path={directory}/x.txt"), name=":car:")
    shown = capsys.readouterr().out
    assert f"{directory}/x.txt: 8,000 characters" in shown
    assert f"\n{tmp_path}/outputs/runs/:car:\n" in shown
    assert f"  tensorboard --logdir {tmp_path}/outputs/runs/:car:\n" in shown
    train(
        "trainer.max_steps=2",
        quote(f"data.path={directory}/x.txt"),
        "~logger.tensorboard",
        name="bare",
    )
    assert "tensorboard --logdir" not in capsys.readouterr().out


def test_what_a_file_says_steers_no_terminal(terminal):
    output = terminal(80, TERM="dumb")
    console = litchar.terminal.Terminal()
    console.say("a\x1b[2J\x9b2Jb\u202f")
    console.print(console.table(("a\x1b]0;x\x07",), [("\x1b[2J",)]))
    shown = output.getvalue()
    assert "\\x1b[2J\\x9b2Jb\u202f" in shown
    assert not {"\x1b", "\x9b", "\x07"} & set(shown)


def unread(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a script whose output is not read to the end."""
    read, write = os.pipe()
    os.close(read)  # as of `| less`, left with q
    line = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    result = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    return result


def test_a_bar_leaves_nothing_where_no_terminal_is(capsys):
    assert list(litchar.terminal.Terminal().track(range(30), "Scoring")) == list(range(30))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["inspect", "baselines"])
def test_what_nobody_reads_to_its_end_is_done_to_its_end(text_file, tmp_path, name):
    page = tmp_path / "page.html"
    place = [f"page={page}"] if name == "inspect" else []
    result = unread(f"{name}.py", f"data.path={text_file}", "data=text", *place)
    assert (result.returncode, result.stderr) == (0, "")
    assert page.exists() == (name == "inspect")


def test_figures_that_nobody_reads_are_kept(tmp_path):
    figures = tmp_path / "figures.json"
    encode = ("encode", "--megabytes=1", "--repeats=1", f"--json={figures}")
    for result in (unread("scaling.py"), unread("benchmark.py", *encode)):
        assert (result.returncode, result.stderr) == (0, "")
    assert figures.exists()


@pytest.mark.slow
def test_a_comparison_and_a_report_that_nobody_reads_are_written(train, tmp_path):
    run_dir = train("trainer.max_steps=2")
    compared = unread("compare.py", str(run_dir), f"--out={tmp_path}")
    reported = unread("report.py", str(run_dir))
    for place, result in ((tmp_path, compared), (run_dir, reported)):
        assert (result.returncode, result.stderr) == (0, "")
        assert (place / "report.html").exists()


def test_rows_are_printed_as_a_table_of_names_and_figures(capsys):
    rows = [
        {"what": "a", "ms/step": 1.23456, "steps": 1000, "ratio": None},
        {"what": "longer", "ms/step": 20_000.0, "steps": 7, "ratio": 0.5},
    ]
    litchar.terminal.Terminal().print_rows(rows)
    heads, *figures = (
        [cell[1:-1] for cell in re.split("[┃│]", line)[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line[0] in "┃│"
    )
    assert [head.strip() for head in heads] == [*rows[0]]
    assert figures == [
        ["a     ", "  1.235", " 1000", "     "],
        ["longer", " 20,000", "    7", "  0.5"],
    ]
