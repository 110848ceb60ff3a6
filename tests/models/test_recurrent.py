"""Recurrent models."""

import math

import pytest
import torch
from torch import nn

from conftest import summary
from litchar.checkpoints import Checkpoint
from litchar.errors import UserError
from litchar.models import Recurrent


def make(cell: str, **changes) -> Recurrent:
    torch.manual_seed(0)
    sizes = {"vocab_size": 13, "block_size": 10, "n_layer": 2, "n_embd": 8}
    return Recurrent(**(sizes | changes), cell=cell).eval()


def some_ids(length: int) -> torch.Tensor:
    return torch.randint(13, (3, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_an_untrained_model_finds_every_character_equally_likely(cell):
    logits = make(cell)(some_ids(10))
    assert logits.shape == (3, 10, 13)
    assert torch.equal(logits, torch.zeros(3, 10, 13))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_pieces_with_a_carried_state_are_read_as_the_whole(cell):
    model = make(cell)
    nn.init.normal_(model.head.weight)
    idx = some_ids(30)
    pieces, state = [], None
    for piece in idx.split([1, 9, 1, 19], dim=1):
        logits, state = model.step(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(idx), atol=1e-6, rtol=0)
    alone, _ = model.step(idx[:, 10:11])
    assert (alone - model(idx)[:, 10:11]).abs().max() > 1e-3  # the state does matter


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_logits_do_not_depend_on_what_comes_after(cell):
    model = make(cell)
    nn.init.normal_(model.head.weight)
    idx = some_ids(10)
    changed = idx.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 13
    assert torch.equal(model(idx)[:, :6], model(changed)[:, :6])
    assert not torch.equal(model(idx)[:, 6:], model(changed)[:, 6:])


def test_weights_begin_as_the_docstring_says():
    model = make("lstm", n_embd=64)
    for name, p in model.layers.named_parameters():
        if name.startswith("weight_ih"):
            assert p.std().item() == pytest.approx(1 / 8, rel=0.05)
        elif name.startswith("weight_hh"):
            for gate in p.split(64):
                torch.testing.assert_close(gate @ gate.T, torch.eye(64), atol=1e-5, rtol=0)
        else:
            forget = 1.0 if name.startswith("bias_ih") else 0.0
            expected = torch.zeros(4, 64)
            expected[1] = forget
            assert torch.equal(p.view(4, 64), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "rnn"}, "cell=rnn is not one of gru, lstm"),
        ({"dropout": 1.0}, "dropout=1.0 does not lie"),
        ({"n_layer": 0}, "n_layer=0 is not a whole number of at least 1"),
        ({"n_embd": 1.5}, "n_embd=1.5 is not a whole number"),
        ({"n_layer": True}, "n_layer=True is not a whole number"),
    ],
)
def test_an_unfit_setting_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        Recurrent(**({"vocab_size": 3, "block_size": 4, "n_layer": 1, "n_embd": 4} | changes))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_it_is_trained_kept_and_gone_on_with_like_any_model(train, text_file, cell):
    setting = (
        f"model={cell}",
        f"data.path={text_file}",
        "data.block_size=16",
        "data.train_sample=512",
        "model.n_embd=24",
        "model.dropout=0.1",
        "optimizer.lr=1e-2",
        "trainer.accelerator=cpu",
        "trainer.val_check_interval=20",
    )
    whole = train(*setting, "trainer.max_steps=40", "scheduler=constant", name="a", only=True)
    train(*setting, "trainer.max_steps=20", "scheduler=constant", name="b", only=True)
    half = train(
        *setting, "trainer.max_steps=40", "scheduler=constant", "resume=auto", name="b", only=True
    )
    assert summary(whole)["val_loss"] == summary(half)["val_loss"]  # bit for bit
    assert summary(whole)["val_loss"] < math.log(15) - 0.5
    model = Checkpoint.load(whole / "checkpoints/best.ckpt").build_model()
    assert isinstance(model.layers, nn.GRU if cell == "gru" else nn.LSTM)


def test_a_precision_in_which_the_cpu_cannot_run_a_model_is_named(train, text_file, monkeypatch):
    def lstm(*_):
        raise RuntimeError("could not create a primitive descriptor for the LSTM forward")

    monkeypatch.setattr(nn.LSTM, "forward", lstm)
    line = ("model=lstm", "model.n_embd=8", f"data.path={text_file}", "trainer.accelerator=cpu")
    with pytest.raises(UserError, match=r"trainer\.precision=bf16-mixed: this CPU cannot"):
        train(*line, "trainer.precision=bf16-mixed", only=True)
    with pytest.raises(RuntimeError, match="primitive descriptor"):
        train(*line, only=True)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_default_size_is_the_default_transformers(compose, cell):
    config = compose(f"model={cell}").model
    n = sum(
        p.numel()
        for p in Recurrent(65, 128, config.n_layer, config.n_embd, cell=config.cell).parameters()
    )
    assert n == pytest.approx(821_888, rel=0.03)  # on a CPU, with 65 characters
