"""Importing nanoGPT checkpoints: the same logits, and no code in the files runs."""

import math
import os
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import litchar
from conftest import composed, summary
from litchar.checkpoints import Checkpoint
from litchar.checkpoints.nanogpt import run
from litchar.errors import UserError
from litchar.overrides import quote

CHARACTERS = "\n !abcdefé"
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": len(CHARACTERS)}


def published(bias: bool, vocab_size: int = len(CHARACTERS)) -> dict[str, torch.Tensor]:
    """Return random weights under the names in nanoGPT's state dict."""
    C, T = SIZES["n_embd"], SIZES["block_size"]  # noqa: N806
    shapes = {"transformer.wte.weight": (vocab_size, C), "transformer.wpe.weight": (T, C)}
    for i in range(SIZES["n_layer"]):
        for name, shape in {
            "ln_1.weight": (C,),
            "attn.c_attn.weight": (3 * C, C),
            "attn.c_proj.weight": (C, C),
            "ln_2.weight": (C,),
            "mlp.c_fc.weight": (4 * C, C),
            "mlp.c_proj.weight": (C, 4 * C),
        }.items():
            shapes[f"transformer.h.{i}.{name}"] = shape
    shapes["transformer.ln_f.weight"] = (C,)
    if bias:
        for name, shape in list(shapes.items()):
            if ".h." in name or "ln_f" in name:
                shapes[name.replace("weight", "bias")] = shape[:1]
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.4 * torch.randn(s, generator=generator) for name, s in shapes.items()}
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def reference(state: dict, idx: torch.Tensor, approximate: str) -> torch.Tensor:
    """Return GPT-2's logits, written out: (B, T) -> (B, T, V)."""

    def get(name):
        return state[f"transformer.{name}.weight"], state.get(f"transformer.{name}.bias")

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], *get(name))

    B, T = idx.shape  # noqa: N806
    x = get("wte")[0][idx] + get("wpe")[0][:T]
    H = SIZES["n_head"]  # noqa: N806
    hidden = torch.full((T, T), -torch.inf).triu(1)
    for i in range(SIZES["n_layer"]):
        block = f"h.{i}."
        qkv = F.linear(norm(x, block + "ln_1"), *get(block + "attn.c_attn"))
        q, k, v = (part.view(B, T, H, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        weights = (q @ k.mT / q.shape[-1] ** 0.5 + hidden).softmax(-1)
        y = (weights @ v).transpose(1, 2).reshape(B, T, -1)
        x = x + F.linear(y, *get(block + "attn.c_proj"))
        inner = F.linear(norm(x, block + "ln_2"), *get(block + "mlp.c_fc"))
        inner = F.gelu(inner, approximate=approximate)
        x = x + F.linear(inner, *get(block + "mlp.c_proj"))
    return F.linear(norm(x, "ln_f"), state["lm_head.weight"])


@pytest.fixture
def written(tmp_path):
    """Write `ckpt.pt` and `meta.pkl` as nanoGPT does; return the import's arguments."""

    def written(state=None, itos=None, args=(), **changes):
        state = published(bias=False) if state is None else state
        itos = itos or dict(enumerate(CHARACTERS))
        parameters = [
            nn.Parameter(p.clone()) for name, p in state.items() if name != "lm_head.weight"
        ]
        optimizer = torch.optim.AdamW([{"params": parameters}], lr=1e-3)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        content = {
            "model": state,
            "optimizer": optimizer.state_dict(),
            "model_args": SIZES | {"bias": False, "dropout": 0.0} | dict(args),
            "iter_num": 250,
            "best_val_loss": torch.tensor(1.5),
            "config": {"dataset": "letters", "learning_rate": 1e-3, "batch_size": 12, "a": True},
        }
        torch.save(content | changes, tmp_path / "ckpt.pt")
        meta = {"vocab_size": len(itos), "itos": itos, "stoi": {c: i for i, c in itos.items()}}
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
        return (f"checkpoint={tmp_path / 'ckpt.pt'}", f"meta={tmp_path / 'meta.pkl'}")

    return written


@pytest.fixture
def imported(tmp_path):
    """Import a model in this process, as the script does; return the checkpoint's path."""

    def imported(*overrides):
        output = tmp_path / "run.ckpt"
        run(composed("import_nanogpt", f"output={output}", *map(quote, overrides)))
        return output

    return imported


@pytest.mark.parametrize("kind", ["plain", "bias", "compiled", "early", "untied", "unsorted"])
def test_its_logits_are_nanogpts(written, imported, capsys, kind):
    state = published(bias=kind == "bias")
    if kind == "untied":
        state["lm_head.weight"] = torch.randn(state["lm_head.weight"].shape)
    ids = np.random.default_rng(0).permutation(len(CHARACTERS))
    ids = ids if kind == "unsorted" else np.arange(len(CHARACTERS))
    itos = {int(i): c for i, c in zip(ids, CHARACTERS, strict=True)}
    idx = torch.randint(len(CHARACTERS), (50, 12), generator=torch.Generator().manual_seed(1))
    approximate = "tanh" if kind == "early" else "none"
    theirs = reference(state, torch.from_numpy(ids)[idx], approximate)[..., ids]
    stored = state | {"transformer.h.0.attn.bias": torch.ones(1, 1, 12, 12)}
    if kind == "compiled":
        stored = {f"_orig_mod.{name}": tensor for name, tensor in stored.items()}
    options = ("model.activation=gelu_tanh",) if kind == "early" else ()
    path = imported(*written(stored, itos, {"bias": kind == "bias"}), *options)
    ours = litchar.load(path, device="cpu")
    with torch.inference_mode():
        np.testing.assert_allclose(ours.model(idx), theirs, atol=2e-5)
    assert ours.vocabulary.characters == CHARACTERS
    assert ours.checkpoint.step == 250
    said = capsys.readouterr().out
    assert "10 characters, step 250" in said
    assert f"model.bias={kind == 'bias'} model.tie_head={kind != 'untied'}".lower() in said


def test_its_training_goes_on(written, imported, train, loss_of, tmp_path, capsys):
    path = imported(*written(published(bias=True), args={"bias": True}))
    command = re.search(r"init_from=.*? data=text", capsys.readouterr().out)[0].split()[:-1]
    (tmp_path / "letters.txt").write_text("abc def!\ncafé " * 300)
    text = (f"data.path={tmp_path / 'letters.txt'}", "trainer.accelerator=cpu", "data.batch_size=8")
    steps = ("trainer.max_steps=40", "trainer.val_check_interval=20", "optimizer.lr=1e-2")
    run_dir = train(*command, *text, *steps, only=True)
    out = capsys.readouterr().out
    assert "10 characters matched, 0 new, 0 dropped" in out
    assert "in a different model" not in out
    before = loss_of(f"checkpoint={path}", f"data.path={tmp_path / 'letters.txt'}")
    assert summary(run_dir)["val_loss"] < 0.85 * before
    assert Checkpoint.load(run_dir / "checkpoints/best.ckpt").model_settings["bias"] is True

    with pytest.raises(UserError, match=r"model\.bias=true there, false here"):
        train(f"init_from={path}", "model=gpt2", *text, *steps, name="other", only=True)
    train(*command, "model.activation=relu", *text, "trainer.max_steps=1", name="relu", only=True)
    assert (
        'in a different model: model.activation="gelu" there, "relu" here'
        in capsys.readouterr().out
    )


class Gadget:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_meta_is_refused_and_does_not_run(written, imported, tmp_path, protocol):
    arguments, mark = written(), tmp_path / "it ran"
    for content in (Gadget(mark), {"vocab_size": 9, "itos": {0: Gadget(mark)}, "stoi": {}}):
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(UserError, match=r"meta=.*nothing in it was run"):
            imported(*arguments)
    assert not mark.exists()
    assert not (tmp_path / "run.ckpt").exists()


@pytest.mark.parametrize("place", ["model", "config", "itself"])
def test_a_hostile_checkpoint_is_refused_and_does_not_run(written, imported, tmp_path, place):
    mark = tmp_path / "it ran"
    arguments = written(**({} if place == "itself" else {place: {"x": Gadget(mark)}}))
    if place == "itself":
        (tmp_path / "ckpt.pt").write_bytes(pickle.dumps(Gadget(mark)))
    with pytest.raises(UserError, match="so it was not loaded"):
        imported(*arguments)
    assert not mark.exists()
    assert not (tmp_path / "run.ckpt").exists()


HUGE_ARRAY = b"\x80\x05\x96" + (1 << 50).to_bytes(8, "little") + b"."
NESTED = b"\x80\x02})" + b"\x85" * 3_000_000 + b"Ns."  # tuples in tuples, as a key
HUGE_MEMO = b"\x80\x02}r\xff\xff\xff\x7f."  # would make room for two thousand million objects


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        (b"", "nothing in it was run"),
        (b"not a pickle", "nothing in it was run"),
        (HUGE_MEMO, "would take too much memory"),
        (HUGE_ARRAY, "nothing in it was run"),
        pytest.param(NESTED, "EMPTY_TUPLE in it would do more", id="tuples in tuples"),
        (pickle.dumps([1, 2]), "nothing in it was run"),
        (pickle.dumps({"itos": {0: "ab"}}), "its tokens are not characters"),
        (pickle.dumps({"itos": {0: "a", 1: "a"}}), "two ids for one character"),
        (pickle.dumps({"itos": {0: "a", 2: "b"}}), "nothing in it was run"),
        (pickle.dumps({"itos": dict(enumerate("ab"))}), "has 2 characters, but .* for 10 tokens"),
    ],
)
def test_a_meta_of_something_else_is_refused(written, imported, tmp_path, meta, words):
    arguments = written()
    (tmp_path / "meta.pkl").write_bytes(meta)
    with pytest.raises(UserError, match=words):
        imported(*arguments)
    assert not (tmp_path / "run.ckpt").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"args": {"vocab_size": 50304}}, r"for 50304 tokens: they do not belong"),
        ({"args": {"n_layer": 3}}, r"do not fit its settings: missing"),
        ({"args": {"n_embd": 32}}, r"do not fit its settings: .* has shape"),
        ({"args": {"n_head": "two"}}, r"do not fit"),
        ({"args": {"block_size": 2**40}}, r"do not fit"),
        ({"state": {"transformer.h.0.moe.weight": torch.ones(1)}}, r"GPT-2 has no weight .*moe"),
        ({"state": {"transformer.wte.weight": 3}}, r"not a checkpoint that nanoGPT wrote"),
        ({"model": None}, r"not a checkpoint that nanoGPT wrote"),
        (
            {"state": {"transformer.wte.weight": torch.ones(3, 16)}},
            r"not a checkpoint that nanoGPT",
        ),
        (
            {"state": {"transformer.wte.weight": torch.zeros(1).expand(10, 2**40)}},
            r"not a checkpoint .*token_embedding.weight claims more",
        ),
        (
            {"state": {"transformer.wte.weight": torch.zeros(10, 16).to_sparse()}},
            r"not a checkpoint .*token_embedding.weight is not a plain tensor",
        ),
        (
            {"state": {"transformer.ln_f.weight": torch.full((16,), math.nan)}},
            r"norm\.weight has a value that is not finite",
        ),
        ({"iter_num": math.inf}, r"not a checkpoint that nanoGPT wrote"),
        ({"iter_num": "many"}, r"not a checkpoint that nanoGPT wrote"),
        ({"model_args": None}, r"not a checkpoint that nanoGPT wrote"),
    ],
)
def test_what_nanogpt_did_not_write_is_refused(written, imported, tmp_path, changes, words):
    if "state" in changes:
        changes = {"model": published(bias=False) | changes["state"]}
    with pytest.raises(UserError, match=words):
        imported(*written(**changes))
    assert not (tmp_path / "run.ckpt").exists()


def test_tokens_that_are_no_characters_are_refused_with_the_reason(written, imported, tmp_path):
    checkpoint, meta = written(args={"vocab_size": 50304})
    with pytest.raises(UserError, match=r"50304 tokens are GPT-2's word pieces \(BPE\)"):
        imported(checkpoint)
    checkpoint, meta = written()
    with pytest.raises(UserError, match=r"which characters its 10 tokens are; give"):
        imported(checkpoint)
    path = imported(checkpoint, meta)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"output=.*already exists"):
        imported(checkpoint, meta)
    assert path.read_bytes() == before
    path.unlink()
    path.symlink_to("elsewhere.ckpt")  # which is not there yet
    with pytest.raises(UserError, match=r"output=.*already exists"):
        imported(checkpoint, meta)
    path.unlink()
    with pytest.raises(UserError, match=r"meta=/nowhere.pkl: cannot be read"):
        imported(checkpoint, "meta=/nowhere.pkl")
    with pytest.raises(UserError, match=r"~nobody-here.pkl: cannot be read"):
        imported(checkpoint, "meta=~nobody-here.pkl")
