"""Commands and files in the documentation work as described."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from commands import (
    DOCUMENTS,
    ROOT,
    Command,
    all_commands,
    commands_of,
    examples,
    give_texts,
    lay_out,
    read,
    run,
)
from omegaconf import OmegaConf

from conftest import summary


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the project with everything that the documents add, and a reader's texts."""
    directory = tmp_path_factory.mktemp("checkout")
    lay_out(directory)
    give_texts(directory)
    return directory


def environment(checkout: Path) -> dict[str, str]:
    """Environment variables for commands in `checkout`, with its own cache and runs."""
    own = {"LITCHAR_CACHE": str(checkout / "cache"), "LITCHAR_OUTPUTS": str(checkout / "outputs")}
    return os.environ | own | {"PYTHONPATH": str(checkout / "src")}


def test_every_command_is_taken_by_its_program(checkout):
    OmegaConf.register_new_resolver("unique", lambda: "test", replace=True)
    wrong = []
    for command in all_commands():
        try:
            read(command, checkout)
        except (Exception, SystemExit) as error:  # whatever a program raises or exits with
            wrong.append(f"{command.document}:{command.line}: {command.text}: {error!r}")
    assert not wrong


def test_a_command_that_no_program_takes_is_noticed(checkout):
    for text in (
        "python scripts/train.py model.n_layers=2",
        "python scripts/train.py -m model=transformer,convolution",
        "python scripts/evaluate.py data=ml",
        "python scripts/benchmark.py encode --megabyte=1 --once",
        'pip install -e ".[everything]"',
        "tensorboard --log outputs --nothing",
        "python scripts/train.py && python scripts/genrate.py",
    ):
        with pytest.raises((Exception, SystemExit)):
            read(Command("a test", 1, text), checkout)


def test_every_test_that_a_document_names_is_there():
    named = {
        name for page in DOCUMENTS for name in re.findall(r"`(test(?:_\w+){3,})`", page.read_text())
    }
    files = (ROOT / "tests").rglob("test_*.py")
    there = {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert len(named) > 9
    assert named <= there


@pytest.mark.slow
def test_the_documents_text_and_optimizer_are_added_and_trained_with(checkout):
    added = [len(content.splitlines()) for _, content, _ in examples(ROOT / "CONTRIBUTING.md")]
    assert len(added) == 4
    assert sum(added[:2]) <= 30
    assert sum(added[2:]) <= 30
    setting = (
        "data=sums optimizer=lion optimizer.lr=2e-3 trainer.accelerator=cpu trainer.max_steps=200"
    )
    small = "model.n_layer=1 model.n_embd=32 model.n_head=2 data.block_size=32 run_dir=outputs/sums"
    words = ["python", "scripts/train.py", *setting.split(), *small.split()]
    subprocess.run(words, cwd=checkout, env=environment(checkout), capture_output=True, check=True)
    figures = summary(checkout / "outputs/sums")
    assert figures["vocab_size"] == len("0123456789+=\n")
    assert figures["val_loss"] < 2.25  # untrained: log(13), 2.56


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "conf"], ids=lambda path: path.stem)
@pytest.mark.slow
def test_every_command_runs(document, tmp_path):
    lay_out(tmp_path)
    give_texts(tmp_path)
    own = environment(tmp_path)
    before = Command("", 0, "python scripts/train.py run_dir=outputs/runs/one")
    assert run(before, tmp_path, own) == 0  # what checkpoint=latest means
    for command in commands_of(document):
        assert run(command, tmp_path, own) in (0, None), command
