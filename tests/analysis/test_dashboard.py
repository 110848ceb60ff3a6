"""TensorBoard data besides curves; tests/test_tensorboard.py views it in a browser."""

import csv
import functools
import json
from io import BytesIO

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from conftest import scalars, summary
from litchar.analysis import dashboard
from litchar.analysis.confusions import Confusion, predictions
from litchar.analysis.dashboard import (
    LAYOUT,
    Attention,
    Confusions,
    Layers,
    confusion_table,
    embedding_of,
)
from litchar.checkpoints import Checkpoint, load
from litchar.errors import UserError
from litchar.text import Vocabulary
from litchar.training.loggers import TensorBoard, hyperparameters


@pytest.fixture
def train(train):
    return functools.partial(train, dashboard=True)


def events(run_dir):
    return EventAccumulator(
        str(run_dir / "tensorboard"), size_guidance={"tensors": 0, "images": 0}
    ).Reload()


def texts(run_dir, tag):
    """Return the texts of a tag, by step."""
    stored = events(run_dir).Tensors(f"{tag}/text_summary")
    return {event.step: event.tensor_proto.string_val[0].decode() for event in stored}


def test_watching_a_run_changes_no_bit_of_it(train):
    plain = train("model.dropout=0.2", "callbacks=none", name="plain")
    watched = train("model.dropout=0.2", name="watched")
    a, b = (load(run / "checkpoints/last.ckpt") for run in (plain, watched))
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=0)
    a, b = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (a, b))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    a, b = (scalars(run / "tensorboard") for run in (plain, watched))
    same = {"train/loss", "val/loss", "train/eval_loss", "grad_norm", "lr"}
    assert same <= a.keys()
    assert {tag: a[tag] for tag in same} == {tag: b[tag] for tag in same}
    assert (plain / "samples.txt").read_text() == (watched / "samples.txt").read_text()
    assert not events(plain).Tags()["images"]
    assert "custom_scalars__config__" not in events(plain).Tags()["tensors"]


def test_a_run_is_shown_from_all_sides(train):
    run_dir = train("trainer.val_check_interval=2", "trainer.max_steps=11", "data.block_size=32")
    found, curves = events(run_dir), scalars(run_dir / "tensorboard")
    validated = [2, 4, 6, 8, 10, 11]
    layers = {"token_embedding", "blocks.0", "blocks.1", "norm", "head"}
    for what in ("weights/update_ratio", "activations/rms", "activations/max"):
        shown = {tag.removeprefix(f"{what}/") for tag in curves if tag.startswith(f"{what}/")}
        assert shown == layers
        for layer in layers:
            assert [step for step, _ in curves[f"{what}/{layer}"]] == validated
    assert all(0 < v < 1 for _, v in curves["weights/update_ratio/blocks.0"])
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    ratio = curves["weights/update_ratio/head"][-1][1]
    assert float(rows[11]["weights/update_ratio/head"]) == pytest.approx(ratio)

    drawn = [2, 4, 8, 11]  # validations 1, 2 and 4, and the last
    assert set(found.Tags()["images"]) == {"attention/blocks.0", "attention/blocks.1"}
    pictures = found.Images("attention/blocks.1")
    assert [picture.step for picture in pictures] == drawn
    assert pictures[0].encoded_image_string != pictures[-1].encoded_image_string
    image = Image.open(BytesIO(pictures[0].encoded_image_string))
    assert image.size == (pictures[0].width, pictures[0].height)

    tables = texts(run_dir, "confusions")
    assert list(tables) == drawn
    assert "| in the text | likeliest | times |" in tables[11]
    assert "n_embd: 16" in texts(run_dir, "settings")[0]
    assert "custom_scalars__config__" in found.Tags()["tensors"]

    checkpoint = Checkpoint.load(run_dir / "checkpoints/last.ckpt")
    with open(run_dir / "tensorboard/characters.tsv") as file:
        points = np.loadtxt(file, delimiter="\t")
    expected = checkpoint.weights["token_embedding.weight"].numpy()
    np.testing.assert_allclose(points, expected, rtol=1e-4)
    rows = (run_dir / "tensorboard/characters_labels.tsv").read_text().splitlines()
    assert rows[0].split("\t") == ["character", "name", "kind"]
    assert [row.split("\t")[0] for row in rows[1:]] == ["\\n", "␣", *"0123456789adn"]
    assert {len(row.split("\t")) for row in rows} == {3}
    assert "characters.tsv" in (run_dir / "tensorboard/projector_config.pbtxt").read_text()

    final = {tag: points for tag, points in curves.items() if tag.startswith("final/")}
    figures = summary(run_dir)
    assert final["final/best_val_bpc"] == [(0, pytest.approx(figures["best_val_bpc"]))]
    assert final["final/parameters"] == [(0, figures["parameters"])]
    assert "final/test_loss" not in final  # there is no test split


@pytest.mark.parametrize(
    ("setting", "drawn"),
    [
        (
            [
                "trainer.limit_train_batches=2",
                "trainer.val_check_interval=2",
                "trainer.check_val_every_n_epoch=3",
                "trainer.max_steps=24",
            ],
            [6, 12, 24],  # of 6, 12, 18, 24
        ),
        (
            [
                "trainer.limit_train_batches=5",
                "trainer.val_check_interval=2",
                "trainer.check_val_every_n_epoch=1",
            ],
            [2, 4, 9, 19, 20],  # of 2, 4, 7, 9, 12, 14, 17, 19, 20
        ),
        (
            [
                "trainer.val_check_interval=4",
                "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping",
                "+callbacks.stop.monitor=val/loss",
                "+callbacks.stop.patience=2",
                "+callbacks.stop.min_delta=9",
            ],
            [4, 8, 12],  # where it stops
        ),
    ],
)
def test_pictures_are_of_the_first_second_fourth_validation_and_the_last(train, setting, drawn):
    pictures = events(train(*setting)).Images("attention/blocks.1")
    assert [picture.step for picture in pictures] == drawn


class Unfreezes(Callback):
    """Trains the first block only from step 10 on."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.model.blocks[0].requires_grad_(trainer.global_step >= 10)


def test_a_layer_that_is_trained_from_a_measured_step_on_ends_no_run(train):
    freezes = "+callbacks.freezes._target_=test_dashboard.Unfreezes"
    layers = "+callbacks.layers._target_=litchar.analysis.dashboard.Layers"
    run_dir = train("callbacks=none", freezes, layers, "optimizer=adamw")
    curves = scalars(run_dir / "tensorboard")
    assert [step for step, _ in curves["weights/update_ratio/blocks.1"]] == [10, 20]
    assert [step for step, _ in curves["weights/update_ratio/blocks.0"]] == [20]


def test_the_update_ratio_is_that_of_the_step(train):
    before = train(
        "trainer.max_steps=2", "trainer.val_check_interval=2", "optimizer.lr=0.01",
        "scheduler=constant", name="before",
    )  # fmt: skip
    run_dir = train(
        "trainer.max_steps=3", "trainer.val_check_interval=3", "optimizer.lr=0.01",
        "scheduler=constant", name="after",
    )  # fmt: skip
    old, new = (
        Checkpoint.load(run / "checkpoints/last.ckpt").weights["head.weight"]
        for run in (before, run_dir)
    )
    ((step, ratio),) = scalars(run_dir / "tensorboard")["weights/update_ratio/head"]
    assert step == 3
    assert ratio == pytest.approx(float((new - old).norm() / new.norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("bigram", {"next_logits"}),
        ("gru", {"token_embedding", "layers.l0", "layers.l1", "head"}),
    ],
)
def test_other_models_show_what_they_have(train, text_file, model, layers):
    small = ("model.n_embd=8",) if model == "gru" else ()
    run_dir = train(
        f"model={model}",
        *small,
        f"data.path={text_file}",
        "data.block_size=8",
        "data.batch_size=4",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
        "trainer.limit_val_batches=4",
        "trainer.accelerator=cpu",
        only=True,
    )
    prefix = "weights/update_ratio/"
    curves = scalars(run_dir / "tensorboard")
    assert {tag.removeprefix(prefix) for tag in curves if tag.startswith(prefix)} == layers
    assert events(run_dir).Tags()["images"] == []
    assert (run_dir / "tensorboard/characters.tsv").exists()
    assert texts(run_dir, "confusions")


def test_a_part_can_be_left_out(compose):
    config = compose("~callbacks.attention")
    assert list(config.callbacks) == ["overview", "layers", "confusions", "embeddings"]
    assert list(compose("callbacks=none").callbacks) == []
    assert "early_stopping" in compose("callbacks=early_stopping").callbacks


def test_a_table_of_confusions_shows_every_character_as_itself():
    vocabulary = Vocabulary("|`<\n*")  # in order: \n * < ` |
    table = confusion_table([Confusion(4, 3, 1200, 0.25), Confusion(2, 0, 7, 0.5)], vocabulary, "")
    assert table.splitlines()[-2:] == [
        "| &#124; | &#96; | 1,200 | 25.0% |",
        "| &#60; | &#92;n | 7 | 50.0% |",
    ]


# Of 800 characters: windows of 16, every 192 and side by side.
@pytest.mark.parametrize(("characters", "read"), [(64, 5 * 16), (500, 800)])
def test_confusions_read_at_least_what_is_asked(train, monkeypatch, characters, read):
    sizes = []

    def predicted(model, windows, device):
        windows = list(windows)
        sizes.append(sum(idx.numel() for idx, _ in windows))
        return predictions(model, windows, device)

    monkeypatch.setattr(dashboard, "predictions", predicted)
    train(f"callbacks.confusions.characters={characters}", "data.val_batch_size=64")
    assert set(sizes) == {read}


def test_the_embedding_is_the_table_with_a_row_for_each_character():
    model = nn.Sequential(nn.Embedding(9, 2), nn.Embedding(5, 3), nn.Linear(3, 5))
    assert embedding_of(model, 5) is model[1].weight
    assert embedding_of(model, 4) is None


def test_every_chart_of_the_layout_finds_its_curves(train):
    import re

    curves = scalars(train("trainer.max_steps=2", "trainer.val_check_interval=1") / "tensorboard")
    for charts in LAYOUT.values():
        for title, (_, patterns) in charts.items():
            for pattern in patterns:
                assert any(re.match(pattern, tag) for tag in curves), title


def test_points_that_cannot_be_written_cost_nothing(tmp_path):
    logger = TensorBoard(tmp_path, name="", version="")
    (tmp_path / "characters_labels.tsv").mkdir()  # a file cannot take its place
    logger.log_points("characters", np.zeros((2, 2)), ["character"], [["a"], ["b"]])
    assert not (tmp_path / "projector_config.pbtxt").exists()
    assert not list(tmp_path.glob(".draft*"))


def test_an_empty_list_is_a_hyperparameter_too(train):
    found = events(train("callbacks=none", "trainer.max_steps=2", "model.ngrams=[]"))
    shown = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"model.ngrams" in shown
    assert b"[]" in shown


def test_hyperparameters_are_those_that_runs_are_compared_by():
    settings = {
        "seed": 1,
        "run_dir": "x",
        "by_device": {"cpu": {"compile": False}},
        "model": {"n_layer": 4, "n_hidden": None},
        "modelling": 1,
        "trainer": {"max_steps": 5, "max_steps_more": 1, "devices": 1},
        "data": {"path": "/n.txt", "pattern": "*"},
    }
    assert hyperparameters(settings) == {
        "seed": 1,
        "model.n_layer": 4,
        "trainer.max_steps": 5,
        "data.path": "/n.txt",
    }


@pytest.mark.parametrize(("steps", "recorded"), [(20, 5), (3, 3)])
def test_profile_writes_a_trace_of_a_few_steps_and_a_table(train, capsys, steps, recorded):
    run_dir = train("profile=true", f"trainer.max_steps={steps}", "trainer.val_check_interval=30")
    trace = json.loads((run_dir / "profile/trace.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert names.count("Optimizer.step#Muon.step") == recorded
    assert "Muon.step" in (run_dir / "profile/table.txt").read_text()
    assert str(run_dir / "profile/trace.json") in capsys.readouterr().out.replace("\n", "")


def test_profile_counts_batches_under_accumulation(train, monkeypatch):
    began = []
    start = torch.profiler.profile.start
    monkeypatch.setattr(torch.profiler.profile, "start", lambda it: began.append(it) or start(it))
    steps = ("trainer.max_steps=6", "trainer.accumulate_grad_batches=4")
    run_dir = train("profile=true", *steps, "trainer.val_check_interval=24")
    trace = json.loads((run_dir / "profile/trace.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert len(began) == 1
    assert names.count("aten::cross_entropy_loss") == 5


@pytest.mark.parametrize(
    ("callback", "setting"),
    [
        (Attention, {"length": 0}),
        (Layers, {"length": 2.5}),
        (Confusions, {"characters": "abc"}),
        (Confusions, {"most": -1}),
    ],
)
def test_a_setting_that_is_unfit_is_refused(callback, setting):
    (name, value) = next(iter(setting.items()))
    key = rf"callbacks\.{callback.__name__.lower()}\.{name}={value}: must be a whole number"
    with pytest.raises(UserError, match=key):
        callback(**setting)
