"""Runs on a cleaned text, and their checkpoints applied to other texts."""

import json

import pytest
import torch

from conftest import composed
from litchar.analysis import evaluate
from litchar.checkpoints import Checkpoint
from litchar.errors import UserError
from litchar.generation import run as generation
from litchar.overrides import quote

CLEANED = "né ab\n" * 700
TEXT = "Ne\u0301 Ab\n" * 699 + "né ¿\u017fb"  # ¿ and the long s are rare; NFKC makes it an s
CLEANING = ("data.normalize=NFKC", "data.lowercase=true", "data.min_count=2")


@pytest.fixture
def train_cleaned(train, tmp_path):
    def train_cleaned():
        (tmp_path / "accents.txt").write_text(TEXT)
        return train(f"data.path={tmp_path / 'accents.txt'}", *CLEANING, "trainer.max_steps=10")

    return train_cleaned


@pytest.fixture
def run_dir(train_cleaned):
    return train_cleaned()


@pytest.fixture
def run_script(capsys):
    """Run generate or evaluate as their scripts do; return the output."""

    def run_script(name: str, function, *overrides: str) -> str:
        config = composed(name, "device=cpu", *map(quote, overrides))
        capsys.readouterr()
        function(config)
        return capsys.readouterr().out

    return run_script


def test_what_was_changed_is_said_and_recorded(train_cleaned, capsys):
    run_dir = train_cleaned()
    said = capsys.readouterr().out
    recorded = json.loads((run_dir / "environment.json").read_text())["changes"]
    assert [line.split(":")[0] for line in recorded] == [
        "data.normalize=NFKC",
        "data.lowercase=true",
        "data.min_count=2",
    ]
    assert "1,399 characters of 3 kinds changed" in recorded[0]
    assert "2 characters of 2 kinds became U+FFFD: 's' (LATIN SMALL LETTER S) once" in recorded[2]
    assert all(line in said for line in recorded)


def test_a_prompt_and_another_text_are_cleaned_as_the_training_text_was(
    run_dir, run_script, tmp_path
):
    assert Checkpoint.load(run_dir / "checkpoints/best.ckpt").vocabulary.characters == (
        "\n abné\ufffd"
    )
    options = (f"checkpoint={run_dir}", "max_new_tokens=9")
    plain = run_script("generate", generation.run, *options, "prompt='né\ufffd\ufffd'")
    unclean = run_script("generate", generation.run, *options, "prompt='Ne\u0301Σ¿'")
    assert plain == unclean
    assert plain.startswith("né\ufffd\ufffd")
    stopped = [
        run_script("generate", generation.run, f"checkpoint={run_dir}", "prompt=a", f"stop={stop}")
        for stop in ("é", "E\u0301")
    ]
    assert stopped[0] == stopped[1]
    assert "é" not in stopped[1]

    figures = []
    for name, text in (("clean.txt", CLEANED), ("unclean.txt", CLEANED.upper())):
        (tmp_path / name).write_text(text)
        options = (f"checkpoint={run_dir}", f"data.path={tmp_path / name}")
        figures.append(run_script("evaluate", evaluate.run, *options).partition(":\n")[2])
    assert figures[0] == figures[1]
    assert "over 4,199 characters" in figures[0]


def test_a_run_from_its_weights_cleans_alike_unless_told_otherwise(train, run_dir, tmp_path):
    (tmp_path / "other.txt").write_text("Ab Ne\u0301\n" * 500)

    def vocabulary_of(*overrides: str) -> str:
        path = f"data.path={tmp_path / 'other.txt'}"
        child = train(path, f"init_from={run_dir}", "trainer.max_steps=2", *overrides, name="child")
        return Checkpoint.load(child / "checkpoints/last.ckpt").vocabulary.characters

    assert vocabulary_of() == "\n abné"
    assert vocabulary_of("data.normalize=false", "data.lowercase=false") == "\n ANbe\u0301"


def test_a_checkpoint_from_before_there_was_cleaning_cleans_nothing(train):
    place = train("trainer.max_steps=2") / "checkpoints/last.ckpt"
    saved = torch.load(place, weights_only=True)
    for name in ("normalize", "lowercase", "min_count"):
        del saved["litchar"]["config"]["data"][name]
    torch.save(saved, place)
    assert Checkpoint.load(place).cleaning.name == ""


def test_a_checkpoint_with_a_cleaning_that_means_nothing_is_refused(train):
    place = train("trainer.max_steps=2") / "checkpoints/last.ckpt"
    for data in ({"normalize": "NFX"}, {"normalize": ["NFC"]}, {"min_count": "x"}, [], "x"):
        saved = torch.load(place, weights_only=True)
        saved["litchar"]["config"]["data"] = data
        torch.save(saved, place)
        with pytest.raises(UserError):
            Checkpoint.load(place)


def test_a_normal_form_that_is_none_is_refused_before_anything_is_written(train, tmp_path):
    with pytest.raises(UserError, match=r"data\.normalize=NFX: must be NFC, NFKC or null"):
        train("data.normalize=NFX")
    assert not (tmp_path / "outputs/runs/run").exists()
