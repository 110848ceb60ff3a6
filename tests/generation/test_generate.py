"""`scripts/generate.py`: prompts in; texts, JSON or colours out."""

import codecs
import gc
import io
import json
import math
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from conftest import ROOT
from litchar.checkpoints import Checkpoint
from litchar.errors import Interrupted, UserError
from litchar.generation.prompt_loop import change
from litchar.generation.run import run
from litchar.generation.scoring import log_probs_of
from litchar.generation.writing import Writing, typed
from litchar.text import Vocabulary

LETTERS = Vocabulary("abcdef")


def written(text: str, *stop: str) -> tuple[list[str], Writing]:
    steps = ((int(token), -0.5) for token in LETTERS.encode(text))
    writing = Writing(steps, LETTERS, stop)
    return list(writing), writing


def test_a_text_ends_before_the_first_stop_string():
    pieces, writing = written("abcdefabc", "ef", "de")
    assert "".join(pieces) == writing.text == "abc"
    assert writing.finish == "stop"
    assert len(writing.log_probs) == 5  # up to the end of the stop string


def test_what_may_become_a_stop_string_is_held_back_and_given_up():
    pieces, writing = written("ababac", "abac")
    assert pieces == ["", "", "", "ab", "", ""]  # the fourth letter shows that two were no stop
    assert writing.text == "ab"
    pieces, writing = written("abaabd", "abac")
    assert pieces == ["", "", "", "aba", "", "abd", ""]
    assert writing.finish == "length"


def test_a_text_that_is_left_keeps_nothing():
    """Its steps hold the KV cache, and a full GPU memory does not trigger the collector."""
    steps = ((int(token), -0.5) for token in LETTERS.encode("abcdef"))
    writing = Writing(steps, LETTERS)
    left = weakref.ref(steps)
    next(iter(writing))
    gc.disable()
    try:
        del writing, steps
        assert left() is None
    finally:
        gc.enable()


def test_a_text_that_has_stopped_keeps_no_cache():
    steps = ((int(token), -0.5) for token in LETTERS.encode("abcdef"))
    writing = Writing(steps, LETTERS, ["d"])
    left = weakref.ref(steps)
    del steps
    assert writing.whole() == writing.whole() == "abc"
    assert left() is None


@pytest.mark.parametrize(
    ("typed", "stop"),
    [
        ("stop=a b", "a b"),
        ('stop=" "', " "),
        (r"stop='a\n'", r"a\n"),
        ('stop=["a", " b"]', ["a", " b"]),
        ('stop="', '"'),
        ('stop="a" or', '"a" or'),
        ("stop=null", None),
    ],
)
def test_a_stop_typed_in_quotes_is_what_they_enclose(typed, stop):
    config = OmegaConf.create({"stop": "before"})
    change(config, typed, lambda tried: None)
    assert config.stop == stop


def test_a_text_read_in_parts_is_the_same():
    steps = ((int(token), -0.5) for token in LETTERS.encode("abcdef"))
    writing = Writing(steps, LETTERS, ["de"])
    parts = [next(iter(writing)) for _ in range(4)]  # the last is held back
    assert parts == ["a", "b", "c", ""]
    assert writing.whole() == "abc"
    assert writing.finish == "stop"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where a run lies that tests share."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def run_dir(train, kept):
    if not kept.exists():
        shutil.move(train("trainer.max_steps=2", "trainer.val_check_interval=2"), kept)
    return kept


@pytest.fixture
def generate(run_dir, tmp_path, capsys):
    def generate(**settings) -> str:
        config = OmegaConf.load(ROOT / "conf" / "generate.yaml")
        config.merge_with({"checkpoint": str(run_dir), "max_new_tokens": 30, **settings})
        run(config)
        return capsys.readouterr().out

    return generate


def test_a_line_of_json_for_each_prompt_and_seed(generate, run_dir, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbf1 and 2\r\n\n33\n")  # as Notepad does
    out = generate(prompts=str(tmp_path / "prompts.txt"), num_samples=2, json=True, seed=5)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["prompt"], line["seed"]) for line in lines] == [
        ("1 and 2", 5),
        ("1 and 2", 6),
        ("33", 5),
        ("33", 6),
    ]
    model = Checkpoint.load(run_dir / "checkpoints/best.ckpt").build_model()
    vocabulary = Checkpoint.load(run_dir / "checkpoints/best.ckpt").vocabulary
    for line in lines:
        assert line["finish"] == "length"
        assert len(line["text"]) == len(line["log_probs"]) == 30
        ids = vocabulary.encode(line["prompt"] + line["text"]).astype(np.int64)
        scored = log_probs_of(model, ids)[-30:]
        np.testing.assert_allclose(line["log_probs"], scored, atol=2e-6)
    alone = json.loads(generate(prompt="33", json=True, seed=6))
    assert alone == lines[3]


def test_several_texts_are_parted_and_a_stop_string_ends_each(generate):
    out = generate(prompt="1", num_samples=3, seed=1, max_new_tokens=200, stop=["a", "\n"])
    texts = out.split("\n--------\n")
    assert len(texts) == 3
    assert all(text[0] == "1" for text in texts)
    assert not any("a" in text or "\n" in text.rstrip("\n") for text in texts)


def test_a_text_that_a_signal_cuts_off_ends_its_line(generate, monkeypatch, capsys):
    def interrupted(text):
        yield "no "
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(Writing, "__iter__", interrupted)
    with pytest.raises(Interrupted):
        generate(prompt="1 and ")
    assert capsys.readouterr().out == "1 and no \n"


def test_a_signal_as_the_prompt_is_shown_ends_its_line(generate, monkeypatch, capsys):
    write = sys.stdout.write

    def written(text):
        write(text)
        if text == "1 and ":  # at once, where PYTHONUNBUFFERED is set
            raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(sys.stdout, "write", written)
    with pytest.raises(Interrupted):
        generate(prompt="1 and ")
    assert capsys.readouterr().out == "1 and \n"


def test_a_new_line_can_be_typed_in_a_stop_string(generated, run_dir):
    setting = (f"checkpoint={run_dir}", "prompt=1", "seed=1", "max_new_tokens=300", "json=true")
    for stop in (r"stop=\n", r'stop=["\n", "THE END"]'):
        text = json.loads(generated(*setting, stop).out)
        assert text["finish"] == "stop"
        assert "\n" not in text["text"]


def test_what_is_typed_in_a_line_has_new_lines_and_backslashes():
    assert typed(r"a\nb\\n\\\n\x") == "a\nb\\n\\\n\\x"
    assert typed("\\") == "\\"


def test_a_score_is_the_models_own_loss(generate, run_dir):
    text = "1 and 2\n1 and"  # within the context of 16
    figures = json.loads(generate(score=text, json=True))
    checkpoint = Checkpoint.load(run_dir / "checkpoints/best.ckpt")
    ids = torch.from_numpy(checkpoint.vocabulary.encode(text).astype(np.int64))
    with torch.inference_mode():
        log_probs = checkpoint.build_model()(ids[None])[0, :-1].log_softmax(-1)
    expected = -log_probs.gather(1, ids[1:, None]).mean().item() / math.log(2)
    assert figures["bits_per_character"] == pytest.approx(expected, abs=1e-5)
    shown = generate(score=text)
    assert shown.startswith(text)
    assert f"{expected:.4f} bits per character over 12 characters" in shown


def test_a_pipe_is_read_as_the_prompt(generate, monkeypatch):
    for mark in ("", "\ufeff"):  # of a file that an editor marked as UTF-8
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{mark}1 and 2\n"))
        assert generate() == generate(prompt="1 and 2")
    monkeypatch.setattr(sys, "stdin", None)
    assert generate() == generate(prompt="")


def test_a_pipe_that_stays_open_is_said_to_be_read(generate, monkeypatch):
    said = io.StringIO()

    class Slow(io.StringIO):
        def read(self) -> str:
            deadline = time.monotonic() + 60
            while not said.getvalue().endswith("\n"):
                assert time.monotonic() < deadline
            return super().read()

    monkeypatch.setattr("litchar.generation.run.SECONDS_BEFORE_SAYING", 0)
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(sys, "stdin", Slow("1 and 2\n"))
    assert generate() == generate(prompt="1 and 2")
    assert "Reading the prompt from standard input" in said.getvalue()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": "/nowhere/p.txt"}, r"prompts=/nowhere/p.txt: cannot be read"),
        ({"prompts": "/"}, r"prompts=/: cannot be read"),
        ({"prompts": "~nobody-here.txt"}, r"prompts=~nobody-here.txt: cannot be read"),
        ({"prompts": os.devnull}, r"has no prompt"),
        ({"prompt": "1", "prompts": "x"}, r"prompts and prompt: give only one of them"),
        ({"prompt": "1", "score": "12"}, r"score and prompt: give only one of them"),
        ({"prompts": "x", "score": "12"}, r"prompts and score: give only one of them"),
        ({"score": "1"}, r"score: needs 2 characters"),
        ({"score": "1é"}, r"never saw 'é'"),
        ({"prompt": "1", "stop": ""}, r"stop=: must be a non-empty text"),
        ({"prompt": "1", "stop": ["a", 3]}, r"stop=.*must be a non-empty text"),
        ({"prompt": "1", "json": "yes please"}, r"json=yes please: must be true or false"),
        ({"prompt": "1", "seed": -1}, r"seed=-1"),
        ({"prompt": "1", "max_new_tokens": True}, r"max_new_tokens=True"),
        ({"prompt": "1", "min_p": 2}, r"min_p=2"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(generate, settings, message):
    with pytest.raises(UserError, match=message):
        generate(**settings)


def test_prompts_that_are_no_text_are_refused_with_the_place(generate, tmp_path):
    (tmp_path / "p.txt").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 2"):
        generate(prompts=str(tmp_path / "p.txt"))


def test_a_terminal_is_asked_for_prompts(run_dir):
    """A real terminal: prompts, settings, a mistake, history, Ctrl-C mid-text, Ctrl-D."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "scripts" / "generate.py"),
            f"checkpoint={run_dir}",
            "max_new_tokens=12",
        ],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "dumb", "PYTHONIOENCODING": "utf-8:strict"},
        start_new_session=True,
    )
    os.close(theirs)
    seen = ""
    decode = codecs.getincrementaldecoder("utf-8")(
        "replace"
    ).decode  # a character may come in two reads

    def until(words: str) -> str:
        nonlocal seen
        began = time.monotonic()
        while words not in seen:
            assert time.monotonic() - began < 120, seen
            if select.select([ours], [], [], 1)[0]:
                seen += decode(os.read(ours, 4096))
        before, _, seen = seen.partition(words)
        return before + words

    def type_(line: str) -> None:
        os.write(ours, line.encode())

    try:
        until(":help")
        until("> ")
        type_("1 and 2\n")
        until("1 and 2\r\n")  # the echo of what was typed
        first = until("> ")
        assert first.startswith("1 and 2")
        type_("\x1b[A\n")  # arrow up: the same prompt, another seed
        until("\r\n")
        assert until("> ").startswith("1 and 2")
        type_(":temperature=hot\n")
        assert "error: temperature=hot: must be a number" in until("\r\n> ")
        type_(":tempo=1\n")
        assert "write :KEY=VALUE with one of" in until("\r\n> ")
        type_(":stop=a\\${x\n")  # as it stands, to OmegaConf too
        type_(":stop=\n")
        assert "error: stop=: must be a non-empty text" in until("must be a non-empty text")
        until("> ")
        os.write(ours, b"\xff\n")
        assert "error: what you typed is not utf-8" in until("is not utf-8")
        until("> ")
        type_(":seed=1337\n")
        until("> ")
        type_("1 and 2\n")
        until("1 and 2\r\n")
        assert until("> ") == first
        type_("é\n")
        assert "never saw 'é'" in until("\r\n> ")
        type_(":max_new_tokens=100000000\n")
        until("> ")
        type_("3\n")
        until("3\r\n3")
        process.send_signal(signal.SIGINT)
        until("\r\n> ")
        type_(":settings\n")
        settings = until("\r\n> ")
        assert "max_new_tokens=100000000" in settings
        assert "stop=a\\${x\r\n" in settings
        type_(':stop=[qqq, "z\\\\n"]\n')
        until("> ")
        type_(":settings\n")
        assert 'stop=["qqq", "z\\\\n"]\r\n' in until("\r\n> ")  # a list
        type_(":stop=[]\n")
        until("> ")
        type_(":settings\n")
        assert "stop=[]\r\n" in until("\r\n> ")
        type_("\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(ours)
