"""Whole runs, in this process."""

import copy
import csv
import itertools
import json
import math
import os
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import litchar
from conftest import ROOT, SMALL, scalars, summary
from litchar import signals
from litchar.checkpoints import Checkpoint, load
from litchar.errors import Interrupted, UserError, is_users
from litchar.models import Transformer
from litchar.settings import flatten, within
from litchar.training import progress
from litchar.training.callbacks import sample
from litchar.training.checks import check_settings
from litchar.training.resolve import (
    is_length_open,
    resolve_by_device,
    resolve_dropout,
    resolve_steps,
)
from litchar.training.summary import KEYS


def test_a_run_directory_tells_the_whole_story(train, text_file):
    run_dir = train("data.test_fraction=0.1")
    figures = summary(run_dir)
    assert list(figures) == list(KEYS)
    assert figures["status"] == "completed"
    assert figures["steps"] == figures["best_step"] == 20
    assert figures["characters_seen"] == 20 * 8 * 16
    per_second = figures["characters_seen"] / figures["train_seconds"]
    assert figures["characters_per_second"] == pytest.approx(per_second)
    assert figures["vocab_size"] == 15
    assert figures["device"] == "cpu"
    assert figures["best_val_bpc"] == pytest.approx(figures["best_val_loss"] / math.log(2))
    for key in ("train_loss", "val_loss", "test_loss", "best_val_loss"):
        assert 1 < figures[key] < math.log(15)
    assert 0 < figures["train_seconds"] < figures["total_seconds"]
    assert Checkpoint.load(figures["checkpoint"]).step == 20
    assert json.loads((run_dir / "environment.json").read_text())["text"] == str(text_file)

    with open(run_dir / "metrics.csv", newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert list(rows) == [1, 5, 10, 15, 20]
    assert float(rows[20]["val/loss"]) == figures["val_loss"]

    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    scalars = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert [step for step, _ in scalars["train/loss"]] == [1, 5, 10, 15, 20]
    assert {"val/bpc", "lr", "grad_norm", "speed/chars_per_second"} <= scalars.keys()
    assert scalars["val/loss"][-1] == (20, pytest.approx(figures["val_loss"], rel=1e-6))
    assert scalars["best_val_loss"][-1][1] == pytest.approx(figures["best_val_loss"], rel=1e-6)
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert (run_dir / "samples.txt").read_text().count("--- step") == 2


def test_two_runs_of_a_seed_agree_bit_for_bit_and_seeds_differ(train):
    first, second, other = (
        Checkpoint.load(
            train("model.dropout=0.1", f"seed={seed}", name=name) / "checkpoints/last.ckpt"
        )
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for name, weight in first.weights.items():
        assert torch.equal(weight, second.weights[name])
    assert not torch.equal(first.weights["head.weight"], other.weights["head.weight"])


@pytest.mark.parametrize("setting", ["data.num_workers=2", "data.val_batch_size=3"])
def test_workers_and_validation_batches_change_no_figure(train, setting):
    plain, changed = summary(train(name="plain")), summary(train(setting, name="changed"))
    assert changed["val_loss"] == pytest.approx(plain["val_loss"], abs=1e-6)
    assert changed["train_loss"] == pytest.approx(plain["train_loss"], abs=1e-6)


def test_accumulated_batches_equal_one_large_batch(train, tmp_path):
    # Windows are numbered consecutively: two batches of 4 have the windows of one batch of 8.
    large = Checkpoint.load(train(name="large") / "checkpoints/last.ckpt")
    small = Checkpoint.load(
        train(
            "data.batch_size=4",
            "trainer.accumulate_grad_batches=2",
            "trainer.val_check_interval=20",
            name="s",
        )
        / "checkpoints/last.ckpt"
    )
    assert large.step == small.step == 20
    reported = []
    for run in ("large", "s"):
        with open(tmp_path / f"outputs/runs/{run}/metrics.csv", newline="") as file:
            reported.append({row["step"]: row["train/loss"] for row in csv.DictReader(file)})
    for step in ("1", "5", "20"):
        assert float(reported[0][step]) == pytest.approx(float(reported[1][step]), abs=2e-3)
    for name, weight in large.weights.items():
        torch.testing.assert_close(weight, small.weights[name], atol=2e-4, rtol=1e-3)


def test_the_last_step_is_validated_whatever_the_interval(train):
    figures = summary(train("trainer.max_steps=13", "trainer.val_check_interval=10"))
    assert figures["steps"] == figures["best_step"] == 13


@pytest.mark.parametrize(
    ("steps", "val_characters", "interval"),
    [
        (1000, 10_000, 100),  # ten validations take little of the time
        (1000, 10 * 3 * 1000 * 128, 500),  # one would take ten times as long as all steps
        (1000, 3 * 1000 * 128 // 4, 250),  # four take as long
        (7, 100, 1),
    ],
)
def test_validations_take_no_longer_than_steps(compose, steps, val_characters, interval):
    config = compose("data.batch_size=8", "data.block_size=16", f"trainer.max_steps={steps}")
    resolve_steps(config, 10 * val_characters, val_characters)
    assert config.trainer.val_check_interval == interval


@pytest.mark.parametrize(
    ("given", "characters", "steps"),
    [
        ((), 1000, 40),  # 40 passes of 8 windows of 125
        ((), 10**6, 1000),  # what a CPU takes by default
        (("trainer.max_steps=90",), 1000, 90),
        (("trainer.max_epochs=90",), 1000, 90),
        (("trainer.max_epochs=90", "trainer.max_steps=80"), 1000, 80),  # what comes first
        (("trainer.max_epochs=90", "trainer.max_steps=100"), 1000, 90),
        (("trainer.max_time=00:00:00:01",), 1000, -1),
    ],
)
def test_a_short_text_is_not_gone_through_without_end_unless_told(
    compose, given, characters, steps
):
    config = compose("data.batch_size=8", "data.block_size=125", "trainer.accelerator=cpu", *given)
    by_default = is_length_open(config)
    resolve_by_device(config)
    resolve_steps(config, characters, characters // 9, by_default)
    assert config.trainer.max_steps == steps


@pytest.mark.parametrize(
    ("steps", "width", "dropout", "noise"),
    [
        (499, 64, 0.0, 0.0),
        (500, 64, 0.1, 0.0),
        (1999, 64, 0.1, 0.0),
        (2000, 64, 0.2, 0.0),
        (-1, 64, 0.2, 0.0),  # without end
        (2000, 8, 0.0, 0.0),
        (2000, 112, 0.2, 0.0),  # 163 thousand weights, of 200
        (2000, 128, 0.2, 0.05),
        (1999, 128, 0.1, 0.0),
    ],
)
def test_what_could_be_learnt_by_heart_is_trained_with_dropout_and_noise(
    compose, steps, width, dropout, noise
):
    sizes = ("data.batch_size=10", "data.block_size=10", f"trainer.max_steps={steps}")
    shape = ("model.n_layer=1", "model.n_head=1", f"model.n_embd={width}")
    config = compose(*sizes, *shape)
    resolve_dropout(config, 100 * 100, vocab_size=20)
    assert config.model.dropout == dropout
    assert config.model.noise == noise
    config = compose(*sizes, *shape, "model.dropout=0.3")
    resolve_dropout(config, 100 * 100, vocab_size=20)
    assert (config.model.dropout, config.model.noise) == (0.3, noise)
    config = compose(*sizes, *shape, "model.noise=0.3")
    resolve_dropout(config, 100 * 100, vocab_size=20)
    assert (config.model.dropout, config.model.noise) == (dropout, 0.3)


@pytest.mark.parametrize(("seconds", "dropout"), [(22, 0.0), (23, 0.1), (89, 0.1), (90, 0.2)])
def test_dropout_for_a_time_is_that_of_the_default_steps_in_45_seconds(compose, seconds, dropout):
    sizes = ("data.batch_size=10", "data.block_size=10", "model.n_layer=1", "model.n_embd=64")
    limits = ("trainer.max_steps=-1", f"trainer.max_time={{seconds:{seconds}}}")
    config = compose(*sizes, "model.n_head=1", "trainer.accelerator=cpu", *limits)
    resolve_dropout(config, 100 * 100, vocab_size=20)
    assert config.model.dropout == dropout


def test_max_epochs_counts_passes_over_the_training_characters(train):
    figures = summary(train("trainer.max_steps=null", "trainer.max_epochs=1"))
    assert figures["steps"] == math.ceil(7200 / (8 * 16))


@pytest.mark.parametrize(
    ("least", "ended"),
    [
        ("trainer.min_steps=6", 6),
        ("trainer.min_steps=8", 8),
        ("trainer.min_epochs=0.1", 6),  # 720 characters of 128 a step
    ],
)
def test_a_run_that_takes_some_steps_at_least_stops_early_after_them(train, least, ended):
    figures = summary(train(least, "target_val_loss=100", "trainer.val_check_interval=3"))
    assert figures["steps"] == ended
    assert figures["seconds_to_target"] > 0


def test_a_run_that_takes_some_steps_at_least_validates_its_last(train):
    figures = summary(train("trainer.min_steps=6", "trainer.val_check_interval=3"))
    assert figures["steps"] == figures["best_step"] == 20


def test_max_time_may_be_a_dictionary_as_for_lightning(train):
    limit = ("trainer.max_steps=null", "+trainer.max_time={seconds:1}", "scheduler=constant")
    assert summary(train(*limit, "trainer.val_check_interval=1000"))["steps"] > 1


def test_target_val_loss_ends_the_run_and_is_timed(train):
    figures = summary(train("target_val_loss=2.8", "trainer.max_steps=200"))
    assert figures["status"] == "completed"
    assert figures["val_loss"] <= 2.8
    assert figures["steps"] < 200
    assert 0 < figures["seconds_to_target"] <= figures["train_seconds"]


def test_a_run_that_met_its_target_is_at_its_end_when_it_is_resumed(train):
    reached = summary(train("target_val_loss=2.8", "trainer.max_steps=200"))
    again = summary(train("target_val_loss=2.8", "trainer.max_steps=200", "resume=auto"))
    for key in ("steps", "val_loss", "seconds_to_target", "train_seconds"):
        assert again[key] == reached[key]


def test_the_time_to_another_target_is_not_that_to_this_one(train):
    reached = summary(train("target_val_loss=2.9", "trainer.val_check_interval=4"))
    assert reached["steps"] == 4
    assert reached["seconds_to_target"] > 0
    again = summary(train("target_val_loss=0.1", "resume=auto", "trainer.val_check_interval=4"))
    assert again["steps"] == 20
    assert again["seconds_to_target"] is None


@pytest.mark.parametrize("steps", ["trainer.max_steps=null", "trainer.max_steps=-1"])
def test_time_alone_ends_a_run_of_a_constant_schedule(train, steps):
    timed = (steps, "trainer.max_time=00:00:00:01")
    run_dir = train(*timed, "scheduler=constant")
    figures = summary(run_dir)
    assert figures["status"] == "completed"
    assert figures["steps"] > 0
    assert figures["val_loss"] is not None


def test_signals_wait_while_a_model_is_fitted_and_no_longer(train, monkeypatch):
    asked = []
    monkeypatch.setattr(signals, "defer", asked.append)
    train()
    assert asked == [True, False, False]  # by the Trainer, on every rank, and whatever happens


def test_no_steps_are_none_whatever_the_time(train):
    assert summary(train("trainer.max_steps=0", "trainer.max_time=00:00:00:05"))["steps"] == 0


def test_early_stopping_ends_a_run_that_gets_no_better(train, capsys):
    figures = summary(
        train(
            "callbacks=early_stopping",
            "callbacks.early_stopping.patience=2",
            "optimizer.lr=0.0",
            "trainer.max_steps=200",
        )
    )
    assert figures["steps"] == 30  # the first validation, and two that are no better
    said = capsys.readouterr().out
    assert "Stopped early: Monitored metric val/loss did not improve in the last 2 records." in said


def test_a_log_tells_what_a_run_will_do_and_how_long_it_takes(train, capsys, monkeypatch):
    looks = itertools.count()  # ten seconds pass from one to the next
    clock = SimpleNamespace(monotonic=lambda: 10.0 * next(looks))
    monkeypatch.setattr(progress, "time", clock)
    train("trainer.val_check_interval=20", "model.dropout=0.1")
    lines = capsys.readouterr().out.splitlines()
    assert any("parameters (n_layer=2, n_head=2, n_embd=16, dropout=0.1)" in text for text in lines)
    assert "20 steps of 8 windows of 16 characters: 0.4 passes over the text" in lines
    *logged, validated = (line for line in lines if line.startswith("step "))
    time = r"\d:\d\d:\d\d"
    assert len(logged) == 3  # one a minute
    for line in logged:
        assert re.fullmatch(rf"step +\d+   loss [\d.]+  chars/s [\d,]+   {time}, {time} left", line)
    assert re.match(rf"step +20   train .* val .*   {time}   ", validated)


def test_a_progress_bar_of_ones_own_takes_the_place_of_ours(train, capsys):
    own = f"+callbacks.own._target_={CALLBACKS}.TQDMProgressBar"
    assert summary(train(own))["status"] == "completed"
    assert "it/s" in capsys.readouterr().out


def test_an_epoch_is_the_interval_of_who_validates_by_epoch(train):
    epochs = ("trainer.check_val_every_n_epoch=2", "trainer.limit_train_batches=4")
    run_dir = train(*epochs, "trainer.val_check_interval=null", "trainer.max_steps=16")
    assert [step for step, _ in scalars(run_dir / "tensorboard")["val/loss"]] == [8, 16]


def test_torchs_own_optimizers_get_the_parameters(train, tmp_path):
    folder = tmp_path / "conf/optimizer"
    folder.mkdir(parents=True)
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9}
    (folder / "sgd.yaml").write_text(json.dumps(sgd))
    own = f"hydra.searchpath=[file://{folder.parent}]"
    figures = summary(train(own, "optimizer=sgd", "trainer.max_steps=40"))
    assert figures["val_loss"] < 2.6  # log(15) is 2.71


def test_the_best_checkpoint_is_the_best_validation(train, tmp_path):
    turned = tmp_path / "turned.txt"  # what training learns makes the validation text a surprise
    turned.write_text("abcdefghij" * 720 + "jihgfedcba" * 80)
    run_dir = train(f"data.path={turned}", "trainer.max_steps=60")
    figures = summary(run_dir)
    assert figures["best_val_loss"] < figures["val_loss"]
    assert Checkpoint.load(run_dir / "checkpoints/best.ckpt").step == figures["best_step"] < 60
    assert Checkpoint.load(run_dir / "checkpoints/last.ckpt").step == 60


def test_the_test_of_the_best_checkpoint_changes_no_figure_of_training(train, tmp_path):
    turned = tmp_path / "turned.txt"
    turned.write_text("abcdefghij" * 720 + "jihgfedcba" * 120)
    run_dir = train(f"data.path={turned}", "data.test_fraction=0.05", "trainer.max_steps=60")
    figures = summary(run_dir)
    with open(run_dir / "metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert figures["best_val_loss"] < figures["val_loss"] == float(last["val/loss"])
    assert figures["train_loss"] == float(last["train/eval_loss"])
    assert figures["train_seconds"] == pytest.approx(float(last["speed/train_seconds"]), abs=0.05)
    assert figures["test_loss"] is not None


def test_debug_overfit_learns_one_batch_by_heart(train):
    figures = summary(
        train(
            "debug=overfit",
            "optimizer.lr=1e-2",
            "model.n_embd=32",
            "trainer.max_steps=300",
            "trainer.val_check_interval=100",
        )
    )
    assert figures["train_loss"] < 0.1


def test_debug_fast_takes_every_path_in_seconds(train):
    figures = summary(train("debug=fast", only=True, dashboard=True))
    assert figures["status"] == "completed"
    assert figures["test_loss"] is not None
    assert figures["train_seconds"] < 30


def test_a_run_whose_checkpoints_cannot_be_saved_fails_and_keeps_its_figures(
    train, tmp_path, capsys
):
    run_dir = tmp_path / "outputs/runs/run"
    run_dir.mkdir(parents=True)
    (run_dir / "checkpoints").touch()
    with pytest.raises(UserError, match="checkpoints: the end of the run was not saved"):
        train()
    assert "the checkpoint was not saved" in capsys.readouterr().out
    figures = summary(run_dir)
    assert figures["status"] == "failed"
    assert figures["val_loss"] is not None
    assert figures["checkpoint"] is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.n_hidden=100000000000000", "^model: does not fit in memory"),
        (
            "data.batch_size=100000000000000",
            "^cpu is out of memory at step 0; try data.batch_size=5",
        ),
        ("init_from=.", "^init_from=.: this directory has no checkpoints/best.ckpt"),
    ],
)
def test_what_there_is_no_memory_or_no_checkpoint_for_is_told_by_its_key(train, setting, message):
    with pytest.raises(UserError, match=message):
        train(setting, "data.train_sample=0")


def test_init_from_matches_rows_by_character(train, tmp_path):
    parent = train(name="parent")
    other = tmp_path / "other.txt"
    other.write_text("xyz and 0123456789\n" * 400)  # new: x y z; not there: nothing but the rest
    child = train(f"init_from={parent}", f"data.path={other}", "optimizer.lr=0.0", name="child")
    old = Checkpoint.load(parent / "checkpoints/best.ckpt")
    new = Checkpoint.load(child / "checkpoints/best.ckpt")
    for c in "and 0123456789\n":
        i, j = (v.characters.index(c) for v in (old.vocabulary, new.vocabulary))
        for name in ("token_embedding.weight", "head.weight"):
            assert torch.equal(old.weights[name][i], new.weights[name][j])
    for name in old.weights.keys() - {"token_embedding.weight", "head.weight"}:
        assert torch.equal(old.weights[name], new.weights[name])


def test_what_init_from_leaves_to_the_text_is_not_the_parents(train):
    parent = train("model.dropout=0.3", "model.noise=0.1", name="parent")
    child = train(f"init_from={parent}", "model.noise=0.02", name="child")
    settings = Checkpoint.load(child / "checkpoints/best.ckpt").model_settings
    assert (settings["dropout"], settings["noise"]) == (0.0, 0.02)


def test_init_from_another_kind_of_model_says_what_to_set(train, text_file):
    line = [f"init_from={train(name='parent')}", "model=gru", f"data.path={text_file}"]
    with pytest.raises(
        UserError, match="a Transformer, but model is a Recurrent; choose the model"
    ):
        train(*line, name="child", only=True)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            "model.n_embd=32",
            r"has shape \(15, 16\) there and \(15, 32\) here; leave the model's sizes and",
        ),
        (
            "model.n_layer=3",
            r"differs from this one in blocks\.2\..* \(model.n_layer=2 there, 3 here\)$",
        ),
    ],
)
def test_init_from_a_model_of_another_size_says_what_differs(train, size, message):
    parent = train("trainer.max_steps=1", name="parent")
    with pytest.raises(UserError, match=message):
        train(f"init_from={parent}", size, name="child")


def test_init_from_a_text_of_other_characters_alone_takes_over_the_rest(train, tmp_path, capsys):
    parent = train(name="parent")
    other = tmp_path / "other.txt"
    other.write_text("uvwxyz" * 400)
    train(f"init_from={parent}", f"data.path={other}", "optimizer.lr=0.0", name="child")
    assert "0 characters matched, 6 new, 15 dropped" in capsys.readouterr().out
    old, new = (
        Checkpoint.load(tmp_path / f"outputs/runs/{name}/checkpoints/best.ckpt").weights
        for name in ("parent", "child")
    )
    assert torch.equal(old["blocks.0.attention.qkv.weight"], new["blocks.0.attention.qkv.weight"])


def test_init_from_leaves_out_tables_of_ngrams_that_the_other_text_numbers_otherwise(
    train, tmp_path
):
    other = tmp_path / "other.txt"
    other.write_text("xyz and 0123456789\n" * 400)
    parent = train("model.ngrams=[[2,50,4]]", name="parent")
    old = Checkpoint.load(parent / "checkpoints/best.ckpt").weights
    kept = []
    for changes in ((), (f"data.path={other}",)):
        name = f"child{len(kept)}"
        setting = (f"init_from={parent}", "model.ngrams=[[2,50,4]]", "optimizer.lr=0.0")
        child = train(*setting, *changes, "trainer.max_steps=1", name=name)
        new = Checkpoint.load(child / "checkpoints/best.ckpt").weights
        assert torch.equal(
            new["blocks.0.attention.qkv.weight"], old["blocks.0.attention.qkv.weight"]
        )
        kept.append(torch.equal(new["ngrams.0.table.weight"], old["ngrams.0.table.weight"]))
    assert kept == [True, False]


def test_init_from_a_bigram_moves_rows_and_columns(train, tmp_path):
    bigram = (
        "model=bigram",
        "data.block_size=8",
        "data.batch_size=8",
        "trainer.max_steps=5",
        "trainer.accelerator=cpu",
        "trainer.val_check_interval=5",
    )
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("abcabd\n" * 100)
    two.write_text("_dcb_ae" * 100)
    parent = train(*bigram, f"data.path={one}", only=True, name="parent")
    child = train(
        *bigram,
        f"data.path={two}",
        f"init_from={parent}",
        "optimizer.lr=0.0",
        only=True,
        name="child",
    )
    old, new = (Checkpoint.load(d / "checkpoints/best.ckpt") for d in (parent, child))
    table, other = (c.weights["next_logits.weight"] for c in (old, new))
    for a in "abcd":
        for b in "abcd":
            assert (
                table[old.vocabulary.characters.index(a), old.vocabulary.characters.index(b)]
                == other[new.vocabulary.characters.index(a), new.vocabulary.characters.index(b)]
            )


CALLBACKS = "lightning.pytorch.callbacks"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed=-1"], "seed=-1"),
        (["trainer.accelerator=gpu"], "trainer.accelerator=gpu"),
        (["data.path=/nowhere.txt"], "/nowhere.txt"),
        (["data.path=''"], "data.path is empty"),
        (["init_from=/nowhere.ckpt"], "/nowhere.ckpt"),
        (["trainer.max_steps=10k"], "trainer.max_steps=10k: must be a whole number"),
        (["trainer.max_steps=1.5"], "trainer.max_steps=1.5: must be a whole number"),
        (["trainer.accumulate_grad_batches=0"], "at least 1"),
        (["trainer.accumulate_grad_batches=null"], "accumulate_grad_batches=None: must be a whole"),
        (["trainer.val_check_interval=0"], "trainer.val_check_interval=0"),
        (
            ["trainer.val_check_interval={seconds:-1}"],
            "trainer.val_check_interval=.*: must be above zero",
        ),
        (["trainer.max_time={seconds:-1}"], "trainer.max_time={'seconds': -1}: must be above zero"),
        (["trainer.max_time=00:00:00:00"], "trainer.max_time=00:00:00:00: must be above zero"),
        (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch=0"),
        (["trainer.num_sanity_val_steps=x"], "trainer.num_sanity_val_steps=x"),
        (["trainer.benchmark=x"], "trainer.benchmark=x: must be true or false"),
        (["trainer.inference_mode=x"], "trainer.inference_mode=x: must be true or false"),
        (["trainer.deterministic=x"], "trainer.deterministic=x: must be true, false or warn"),
        (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1"),
        (["trainer.limit_val_batches=true"], "trainer.limit_val_batches=True"),
        (["trainer.val_check_interval=false"], "trainer.val_check_interval=False"),
        (["trainer.use_distributed_sampler=true"], "distributes batches itself"),
        (
            [
                "trainer.limit_train_batches=1e1",
                "trainer.accumulate_grad_batches=4",
                "trainer.val_check_interval=8",
            ],
            "trainer.limit_train_batches=10: must be a multiple of 4, the batches per step",
        ),
        (["trainer.val_check_interval=-5"], "trainer.val_check_interval=-5"),
        (["trainer.max_epochs=abc"], "trainer.max_epochs=abc: must be a number above 0"),
        (["trainer.max_epochs=-1"], "trainer.max_epochs=-1: must be a number above 0"),
        (["trainer.min_epochs=-1"], "trainer.min_epochs=-1: must be a number of at least 0"),
        (["trainer.min_steps=x"], "trainer.min_steps=x: must be a whole number"),
        (["trainer.overfit_batches=0.1"], "trainer.overfit_batches=0.1: must be a whole number"),
        (["trainer.fast_dev_run=0.5"], "trainer.fast_dev_run=0.5: must be a whole number"),
        (["trainer.fast_dev_run=x"], "trainer.fast_dev_run=x: must be a whole number"),
        (["data.seed=-1"], "data.seed=-1: must be a whole number"),
        (["data.seed=null"], "data.seed=None: must be a whole number"),
        (["data.seed=1.5"], "data.seed=1.5: must be a whole number"),
        (["data.seed=abc"], "data.seed=abc: must be a whole number"),
        (["profile=true", "trainer.profiler=PyTorch"], "leave one out"),
        (
            ["trainer.check_val_every_n_epoch=1", "trainer.limit_train_batches=5"],
            "trainer.val_check_interval=10 is longer than",
        ),
        (["trainer.check_val_every_n_epoch=2"], "nothing would be validated; set the length"),
        (["trainer.limit_train_batches=0.5"], "trainer.limit_train_batches=0.5: .* never run out"),
        (["trainer.barebones=true"], "trainer.barebones=true: "),
        (
            [
                f"+callbacks.a._target_={CALLBACKS}.GradientAccumulationScheduler",
                "+callbacks.a.scheduling={0:1,2:2}",
            ],
            "callbacks: GradientAccumulationScheduler acts between epochs, .*limit_train_batches",
        ),
        (
            [
                f"+callbacks.a._target_={CALLBACKS}.ModelPruning",
                "+callbacks.a.pruning_fn=l1_unstructured",
            ],
            "callbacks: ModelPruning acts between epochs, .*trainer.limit_train_batches",
        ),
        (
            [
                f"+callbacks.a._target_={CALLBACKS}.ModelCheckpoint",
                "+callbacks.a.monitor=train/loss",
            ],
            "callbacks: ModelCheckpoint cannot monitor train/loss, .* train/eval_loss",
        ),
        (
            [
                "~scheduler",
                "+scheduler={_target_:torch.optim.lr_scheduler.StepLR,_partial_:true,step_size:5}",
            ],
            "scheduler: torch's StepLR .*cosine or wsd",
        ),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val_loss"],
            "callbacks: .*val_loss.*val/loss",
        ),
        (
            ["trainer.limit_train_batches=8", "trainer.accumulate_grad_batches=5"],
            "trainer.limit_train_batches=8: .* multiple",
        ),
        (
            ["trainer.overfit_batches=1", "trainer.accumulate_grad_batches=2"],
            "trainer.overfit_batches=1: .* multiple",
        ),
        (
            ["trainer.val_check_interval={seconds:1}", "trainer.accumulate_grad_batches=2"],
            "trainer.val_check_interval=.*: counts time, but validation needs a whole step",
        ),
        (
            [
                "trainer.val_check_interval=0.5",
                "trainer.limit_train_batches=6",
                "trainer.check_val_every_n_epoch=1",
                "trainer.accumulate_grad_batches=2",
            ],
            "trainer.val_check_interval=0.5: is 3 of an epoch's 6 batches, .* a multiple of 2",
        ),
        (
            [
                f"+callbacks.x._target_={CALLBACKS}.GradientAccumulationScheduler",
                "+callbacks.x.scheduling={0:1}",
                "trainer.max_epochs=1",
            ],
            "trainer.max_epochs=1: .* count steps instead",
        ),
        (["optimizer=adamw", "optimizer.betas=[0.9]"], r"betas=\[0.9\] are not two numbers"),
        (["optimizer=adamw", "optimizer.betas=[a,b]"], r"betas=\['a', 'b'\] are not two numbers"),
        (["optimizer.betas=null"], "betas=None are not two numbers"),
        (["scheduler.warmup_steps=-1"], "warmup_steps=-1"),
        (["scheduler.warmup_steps=0.1"], "warmup_steps=0.1"),
        (["+callbacks.early_stopping.patience=5"], "callbacks.early_stopping: its _target_"),
        (
            ["+callbacks.x._target_=torch.nn.Identity"],
            "callbacks.x: its _target_ must name a Lightning Call",
        ),
        ([f"+callbacks.x._target_={CALLBACKS}.BatchSizeFinder"], "BatchSizeFinder is unsupported"),
        (
            [f"+callbacks.x._target_={CALLBACKS}.LearningRateFinder"],
            "LearningRateFinder is unsupported",
        ),
        (
            [f"+callbacks.x={{_target_:{CALLBACKS}.StochasticWeightAveraging,swa_lrs:1.0}}"],
            "StochasticWeightAveraging is unsupported: .*EMAWeightAveraging",
        ),
        (
            [
                f"+callbacks.x._target_={CALLBACKS}.GradientAccumulationScheduler",
                "+callbacks.x.scheduling={0:2}",
                "trainer.accumulate_grad_batches=2",
            ],
            "callbacks: .*accumulate_grad_batches",
        ),
        (
            [
                f"+callbacks.x._target_={CALLBACKS}.GradientAccumulationScheduler",
                "+callbacks.x.scheduling={0:1,1:4}",
            ],
            r"val_check_interval=10: .* multiple of 4, .*callbacks.*scheduling.*; try 12$",
        ),
        (
            ["trainer=fsdp", f"+callbacks.x._target_={CALLBACKS}.EMAWeightAveraging"],
            "EMAWeightAveraging copies the whole model",
        ),
        (["+logger.x.path=5"], "logger.x: its _target_ must name a Lightning Logger"),
        (["+callbacks.x=mine.Talk"], "callbacks.x: its _target_ must name a Lightning Callback"),
        (
            [f"+callbacks.x._target_={CALLBACKS}.ThroughputMonitor"],
            "^callbacks.x: ThroughputMonitor.* missing 1 required positional argument",
        ),
        (
            ["+callbacks.x={_target_:litchar.analysis.dashboard.Layers,length:24,lenght:3}"],
            r"^callbacks\.x\.lenght: litchar\.analysis\.dashboard\.Layers takes no such argument; "
            r"did you mean callbacks\.x\.length\?$",
        ),
        (
            ["+logger.tensorboard.flush_sec=3"],
            r"^logger\.tensorboard\.flush_sec: .*\.TensorBoard takes no such argument; leave",
        ),
        (
            ["+model.n_layers=2"],
            r"^model\.n_layers: litchar\.models\.Transformer takes .*mean model\.n_layer\?$",
        ),
        (["+data.blocksize=2"], r"^data\.blocksize: .*; did you mean data\.block_size\?$"),
        (["+optimizer.weight_decy=1"], r"^optimizer\.weight_decy: .*optimizer\.weight_decay\?$"),
        (["+scheduler.warmup_step=1"], r"^scheduler\.warmup_step: .*scheduler\.warmup_steps\?$"),
        (
            ["optimizer._target_=torch.optim.SGD"],
            r"^optimizer\.polar_steps: torch\.optim\.SGD takes no such argument; leave it out$",
        ),
        (
            ["data._target_=types.SimpleNamespace"],
            r"^data\._target_=types\.SimpleNamespace: must be litchar\.data\.TextDataModule or ",
        ),
        (["model._target_=torch.nn.Linear"], "model._target_: it names 'torch.nn.Linear'"),
        (["+model.act._target_=torch.nn.GELU"], r"model.act._target_=torch.nn.GELU: .* plain data"),
        (["scheduler.final_factor=-3"], "final_factor=-3"),
        (["scheduler=cosine", "scheduler.final_factor=-3"], "final_factor=-3"),
        (["scheduler.decay_fraction=-1"], "decay_fraction=-1"),
        (["scheduler.decay_fraction=3"], "decay_fraction=3"),
        (
            ["scheduler=cosine", "scheduler.final_factor=1/10", "scheduler.warmup_steps=4"],
            "scheduler, warmup_steps=4, final_factor=1/10: ",
        ),
        (
            ["~optimizer", "+optimizer={_target_:builtins.id,_partial_:true}"],
            "a torch.optim.Optimizer, not int",
        ),
        (["optimizer._partial_=false"], "optimizer: needs _partial_: true beside its _target_"),
        (["~scheduler._partial_"], "scheduler: needs _partial_: true beside its _target_"),
        (
            ["~scheduler", "+scheduler={_target_:builtins.slice,_partial_:true}"],
            "scheduler: must be real number, not slice",
        ),
        (
            ["~scheduler", "+scheduler={_target_:builtins.max,_partial_:true,_args_:[inf]}"],
            "scheduler: its factor .* not a finite number",
        ),
        (["checkpoint.every_seconds=null"], "checkpoint.every_seconds=None"),
        (["target_val_loss=abc"], "target_val_loss=abc"),
        (["compile=maybe"], "compile=maybe: must be true or false"),
        (["report=maybe"], "report=maybe: must be true or false"),
        (["profile=1"], "profile=1: must be true or false"),
    ],
)
def test_bad_settings_are_refused_by_name(train, overrides, words):
    if words == "trainer.accelerator=gpu" and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    with pytest.raises(UserError, match=words):
        train(*overrides)


def test_the_average_of_weights_is_what_is_scored_sampled_and_tested(train, loss_of, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text("一二三四五六七八" * 300)  # three bytes each
    run_dir = train(
        f"data.path={text}",
        "data.test_fraction=0.2",
        f"+callbacks.average._target_={CALLBACKS}.EMAWeightAveraging",
        "+callbacks.average.decay=0.9",
    )
    figures = summary(run_dir)
    assert figures["best_val_bpc"] == pytest.approx(3 * figures["best_val_bpb"])
    assert figures["test_bpc"] == pytest.approx(3 * figures["test_bpb"])
    tested = loss_of(f"checkpoint={run_dir}", "split=test")
    assert figures["test_loss"] == pytest.approx(tested, abs=1e-6)
    last = Checkpoint.load(run_dir / "checkpoints/last.ckpt")
    written = sample(last.build_model(), last.vocabulary, 1337)
    assert (run_dir / "samples.txt").read_text().endswith(f"--- step 20\n{written}\n")


def test_without_its_average_a_run_goes_on_from_the_weights_themselves(train):
    average = f"+callbacks.average._target_={CALLBACKS}.EMAWeightAveraging"
    setting = ("scheduler=constant", "trainer.val_check_interval=10")
    train(*setting, average, "trainer.max_steps=10", name="averaged")
    averaged = train(*setting, "resume=auto", name="averaged")
    assert summary(averaged)["val_loss"] == summary(train(*setting, name="whole"))["val_loss"]


def test_a_loss_is_a_whole_one_however_many_batches_a_step_has(train):
    """The batches since the last report may belong to steps of different sizes."""
    run_dir = train(
        f"+callbacks.x._target_={CALLBACKS}.GradientAccumulationScheduler",
        "+callbacks.x.scheduling={0:1,1:4}",
        "trainer.limit_train_batches=8",
        "trainer.val_check_interval=8",
        "trainer.log_every_n_steps=5",
    )
    with open(run_dir / "metrics.csv", newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 5
    assert max(losses) < 1.1 * math.log(15)


GROUPS = ("model", "trainer", "logger")  # those that have keys which are true or false
FILES = [f"{group}={file.stem}" for group in GROUPS for file in (ROOT / "conf" / group).iterdir()]


@pytest.mark.parametrize("choice", FILES)
def test_a_text_is_refused_where_true_or_false_is_meant(compose, choice):
    """Hydra reads `no` and `off` as strings, which are truthy in Python."""
    config = compose(choice)
    for key, value in flatten(OmegaConf.to_container(config)).items():
        if isinstance(value, bool) and within(key, GROUPS):
            wrong = copy.deepcopy(config)
            OmegaConf.update(wrong, key, "off")
            with pytest.raises(UserError, match=f"^{key}=off: a string, always true in Python"):
                check_settings(wrong)


def test_what_lightning_and_models_take_beside_true_and_false_is_taken(compose):
    check_settings(compose("trainer.deterministic=warn", "trainer.fast_dev_run=2", "model.bias=1"))
    check_settings(compose("trainer.fast_dev_run=null"))
    config = compose("trainer.fast_dev_run=2.0")
    check_settings(config)
    assert isinstance(config.trainer.fast_dev_run, int)


def test_a_run_lies_where_the_newest_is_looked_for_whatever_its_name(compose, tmp_path):
    config = compose("name='a/b ../c हि =1'", f"outputs_dir={tmp_path}")
    assert os.path.dirname(config.run_dir) == f"{tmp_path}/runs"


def test_what_is_begun_from_is_recorded_by_its_path_and_not_needed_to_go_on(train, tmp_path):
    parent = train(name="parent") / "checkpoints/best.ckpt"
    stop = ("+callbacks.stop._target_=conftest.SignalAt", "+callbacks.stop.step=5")
    with pytest.raises(Interrupted):
        train("init_from=latest", *stop, name="child")
    kept = Checkpoint.load(tmp_path / "outputs/runs/child/checkpoints/last.ckpt")
    assert kept.config["init_from"] == str(parent)
    parent.unlink()
    assert summary(train("init_from=latest", "resume=auto", name="child"))["steps"] == 20


class Looped(Transformer):
    """Repeats one block; its weights are in the state dict under every name, or under one."""

    def __init__(self, *args, names: bool, **settings) -> None:
        super().__init__(*args, **settings)
        self.turns = 1 if names else len(self.blocks)
        self.blocks = nn.ModuleList([self.blocks[0]] * (len(self.blocks) if names else 1))

    def forward(self, idx):
        x = self.token_embedding(idx)
        for block in [*self.blocks] * self.turns:
            x = block(x, self.rotary)
        return self.logits(x)


@pytest.mark.parametrize("names", [True, False])
def test_a_model_whose_layers_are_one_is_opened_again(train, monkeypatch, names):
    monkeypatch.setattr(Looped, "__module__", "litchar.models")
    monkeypatch.setattr(litchar.models, "Looped", Looped, raising=False)
    looped = ("model._target_=litchar.models.Looped", f"+model.names={names}", "model.n_layer=24")
    best = train(*looped, "trainer.max_steps=2") / "checkpoints/best.ckpt"
    assert len(litchar.load(best, device="cpu").model.blocks) == (24 if names else 1)


class Own(nn.Module):
    """A model with settings of its own, which can read a tensor's value, impossible on `meta`."""

    def __init__(
        self, vocab_size, block_size, n_layer=1, reads=False, keeps=True, dropout=0.0, gives=""
    ):
        super().__init__()
        self.gives = gives
        if keeps:
            self.block_size = block_size
        self.rate = torch.linspace(0, 1, 3)[1].item() if reads else 0.0
        self.head = nn.Embedding(vocab_size + 1, vocab_size)  # the last row is of no character

    def forward(self, idx):
        logits = self.head(idx)
        match self.gives:
            case "a pair":
                return logits, None
            case "the last":
                return logits[:, [-1]]
            case "the last in evaluation":
                return logits if self.training else logits[:, [-1]]
            case "one more":
                return F.pad(logits, (0, 1))
            case "what follows":
                return logits + logits.roll(-1, 1)
        return logits


@pytest.fixture
def own(train, monkeypatch):
    """Train `Own` with settings of its own, as a command line would."""
    monkeypatch.setattr(Own, "__module__", "litchar.models")
    monkeypatch.setattr(litchar.models, "Own", Own, raising=False)
    keys = ("block_size", "batch_size", "train_sample")
    shared = [o for o in SMALL if o.startswith("trainer.") or o[5:].partition("=")[0] in keys]

    def own(text_file, *settings: str, name: str = "run"):
        model = ("~model", "+model={_target_:litchar.models.Own}", "optimizer=adamw")
        return train(*model, *shared, f"data.path={text_file}", *settings, only=True, name=name)

    return own


def test_a_table_that_is_larger_than_the_vocabulary_is_taken_over_whole(own, text_file, tmp_path):
    begun = [f"init_from={own(text_file)}", "optimizer.lr=0"]
    tables = [
        load(run_dir / "checkpoints/last.ckpt")["state_dict"]["model.head.weight"]
        for run_dir in (tmp_path / "outputs/runs/run", own(text_file, *begun, name="child"))
    ]
    assert torch.equal(*tables)
    text_file.write_text("uvwxyz" * 1000)
    with pytest.raises(UserError, match=r"head\.weight has no separate row for each character"):
        own(text_file, *begun, name="other")


@pytest.mark.parametrize("dropout", ["0.0", "null"])
def test_a_model_whose_checkpoints_could_not_be_opened_is_refused(own, text_file, dropout):
    fit = "do not fit its settings"
    said = rf"a checkpoint of this model: .* {fit}: .*meta tensors; docs/models.md lists"
    with pytest.raises(UserError, match=said):
        own(text_file, "+model.reads=true", f"+model.dropout={dropout}")


def test_a_model_that_does_not_keep_its_block_size_is_refused_before_it_trains(own, text_file):
    with pytest.raises(UserError, match=r"Own has no block_size, .*; docs/models.md lists"):
        own(text_file, "+model.keeps=false")


@pytest.mark.parametrize(
    ("gives", "what"),
    [
        ("a pair", "a tuple"),
        ("the last", r"a tensor of shape \(8, 1, 15\)"),
        ("the last in evaluation", r"a tensor of shape \(\d+, 1, 15\)"),
        ("one more", r"a tensor of shape \(\d+, 16, 16\)"),
    ],
)
def test_a_model_that_does_not_return_all_logits_is_refused(own, text_file, gives, what):
    with pytest.raises(
        UserError, match=rf"Own\.forward returned {what} for ids of shape \(\d+, 16\)"
    ):
        own(text_file, f"+model.gives={gives}")


def test_a_model_that_reads_ahead_is_refused_at_its_first_validation(own, text_file, tmp_path):
    with pytest.raises(UserError, match="what Own predicts depends on later characters"):
        own(text_file, "+model.gives=what follows")
    ended = summary(tmp_path / "outputs/runs/run")
    assert (ended["status"], ended.get("val_loss")) == ("failed", None)


def test_each_validation_looks_for_what_reads_ahead(train, monkeypatch):
    looked = []
    monkeypatch.setattr("litchar.training.module.check_causal", lambda *_: looked.append(1))
    train()
    assert len(looked) == 2


def test_a_models_own_n_layer_may_be_a_list(own, text_file):
    run_dir = own(text_file, "+model.n_layer=[1,2]", "trainer.max_steps=2")
    litchar.load(run_dir / "checkpoints/best.ckpt", device="cpu")


@pytest.mark.parametrize(
    "name", ["Simple", "advanced", pytest.param("pytorch", marks=pytest.mark.slow)]
)
def test_lightnings_profilers_write_into_the_run(train, name):
    (written,) = (train(f"trainer.profiler={name}") / "profile").glob("fit-*.txt")
    assert "run_training_batch" in written.read_text()


def test_a_trial_of_validation_is_none(train):
    run_dir = train("trainer.num_sanity_val_steps=1", dashboard=True)
    with open(run_dir / "metrics.csv", newline="") as file:
        assert next(int(row["step"]) for row in csv.DictReader(file)) == 1
    assert "step 0" not in (run_dir / "samples.txt").read_text()


def test_a_run_that_saves_nothing_ends_at_a_signal(train):
    stop = ("+callbacks.stop._target_=conftest.SignalAt", "+callbacks.stop.step=5")
    with pytest.raises(Interrupted):
        train("trainer.enable_checkpointing=false", *stop)


def test_losses_that_are_never_reported_are_not_kept(train):
    run_dir = train("trainer.log_every_n_steps=0")
    kept = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    assert kept["callbacks"]["Metrics"]["batch_losses"] == []


def test_lightnings_csv_files_stand_beside_tensorboard(train):
    run_dir = train("logger=csv")
    assert (run_dir / "csv/metrics.csv").exists()
    assert (run_dir / "metrics.csv").exists()
    assert list(run_dir.glob("tensorboard/events*"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GiB, max allowed: 9.07 GiB)"),
        RuntimeError("Invalid buffer size: 20.00 GiB"),  # of MPS too
    ],
)
def test_out_of_memory_names_a_batch_size_that_may_fit(train, monkeypatch, error):
    from litchar.training import module

    def exhausted(*_):
        raise error

    monkeypatch.setattr(module, "mean_loss", exhausted)
    with pytest.raises(UserError, match=r"out of memory at step 0; try data\.batch_size=4 "):
        train()


def test_every_bit_of_seed_and_batch_chooses_what_dropout_drops():
    from litchar.training.module import dropout_seed

    def draw(seed, stream):
        generator = torch.Generator().manual_seed(dropout_seed(seed, stream))
        return tuple(torch.rand(4, generator=generator).tolist())

    seeds, streams = (0, 1, 2, 1337, 2**32 - 1), (0, 1, 2, 3, 2**20, 2**33)
    drawn = {draw(seed, stream) for seed in seeds for stream in streams}
    assert len(drawn) == 5 * 6


@pytest.mark.parametrize(
    "setting",
    [
        "data.block_size=abc",
        "data.val_fraction=abc",
        "data.num_workers=-1",
        "+data.typo=1",
        "model.n_hidden=-5",
        "seed=abc",
        "model.dropout=much",
        "optimizer.lr=fast",
        "optimizer.lr=-1",
        "optimizer.polar_steps=0",
        "+optimizer.typo=1",
        "scheduler.warmup_steps=-1",
        "trainer.val_check_interval=0.5",
        "trainer.precision=nonsense",
        "trainer.profiler=fast",
        "model._target_=litchar.models.Transfomer",
        "optimizer._target_=litchar.training.optimizers.moun",
        "scheduler._target_=litchar.training.schedule.wsd",
        "+callbacks.x=5",
    ],
)
def test_a_wrong_setting_is_the_users_error(train, tmp_path, setting):
    with pytest.raises(Exception) as refusal:  # noqa: PT011
        train(setting)
    assert is_users(refusal.value), repr(refusal.value)
    assert "not supported between" not in str(refusal.value)
    assert not (tmp_path / "outputs/runs/run").exists()


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "a"),
        MemoryError(),
        RuntimeError("of a model of one's own"),
        Interrupted(15),
    ],
)
def test_a_run_that_ends_before_training_leaves_nothing(train, tmp_path, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr("litchar.training.prepare.resolve_parent", refuse)
    with pytest.raises(type(error)):
        train()
    assert not (tmp_path / "outputs/runs/run").exists()


def test_a_share_of_the_validation_batches_may_be_less_than_one_of_the_training_sample(train):
    figures = summary(train("trainer.limit_val_batches=0.5", "data.train_sample=256"))
    assert figures["val_loss"] > 0  # of one batch of two
    assert figures["train_loss"] is None


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        ("trainer.precision=bf16-mixed", 20),  # clipped, with a fused optimiser
        ("trainer.precision=bf16-true", 20),
        ("trainer.limit_val_batches=0", 20),
        ("trainer.enable_progress_bar=false", 20),
        ("trainer.enable_checkpointing=false", 20),
        ("trainer.log_every_n_steps=0", 20),
        ("trainer.max_steps=0", 0),
        ("trainer.fast_dev_run=true", 1),
        ("trainer.num_sanity_val_steps=2", 20),
        ("trainer.max_steps=2e1", 20),
        ("trainer.val_check_interval=1e1", 20),
        ("callbacks.attention=null", 20),
        ("logger.tensorboard=null", 20),
        ("data.train_sample=0", 20),
        ("data.test_fraction=0.1", 20),
    ],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_what_the_trainer_takes_a_run_takes(train, setting, steps):
    run_dir = train(setting, dashboard="bf16" in setting)
    assert summary(run_dir)["status"] == "completed"
    assert summary(run_dir)["steps"] == steps
    if setting == "trainer.limit_val_batches=0":
        assert Checkpoint.load(summary(run_dir)["checkpoint"]).step == 20
