"""The reference documents every key, using the text at the key's definition."""

import re
import sys

from commands import ROOT

from conftest import scalars

sys.path.insert(0, str(ROOT / "docs" / "_extensions"))

import configuration

RUNS = (ROOT / "docs" / "runs.md").read_text()


def test_every_key_is_documented_where_it_is_defined():
    found = configuration.files()
    assert len(found) > 30
    of_scripts = [file for file in found if "=" not in file.title and file.title != "train.yaml"]
    # Group files override each other's keys; some scripts share generate's settings.
    documented = {k.name for file in found if file not in of_scripts for k in file.keys if k.says}
    sampling = {k.name for file in found if file.title == "generate.yaml" for k in file.keys}
    for file in found:
        for key in file.keys:
            name = re.sub(r"^(by_device\.\w+|tune\.space)\.", "", key.name)
            known = name in (sampling if file in of_scripts else documented)
            assert key.says or known, f"{file.path}: {key.name} has no comment"


def test_every_key_that_a_run_has_is_in_the_reference(compose):
    def leaves(node, prefix=""):
        for key, value in node.items_ex(resolve=False):
            if hasattr(value, "items_ex") and value:
                yield from leaves(value, f"{prefix}{key}.")
            elif not key.startswith("_"):
                yield f"{prefix}{key}"

    named = {key.name for file in configuration.files() for key in file.keys}
    assert set(leaves(compose("callbacks=early_stopping"))) <= named


def test_comments_and_docstrings_are_read_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(configuration, "CONF", tmp_path)
    (tmp_path / "optimizer").mkdir()
    path = tmp_path / "optimizer" / "mine.yaml"
    path.write_text(
        "# Steps as it likes,\n# and where.\n# python scripts/train.py optimizer=mine\n"
        "defaults:\n  - adamw\n  - override /data: names\n"
        "_target_: litchar.training.optimizers.adamw\n"
        "lr: null # how far\n"
        'text: "a # b" # of a text\n'
        "betas: [0.9, 0.99]\n"
        "# what is above\n# it\ndecay: all\n"
        "inner: # a comment on the group\n  deep: 1 # and one within\n"
        "flow: {a: 1, b: 2}\nspace: {type: int, low: 1} # in Optuna's terms\n"
    )
    file = configuration.read(path)
    assert file.title == "optimizer=mine"
    assert file.description == "Steps as it likes, and where."
    assert file.commands == ["python scripts/train.py optimizer=mine"]
    assert file.defaults == ["adamw", "data=names"]
    assert [(key.name, key.value, key.says) for key in file.keys] == [
        ("optimizer.lr", "null", "how far"),
        ("optimizer.text", '"a # b"', "of a text"),
        (
            "optimizer.betas",
            "[0.9, 0.99]",
            "decay rates of the running means of gradients and of their squares.",
        ),
        ("optimizer.decay", "all", "what is above it"),
        ("optimizer.inner.deep", "1", "and one within"),
        ("optimizer.flow.a", "1", ""),
        ("optimizer.flow.b", "2", ""),
        ("optimizer.space", "{type: int, low: 1}", "in Optuna's terms"),
    ]


def test_every_curve_of_a_run_is_explained(train):
    run_dir = train(dashboard=True)
    for tag in scalars(run_dir / "tensorboard"):
        tag = re.sub(r"^(weights/\w+|activations/\w+)/.+", r"\1/<layer>", tag)
        tag = re.sub(r"^final/\w+", "final/<figure>", tag)
        assert f"`{tag}`" in RUNS or tag in ("epoch", "hp_metric"), tag
    for entry in run_dir.iterdir():
        name = f"{entry.name}/" if entry.is_dir() else entry.name
        assert f"`{name}`" in RUNS or name == ".lock", name
