"""Runs on characters and on bytes, and the bits that make them comparable."""

import math

import pytest

from conftest import scalars, summary
from litchar.checkpoints import Checkpoint
from litchar.errors import UserError

TEXT = "".join(f"né {i * i % 97} €\n" for i in range(600))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "accents.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("unit", ["character", "byte"])
def test_bits_are_those_of_the_split_whatever_the_token(train, loss_of, path, capsys, unit):
    setting = (f"data.path={path}", f"data.unit={unit}", "data.test_fraction=0.1")
    run_dir = train(*setting, dashboard=True)
    figures = summary(run_dir)
    whole = TEXT if unit == "character" else TEXT.encode()
    ends = int(len(whole) * 0.8), int(len(whole) * 0.9)
    for name, part in (("best_val", whole[ends[0] : ends[1]]), ("test", whole[ends[1] :])):
        part = part[1:]  # the first token is given
        if unit == "character":
            characters, utf8_bytes = len(part), len(part.encode())
        else:
            begun = [byte for byte in part if byte < 0x80 or byte >= 0xC0]  # in this split
            characters, utf8_bytes = len(begun), len(part)
        bits = figures[f"{name}_loss"] * len(part) / math.log(2)
        assert figures[f"{name}_bpc"] == pytest.approx(bits / characters, rel=1e-6)
        assert figures[f"{name}_bpb"] == pytest.approx(bits / utf8_bytes, rel=1e-6)
    assert figures["unit"] == unit
    shown = scalars(run_dir / "tensorboard")
    assert shown["val/bpb"][-1][1] == pytest.approx(figures["best_val_bpb"], rel=1e-6)
    assert shown["val/bpc"][-1][1] == pytest.approx(figures["best_val_bpc"], rel=1e-6)
    assert f"{figures['best_val_bpb']:.3f} per byte" in " ".join(capsys.readouterr().out.split())

    checkpoint = Checkpoint.load(run_dir / "checkpoints/best.ckpt")
    assert checkpoint.vocabulary.unit == unit
    assert loss_of(f"checkpoint={run_dir}") == pytest.approx(figures["best_val_loss"], rel=1e-5)
    said = capsys.readouterr().out
    assert f"{figures['best_val_bpb']:.4f} bits per byte" in said
    assert f"nats per {unit}" in said


def test_bits_per_byte_are_those_of_the_batches_that_were_scored(train, tmp_path):
    """The first half of the validation split has one byte per character, the second three."""
    path = tmp_path / "halves.txt"
    path.write_text("ab" * 4000 + "ab" * 250 + "€" * 500)
    figures = summary(
        train(f"data.path={path}", "data.val_batch_size=8", "trainer.limit_val_batches=1")
    )
    assert figures["best_val_bpb"] == pytest.approx(figures["best_val_bpc"])


def test_any_file_can_be_modelled_and_scored_as_bytes(train, loss_of, tmp_path, capsys):
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe\x00" * 50)
    run_dir = train(f"data.path={tmp_path / 'a.bin'}", "data.unit=byte")
    assert summary(run_dir)["vocab_size"] == 256
    capsys.readouterr()
    loss_of(f"checkpoint={run_dir}", f"data.path={tmp_path / 'b.bin'}")
    assert "over 149 bytes" in capsys.readouterr().out


def test_weights_of_another_unit_are_refused(train, path):
    parent = train(f"data.path={path}")
    with pytest.raises(UserError, match=r"is a model of characters.* set data\.unit=character"):
        train(f"data.path={path}", "data.unit=byte", f"init_from={parent}", name="child")
    with pytest.raises(UserError, match=r"data\.unit: character then, byte now"):
        train(f"data.path={path}", "data.unit=byte", f"resume={parent}", name="resumed")


def test_an_unknown_unit_is_refused(train, path):
    with pytest.raises(UserError, match=r"data\.unit=word: must be character or byte"):
        train(f"data.path={path}", "data.unit=word")
