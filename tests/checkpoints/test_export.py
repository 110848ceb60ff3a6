"""Exported models give the same outputs as ours."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

import litchar.models
from conftest import ROOT
from litchar.checkpoints import Checkpoint, save
from litchar.checkpoints.checkpoint import make_card
from litchar.checkpoints.export import run
from litchar.errors import UserError
from litchar.text import Vocabulary

onnxruntime = pytest.importorskip("onnxruntime")
TINY = ("trainer.max_steps=2", "trainer.val_check_interval=2")


def export(checkpoint, output, **changes) -> None:
    config = OmegaConf.load(ROOT / "conf" / "export.yaml")
    config.merge_with({"checkpoint": str(checkpoint), "output": str(output), **changes})
    run(config)


@pytest.mark.parametrize(
    "overrides",
    [
        (),  # the default transformer
        pytest.param(("model=gru", "model.n_layer=2"), marks=pytest.mark.slow),
        pytest.param(("model=bigram",), marks=pytest.mark.slow),
        pytest.param(("model=gpt2", "model.logit_cap=5.0"), marks=pytest.mark.slow),
        pytest.param(("model=lstm", "model.n_layer=1"), marks=pytest.mark.slow),
    ],
    ids=["transformer", "gru", "bigram", "gpt2", "lstm"],
)
def test_onnx_gives_our_logits_at_any_batch_size_and_length(
    train, text_file, tmp_path, capsys, overrides
):
    small = ("data.block_size=12", f"data.path={text_file}", "trainer.accelerator=cpu", *TINY)
    sizes = () if "model=bigram" in overrides else ("model.n_embd=16",)
    if not overrides or "model=gpt2" in overrides[0]:
        sizes += ("model.n_layer=2", "model.n_head=2")
    run_dir = train(*small, *sizes, *overrides, only=True)
    output = tmp_path / "m.onnx"
    export(run_dir, output)
    assert "within" in capsys.readouterr().out
    checkpoint = Checkpoint.load(run_dir / "checkpoints/best.ckpt")
    model = checkpoint.build_model()
    session = onnxruntime.InferenceSession(output)
    assert session.get_inputs()[0].shape == ["batch", "time"]
    assert session.get_outputs()[0].shape == ["batch", "time", len(checkpoint.vocabulary)]
    for shape in ((1, 1), (1, 12), (5, 3), (2, 11)):
        ids = np.random.default_rng(0).integers(len(checkpoint.vocabulary), size=shape)
        with torch.inference_mode():
            ours = model(torch.from_numpy(ids)).numpy()
        theirs = session.run(["logits"], {"ids": ids})[0]
        np.testing.assert_allclose(theirs, ours, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["litchar.vocabulary"]) == checkpoint.vocabulary.to_json()
    assert json.loads(metadata["litchar.symbols"]) == checkpoint.vocabulary.symbols
    assert json.loads(metadata["litchar.block_size"]) == 12
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".draft")] == []


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(train, tmp_path):
    run_dir = train(*TINY)
    with pytest.raises(UserError, match=r"format=pickle: must be one of huggingface, onnx, torch"):
        export(run_dir, tmp_path / "m", format="pickle")
    with pytest.raises(UserError, match=r"m.PT2: format=onnx is not .*; set format=torch, or"):
        export(run_dir, tmp_path / "m.PT2", format="onnx")
    with pytest.raises(UserError, match=r"m.safetensors: name the directory that format=hugg"):
        export(run_dir, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"output=.*nowhere.m.onnx: there is no directory"):
        export(run_dir, tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(UserError, match=r"output=.*: is a directory"):
        export(run_dir, tmp_path)
    with pytest.raises(UserError, match="no such checkpoint"):
        export(tmp_path / "none.ckpt", tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"output=~nobody-here/m.onnx: there is no directory"):
        export(run_dir, Path("~nobody-here/m.onnx"))
    assert not list(tmp_path.glob("*.onnx"))


LOADER = """
import json, sys
import numpy as np, torch
sys.modules["litchar"] = None  # as on a machine that has none
extra = {"litchar.symbols": "", "litchar.block_size": ""}
path = sys.argv[1]
program = torch.export.load(path, extra_files=extra).module()
arrays = np.load(path + ".npz")
for i in range(len(arrays) // 2):
    logits = program(torch.from_numpy(arrays[f"ids{i}"]))
    np.testing.assert_allclose(logits.detach().numpy(), arrays[f"logits{i}"], atol=1e-6)
print(json.loads(extra["litchar.symbols"]), extra["litchar.block_size"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model.n_head=2", "model.n_layer=1", "model.ngrams=[[2,50,4]]", "model.logit_cap=5.0"),
        ("model=gpt2", "model.n_head=2"),
        ("model=bigram",),
    ],
    ids=["transformer", "gpt2", "bigram"],
)
def test_a_torch_program_gives_our_logits_where_there_is_no_litchar(
    train, text_file, tmp_path, overrides
):
    small = ("data.block_size=12", f"data.path={text_file}", "trainer.accelerator=cpu", *TINY)
    sizes = () if "model=bigram" in overrides else ("model.n_embd=16",)
    run_dir = train(*small, *sizes, *overrides, only=True)
    output = tmp_path / "m.pt2"
    export(run_dir, output, format="torch")
    with zipfile.ZipFile(output) as archive:
        assert not any(str(ROOT).encode() in archive.read(name) for name in archive.namelist())
    checkpoint = Checkpoint.load(run_dir / "checkpoints/best.ckpt")
    model = checkpoint.build_model()
    arrays = {}
    for i, shape in enumerate(((1, 1), (1, 12), (5, 3), (2, 11))):
        ids = np.random.default_rng(0).integers(len(checkpoint.vocabulary), size=shape)
        with torch.inference_mode():
            logits = model(torch.from_numpy(ids)).numpy()
        arrays |= {f"ids{i}": ids, f"logits{i}": logits}
    np.savez(f"{output}.npz", **arrays)
    command = [sys.executable, "-c", LOADER, str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"{checkpoint.vocabulary.symbols} 12\n", done.stderr


def test_a_recurrent_layer_is_refused_where_its_length_would_be_fixed(train, text_file, tmp_path):
    sizes = ("model.n_embd=8", "model.n_layer=1", "data.block_size=12", f"data.path={text_file}")
    run_dir = train("model=lstm", *sizes, "trainer.accelerator=cpu", *TINY, only=True)
    with pytest.raises(UserError, match=r"fixes the input length of a Recurrent .*format=onnx"):
        export(run_dir, tmp_path / "m.pt2", format="torch")
    assert not list(tmp_path.glob("*m.pt2*"))


class Looped(nn.Module):
    """A model of one's own around `nn.RNN`, whose length torch writes down."""

    def __init__(self, vocab_size, block_size):
        super().__init__()
        self.block_size = block_size
        self.embedding = nn.Embedding(vocab_size, 4)
        self.rnn = nn.RNN(4, 4, batch_first=True)
        self.head = nn.Linear(4, vocab_size)

    def forward(self, idx):
        return self.head(self.rnn(self.embedding(idx))[0])


class Biased(nn.Module):
    """A model of one's own that torch traces otherwise at its longest length."""

    def __init__(self, vocab_size, block_size):
        super().__init__()
        self.block_size = block_size
        self.embedding = nn.Embedding(vocab_size, 4)
        self.register_buffer("bias", torch.ones(block_size, block_size).tril().log())
        self.head = nn.Linear(4, vocab_size)

    def forward(self, idx):
        x = self.embedding(idx)
        bias = self.bias[: idx.shape[1], : idx.shape[1]].reshape(idx.shape[1], idx.shape[1])
        return self.head(F.softmax(x @ x.mT + bias, dim=-1) @ x)


@pytest.mark.parametrize(
    ("model", "format", "words"),
    [
        (Looped, "onnx", r"torch cannot export a Looped \(model._target_=litchar.models.Looped\)"),
        (Looped, "torch", "fixes the input length of a Looped"),
        (Biased, "torch", "fixes the input length of a Biased"),
    ],
)
def test_a_model_that_torch_cannot_export_is_refused(tmp_path, monkeypatch, model, format, words):
    monkeypatch.setattr(model, "__module__", "litchar.models")
    monkeypatch.setattr(litchar.models, model.__name__, model, raising=False)
    sizes = {"vocab_size": 3, "block_size": 8}
    weights = {f"model.{name}": weight for name, weight in model(**sizes).state_dict().items()}
    settings = {"_target_": f"litchar.models.{model.__name__}", **sizes}
    card = make_card(Vocabulary("abc"), settings, {"seed": 1}, fingerprint="f")
    path = tmp_path / "own.ckpt"
    save({"state_dict": weights, "global_step": 1, "litchar": card}, path)
    with pytest.raises(UserError, match=words) as refusal:
        export(path, tmp_path / "exported", format=format)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == [path]
