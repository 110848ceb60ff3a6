"""The page about the code names what is there, and its loop trains exactly as the package does."""

import ast
import csv
import re

import pytest
import torch
from commands import ROOT
from omegaconf import OmegaConf

from litchar.checkpoints import load

PAGE = (ROOT / "docs" / "reading.md").read_text()
(LOOP,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ROWS = re.findall(r"^\| .*", PAGE, re.MULTILINE)[1:]


@pytest.mark.parametrize(
    "settings",
    [
        ("model.dropout=0.2", "model.noise=0.05"),
        ("model=gpt2", "optimizer=adamw", "scheduler=cosine", "trainer.gradient_clip_val=0.1"),
    ],
    ids=["default", "gpt2"],
)
def test_the_loop_gives_the_losses_and_the_weights_of_a_run(
    settings, train, tmp_path, monkeypatch, capsys
):
    run_dir = train("trainer.log_every_n_steps=1", *settings, name="reading")
    monkeypatch.chdir(tmp_path)  # where the page's path leads to the run
    capsys.readouterr()
    names = {}
    exec(LOOP, names)
    printed = [tuple(line.split()) for line in capsys.readouterr().out.splitlines()]
    with open(run_dir / "metrics.csv", newline="") as file:
        assert printed == [(row["step"], row["train/loss"]) for row in csv.DictReader(file)]
    assert len(printed) == 20
    weights = {f"model.{name}": weight for name, weight in names["model"].state_dict().items()}
    saved = load(run_dir / "checkpoints" / "last.ckpt")["state_dict"]
    torch.testing.assert_close(weights, saved, rtol=0, atol=0)


def test_what_the_page_says_to_open_is_there(compose):
    links = dict(re.findall(r"^\[(\S+)\]: \.\./(\S+)$", PAGE, re.MULTILINE))
    assert all((ROOT / path).is_file() for path in links.values())
    config = compose()
    for _, _, _, here, settings, _ in (row.split("|") for row in ROWS):
        for part in here.split(";"):
            spans, link = re.findall(r"`([\w.]+)`", part), re.search(r"\[(\S+)\]", part)
            names = _defined(links[link[1]]) if link else set()
            assert set(spans) <= names, part
        for key in re.findall(r"`([\w.]+)`", settings):
            group, _, name = key.rpartition(".")
            assert name in (OmegaConf.select(config, group) if group else config), key


def _defined(path: str) -> set[str]:
    """Return the functions and classes of a file, and the methods as `Class.method`."""
    names = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names
