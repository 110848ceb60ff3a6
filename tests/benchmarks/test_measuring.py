"""Benchmarks: options refused before measuring, and statistics of the measurements."""

import argparse
import json
import sys

import pytest

from conftest import ROOT
from litchar.benchmarks import encode, main, overhead


@pytest.fixture
def refused(monkeypatch, capsys):
    """Return the one-line error message for a command line."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts/benchmark.py")])

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        return said.err

    return refused


def test_what_cannot_be_is_refused_before_anything_is_measured(refused, tmp_path):
    assert "--repeats=0: must be at least 1" in refused("encode", "--repeats", "0")
    assert "--megabytes=-1: must be at least 1" in refused("encode", "--megabytes", "-1")
    assert "is a directory" in refused("encode", "--json", str(tmp_path))
    nowhere = str(tmp_path / "nowhere/figures.json")
    assert "there is no directory" in refused("encode", "--json", nowhere)

    assert "nowhere: cannot be read" in refused("encode", "--file", str(tmp_path / "nowhere"))
    text = tmp_path / "text.txt"
    text.write_bytes(b"")
    assert "is empty" in refused("encode", "--file", str(text))
    text.write_bytes("naïve".encode("latin-1"))
    assert "not UTF-8 at byte 2" in refused("encode", "--file", str(text))
    text.write_bytes(b"aaa")
    one = ("--file", str(text), "--megabytes", "1")
    assert "one distinct character" in refused("encode", *one)

    peer = ("--peer", str(tmp_path))
    assert "there is no model.py" in refused("generate", *peer, "--device", "cpu")
    assert "--batch=0: must be" in refused("generate", "--batch", "1", "0", "--device", "cpu")
    assert "--characters=0: must be" in refused("generate", "--characters", "0", "--device", "cpu")
    assert "has no train.py" in refused("train", *peer, "--text", str(text))
    assert "there is no such file" in refused("train", "--text", nowhere)


def test_a_recipe_that_training_refuses_is_refused_with_its_line(refused):
    line = refused("overhead", "--experiment", "teaching_transformr", "--steps", "50")
    assert "there is no such file in conf/experiment; did you mean teaching_transformer?" in line


def test_the_overhead_is_that_within_each_repeat(monkeypatch):
    times = {"own": [10.0, 20.0, 40.0], "trainer": [12.0, 21.0, 44.0]}
    turns = {form: iter(taken) for form, taken in times.items()}
    monkeypatch.setattr(overhead, "_bare", lambda _, form: next(turns[form]))
    monkeypatch.setattr(overhead, "_under_the_trainer", lambda _: next(turns["trainer"]))
    options = argparse.Namespace(experiment="cpu_fast", steps=50, repeats=3)
    trainer, bare = overhead.measure(options)
    assert (trainer["ms a step"], trainer["least"], trainer["most"]) == (21.0, 12.0, 44.0)
    assert trainer["over the bare loop"] == 2.0  # of 2, 1 and 4; the medians differ by 1
    assert trainer["ratio"] == pytest.approx(1.1)
    assert (bare["over the bare loop"], bare["ratio"]) == (0.0, 1.0)


def test_encoders_are_compared_in_bytes_and_written_as_json(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts/benchmark.py")])
    monkeypatch.setattr(encode, "_build", lambda path, _: (path.stat().st_size / 100e6, 50.0))
    monkeypatch.setattr(encode, "_teaching_script", lambda text: len(text.encode()) / 20e6)
    (tmp_path / "text.txt").write_text("съешь" * 1000)
    figures = tmp_path / "figures.json"
    main(["encode", "--megabytes", "1", "--file", f"{tmp_path}/text.txt", "--json", str(figures)])
    ours, theirs = json.loads(figures.read_text(), parse_constant=pytest.fail)
    assert (ours["MB/s"], ours["peak MB"]) == (pytest.approx(100), 50.0)
    assert (theirs["MB/s"], theirs["peak MB"]) == (pytest.approx(20), None)
