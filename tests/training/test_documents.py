"""Runs on documents: training, new or known names, per-document losses."""

import csv
import itertools
import json
import resource
import shutil

import numpy as np
import pytest
import torch

from conftest import summary
from litchar.checkpoints import Checkpoint
from litchar.errors import UserError
from litchar.text import Text
from litchar.text.store import boundaries, cache_dir

SYLLABLES = ("ka", "lo", "mi", "ne", "su", "ta")
NAMES = ["".join(parts) for n in (1, 2, 3) for parts in itertools.product(SYLLABLES, repeat=n)]
SETTINGS = ("data.document=line", "data.shuffle=true", "data.start_at_document=true")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES))
    return path


@pytest.fixture
def named(train, path):
    """A run trained well enough to repeat some of the names."""
    more = ("optimizer.lr=1e-2", "trainer.max_steps=100", "trainer.val_check_interval=50")
    warmup = "scheduler.warmup_steps=50"
    return train(f"data.path={path}", *SETTINGS, *more, warmup, dashboard=True)


def splits_of(path) -> dict[str, np.ndarray]:
    text = Text(path=str(path), document="line", shuffle=True)
    tokens = text.open().tokens
    return {name: tokens[start:stop] for name, (start, stop) in text.bounds(tokens).items()}


def test_names_are_learned_made_and_told_from_those_of_the_training_text(named, path, generated):
    figures = summary(named)
    assert figures["vocab_size"] == 12  # eleven letters and the boundary
    assert figures["best_val_loss"] < 1.5
    assert "\0" not in (named / "samples.txt").read_text()

    text, note = generated(f"checkpoint={named}")
    names = text.splitlines()
    assert len(names) == 20
    assert all(0 < len(name) <= 10 for name in names)

    decode = Checkpoint.load(named / "checkpoints/best.ckpt").vocabulary.decode
    lines = {name: decode(ids).split() for name, ids in splits_of(path).items()}
    assert sorted(lines["train"] + lines["val"]) == sorted(NAMES)
    train, val = ([name for name in names if name in lines[split]] for split in ("train", "val"))
    new = [name for name in names if name not in NAMES]
    assert train
    assert note.startswith(f"Of 20 documents: {len(train)} in the train split (")
    assert set(note.split("(")[1].split(")")[0].split(", ")) == set(train)
    assert f"{len(val)} in the val split" in note
    assert f"{len(new)} new." in note


def test_a_document_may_be_begun_or_cut_and_what_it_cannot_be_compared_with_is_said(
    named, path, generated
):
    text, note = generated(f"checkpoint={named}", "prompt=kalo", "num_samples=3")
    assert all(name.startswith("kalo") for name in text.splitlines())
    assert "Of 3 documents: " in note
    text, note = generated(f"checkpoint={named}", "max_new_tokens=1", "num_samples=4")
    assert [len(line) for line in text.splitlines()] == [1] * 4
    assert note.startswith("4 of 4 did not end")
    text, note = generated(f"checkpoint={named}", "stop=[a,e,i,o,u]", "num_samples=4")
    assert "did not end" not in note  # a vowel was asked to end it

    path.unlink()
    assert "Of 20 documents: " in generated(f"checkpoint={named}")[1]  # the cache has it
    shutil.rmtree(cache_dir())
    text, note = generated(f"checkpoint={named}")
    assert len(text.splitlines()) == 20
    assert note.startswith("Not compared with the training text, which is not in this machine")
    assert note.count("\n") == 1


def test_the_loss_of_each_document_is_that_of_the_document_by_itself(
    named, path, loss_of, capsys, tmp_path
):
    for suffix in ("json", "csv"):
        loss_of(f"checkpoint={named}", f"documents={tmp_path / 'losses.'}{suffix}")
    rows = json.loads((tmp_path / "losses.json").read_text())
    with open(tmp_path / "losses.csv", newline="") as file:
        assert [float(row["nats"]) for row in csv.DictReader(file)] == [r["nats"] for r in rows]

    model = Checkpoint.load(named / "checkpoints/best.ckpt").build_model()
    tokens = splits_of(path)["val"]
    edges = boundaries(tokens)
    assert len(rows) == len(edges) - 1
    losses = []
    for row, start, stop in zip(rows, edges, edges[1:], strict=False):
        document = torch.tensor(tokens[start : stop + 1].astype(np.int64))
        log_probs = model(document[None, :-1])[0].log_softmax(-1)
        losses.append(-log_probs.gather(1, document[1:, None]).sum().item())
        assert row["nats"] == pytest.approx(losses[-1], rel=1e-4)
        assert row["characters"] == len(row["begins"]) == stop - start - 1
    said = " ".join(capsys.readouterr().out.split())
    rate = sum(losses) / (len(tokens) - 1)
    assert f"{len(rows)} documents, each scored by itself: {rate:.4f} nats per character" in said
    assert f"{np.mean(losses):.4f} per document" in said
    assert f"most {max(losses):.4f}" in said
    rates = [row["nats"] / (row["characters"] + 1) for row in rows]
    worst = rows[int(np.argmax(rates))]["begins"]
    assert said.split("worst documents ")[1].split()[2] == worst

    (tmp_path / "other.txt").write_text("kalo\nXYZ\n\n\n\nmine")  # X, Y and Z are left out
    loss_of(f"checkpoint={named}", f"data.path={tmp_path / 'other.txt'}")
    said = capsys.readouterr().out
    assert "Left out: 3 characters (18.75%)" in said  # of 16, with the line feeds
    assert "2 documents, each scored by itself" in said
    with pytest.raises(UserError, match=r"name a \.csv or a \.json file"):
        loss_of(f"checkpoint={named}", "documents=losses.txt")
    with pytest.raises(UserError, match="there is no directory nowhere"):
        loss_of(f"checkpoint={named}", "documents=nowhere/losses.csv")

    before = (tmp_path / "losses.csv").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            loss_of(f"checkpoint={named}", f"documents={tmp_path / 'losses.csv'}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "losses.csv").read_bytes() == before
    (tmp_path / "link.csv").symlink_to("there.csv")
    loss_of(f"checkpoint={named}", f"documents={tmp_path / 'link.csv'}")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "there.csv").read_bytes() == before


def test_documents_longer_than_a_window_are_scored_whole(train, tmp_path, loss_of):
    for i in range(12):
        (tmp_path / f"{i:02}.txt").write_text(f"file {i}\n" * (3 + 5 * (i % 3)))
    run_dir = train(
        f"data.path={tmp_path}", "data.pattern=??.txt", "data.document=file", "data.unit=byte"
    )
    assert summary(run_dir)["vocab_size"] == 257
    loss_of(f"checkpoint={run_dir}", "split=train", f"documents={tmp_path / 'l.json'}")
    rows = json.loads((tmp_path / "l.json").read_text())
    sizes = [(tmp_path / f"{i:02}.txt").stat().st_size for i in range(12)]
    assert [row["bytes"] for row in rows] == sizes[: len(rows)]

    checkpoint = Checkpoint.load(run_dir / "checkpoints/best.ckpt")
    model, block_size = checkpoint.build_model(), 16
    ids = [0, *checkpoint.vocabulary.encode((tmp_path / "02.txt").read_text()).tolist(), 0]
    nats = 0.0
    for start in range(0, len(ids) - 1, block_size):
        window = torch.tensor(ids[start : start + block_size + 1])
        log_probs = model(window[None, :-1])[0].log_softmax(-1)
        nats -= log_probs.gather(1, window[1:, None]).sum().item()
    assert rows[2]["nats"] == pytest.approx(nats, rel=1e-5)


def test_a_run_of_documents_goes_on_from_a_checkpoint_and_from_a_plain_models(
    train, path, named, capsys
):
    plain = train(f"data.path={path}", name="plain")
    capsys.readouterr()
    train(f"data.path={path}", *SETTINGS, f"init_from={plain}", name="child")
    # The newline that ends a line is the boundary now.
    said = capsys.readouterr().out
    assert "12 characters matched, 0 new, 0 dropped" in said
    assert "258 documents: 232 train (90.2%), 26 val (9.8%)" in said
    with pytest.raises(UserError, match=r"data\.shuffle: True then, False now"):
        train(f"data.path={path}", "data.document=line", f"resume={named}", name="other")


def test_a_plain_model_has_no_documents_to_score(train, loss_of):
    with pytest.raises(UserError, match="was not trained on documents"):
        loss_of(f"checkpoint={train()}", "documents=losses.csv")
