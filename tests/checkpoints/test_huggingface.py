"""Exports for transformers: they load, and give our logits and our tokenization."""

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

import litchar
from conftest import ROOT, summary
from litchar import checkpoints
from litchar.checkpoints import Checkpoint
from litchar.checkpoints.checkpoint import make_card
from litchar.checkpoints.export import run
from litchar.checkpoints.huggingface import FILES
from litchar.checkpoints.model_card import model_card, text_of
from litchar.errors import UserError
from litchar.generation.text_model import TextModel
from litchar.models import Bigram, Recurrent, Transformer
from litchar.text import Vocabulary
from litchar.text.vocabulary import ByteVocabulary

GPT2 = {
    "position": "learned",
    "norm": "layer",
    "norm_eps": 1e-5,
    "qk_norm": False,
    "activation": "gelu",
    "tie_head": True,
    "init": "gpt2",
}
SIZES = {"block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 16}
TEXT = (
    "The cat's  hat,\n\n“so so” <b>&amp;</b>\t|`x` ... Zoë ! ? n't <|endoftext|> [UNK] ##a Ġ▁\r\n"
)


@pytest.fixture
def saved(tmp_path):
    """Save a model with weights far from their initial values; return the checkpoint's path."""

    def saved(vocabulary=None, data=None, kind=Transformer, provenance=None, **options):
        vocabulary = vocabulary or Vocabulary(TEXT)
        settings = {"vocab_size": len(vocabulary), **options}
        settings |= SIZES if kind is Transformer else {"block_size": 12}
        torch.manual_seed(0)
        model = kind(**settings)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p * (p.ndim == 1) + 0.4 * torch.randn_like(p))
        card = make_card(
            vocabulary,
            {"_target_": f"{kind.__module__}.{kind.__name__}", **settings},
            {"data": data or {"path": "/home/me/my|text.txt"}, "optimizer": {"lr": 1e-3}},
            fingerprint="f",
            **provenance or {},
        )
        weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        losses = {"step": 3, "val/loss": 1.25, "val/bpc": 1.8}
        path = tmp_path / "model.ckpt"
        checkpoints.save(
            {
                "state_dict": weights,
                "global_step": 3,
                "litchar": card,
                "callbacks": {"Metrics": {"history": [losses]}},
            },
            path,
        )
        return path

    return saved


def export(checkpoint, output, **changes) -> None:
    config = OmegaConf.load(ROOT / "conf" / "export.yaml")
    changes = {"format": "huggingface"} | changes
    config.merge_with({"checkpoint": str(checkpoint), "output": str(output), **changes})
    run(config)


def difference(ours: TextModel, theirs, windows: int) -> float:
    """Return the largest difference between their logits and ours on random windows."""
    T, V = ours.model.block_size, len(ours.vocabulary)  # noqa: N806
    idx = torch.from_numpy(np.random.default_rng(1).integers(V, size=(windows, T)))
    with torch.inference_mode():
        batches = [(ours.model(batch), theirs(batch).logits) for batch in idx.split(100)]
    return max((a - b).abs().max().item() for a, b in batches)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "tie_head": True,
            "init": "gpt2",
            "qkv_bias": True,
            "n_hidden": 40,
            "rope_theta": 100.0,
            "norm_eps": 0,
        },
        GPT2 | {"norm_eps": 0},
        GPT2 | {"bias": True, "tie_head": False, "activation": "relu2", "n_hidden": 40},
        GPT2 | {"bias": True, "qkv_bias": False, "activation": "gelu_tanh", "norm_eps": 0.1},
    ],
    ids=["default", "tied", "gpt2", "untied", "gelu_tanh"],
)
def test_transformers_computes_and_writes_what_ours_does(saved, tmp_path, capsys, options):
    path, output = saved(**options), tmp_path / "out"
    export(path, output)
    assert "out: logits in transformers within" in capsys.readouterr().out
    assert {file.name for file in output.iterdir()} == FILES
    assert len({file.stat().st_mode for file in output.iterdir()}) == 1
    assert [file for file in os.listdir(tmp_path) if file.startswith(".draft")] == []
    model = transformers.AutoModelForCausalLM.from_pretrained(output)
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    ours = litchar.load(path, device="cpu")
    assert difference(ours, model, 100) < 2e-5
    assert type(model).__name__ == ("GPT2LMHeadModel" if "norm" in options else "Qwen3ForCausalLM")
    tied = options.get("tie_head", False)
    weights = safetensors.torch.load_file(output / "model.safetensors")
    assert ("lm_head.weight" in weights) != tied

    prompt = "Zoë\n "
    length = 7 if "norm" in options else 40  # with rotary positions, past the context
    written = ours.generate(prompt, temperature=0, max_new_tokens=length)
    assert len(set(written)) > 2 or "norm" in options
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    said = pipeline(prompt, do_sample=False, max_new_tokens=length)
    assert said == [{"generated_text": prompt + written}]
    if "norm" in options:  # with the settings that it came with it stops at the end of the context
        assert len(pipeline("Z")[0]["generated_text"]) == 12
    with pytest.raises(Exception, match="WordLevel error"):
        pipeline("☃")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["transformer", "gpt2"])
def test_a_thousand_windows_of_a_trained_model(train, tmp_path, model):
    path = f"data.path={ROOT / 'src/litchar/text/ml.txt'}"
    run_dir = train(
        f"model={model}",
        path,
        "trainer.max_steps=200",
        "trainer.val_check_interval=200",
        "data.block_size=64",
        "model.n_embd=64",
    )
    export(run_dir, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ours = litchar.load(run_dir, device="cpu")
    assert difference(ours, theirs, 1000) < 1e-4
    losses = (tmp_path / "out" / "README.md").read_text()
    assert f"{summary(run_dir)['best_val_loss']:.4f}" in losses


@pytest.mark.parametrize(
    ("vocabulary", "data"),
    [
        (Vocabulary(TEXT), {}),
        (Vocabulary(TEXT[:-2], replaces=True), {"min_count": 2}),
        (Vocabulary(TEXT[:-2], "line"), {}),
        (Vocabulary(TEXT, "file"), {}),
        (ByteVocabulary(), {}),
        (ByteVocabulary("line"), {}),
        (ByteVocabulary("file"), {"lowercase": True}),
        (Vocabulary("οδυσευςαéfi '.\u0301é"), {"lowercase": True, "normalize": "NFC"}),
        (Vocabulary(TEXT.lower()), {"lowercase": True, "normalize": "NFKC"}),
    ],
    ids=repr,
)
def test_the_tokenizer_spells_as_ours_does(saved, tmp_path, vocabulary, data):
    path, output = saved(vocabulary, data), tmp_path / "out"
    export(path, output)
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    ours = TextModel(Checkpoint.load(path), torch.nn.Identity())
    draw = np.random.default_rng(0)
    letters = [s for s in vocabulary.symbols if s] * 3 + ["Ξ"] * vocabulary.replaces
    letters += ["\r", "\r\n"]
    if vocabulary.unit == "byte":
        letters = list(TEXT + "☃𝔛ΑΣ")
    if data.get("lowercase"):
        letters += [s.upper() for s in letters] + ["ﬁ"]
    sizes = (1, 2, 3, 5, *[30] * 9)
    texts = ["", "ΟΔΥΣ ΟΔΥΣΣ'. Ο'Σα Σ", *("".join(draw.choice(letters, size)) for size in sizes)]
    compared = 0
    for text in texts:
        try:
            ids = ours.encode(text).tolist()
        except UserError:  # unknown: theirs must not leave it out either
            with pytest.raises(Exception, match="WordLevel error"):
                tokenizer(text)
            continue
        compared += 1
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)
        assert tokenizer.decode(ids) == ours.decode(ids)
        if not data and "\r" not in text:  # which is a line's end
            assert tokenizer.decode(ids) == text
    assert compared > 5
    for _ in range(20):  # any ids, of bytes that are no UTF-8 too
        ids = draw.integers(len(vocabulary), size=30)
        assert tokenizer.decode(ids) == ours.decode(ids)


def test_a_line_ends_where_ours_ends(saved, tmp_path):
    path, output = saved(Vocabulary("ab c\n", "line")), tmp_path / "out"
    export(path, output)
    ours = litchar.load(path, device="cpu")
    pipeline = transformers.pipeline("text-generation", str(output))
    text = next(
        text
        for seed in range(99)
        if (text := ours.stream("ab", seed=seed, top_k=1, max_new_tokens=50)).whole()
        and (text.finish == "end" or seed > 2)
    )
    said = pipeline("\nab", do_sample=False, max_new_tokens=50)[0]["generated_text"]
    assert said == "\nab" + text.text + ("\n" if text.finish == "end" else "")
    assert pipeline("", max_new_tokens=3)[0]["generated_text"][0] == "\n"


@pytest.mark.parametrize(
    ("provenance", "maker"),
    [
        ({"litchar": "0.0.1"}, "litchar 0.0.1"),
        ({"litchar": "0.0.1", "imported_from": "nanoGPT"}, "nanoGPT"),
        ({}, "litchar"),
    ],
)
def test_the_card_says_who_trained_it(saved, provenance, maker):
    checkpoint = Checkpoint.load(saved(provenance=provenance))
    assert f"It was trained with {maker}. " in model_card(checkpoint, checkpoint.build_model())


@pytest.mark.parametrize("data", [{"lowercase": True}, {"normalize": "NFC"}, {}], ids=str)
def test_the_card_says_what_is_done_to_texts(saved, data):
    checkpoint = Checkpoint.load(saved(data=data))
    card = model_card(checkpoint, checkpoint.build_model())
    assert ("normalises text as the training text was" in card) == bool(data)


def test_hubs_read_the_card_of_a_checkpoint_without_losses(saved):
    checkpoint = dataclasses.replace(Checkpoint.load(saved()), losses={})
    card = ModelCard(model_card(checkpoint, checkpoint.build_model()))
    assert card.data.library_name == "transformers"
    assert card.data.eval_results is None


def test_a_link_is_written_through_and_where_one_stands_is_left(saved, tmp_path, monkeypatch):
    checkpoint = saved()
    export(checkpoint, tmp_path / "out")
    before = (tmp_path / "out" / "config.json").stat().st_ino
    (tmp_path / "link").symlink_to("out")
    export(checkpoint, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "out" / "config.json").stat().st_ino != before
    assert {path.name for path in tmp_path.iterdir()} >= {"out", "link"}
    assert not list(tmp_path.glob(".draft*"))
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for output, words in ((tmp_path / "a", "a loop of links|cannot be"), ("o" * 300, "too long")):
        for form in ("huggingface", "torch"):
            with pytest.raises(UserError, match=words):
                export(checkpoint, output, format=form)
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(UserError, match="is the current directory"):
        export(checkpoint, Path("."))


def test_a_full_disk_is_told_in_one_line(saved, tmp_path, monkeypatch):
    def full(*_):
        raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(UserError, match=r"out: cannot be written \(No space left on device\)"):
        export(saved(), tmp_path / "out")


def test_the_card_has_the_figures_and_names_no_directory(saved, tmp_path):
    export(saved(), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    result = front["model-index"][0]["results"][0]
    assert {m["type"]: m["value"] for m in result["metrics"]} == {
        "loss": 1.25,
        "bits_per_character": 1.8,
    }
    assert "| validation loss, nats per character | 1.2500 |" in body
    assert "| learning rate | 0.001 |" in body
    assert f"| vocabulary | {len(Vocabulary(TEXT))} characters |" in body
    assert "my&#124;text.txt" in body
    whole = "".join((tmp_path / "out" / name).read_text() for name in FILES if "model." not in name)
    assert "/home/me" not in whole
    assert str(tmp_path) not in whole


BUNDLED = {"_target_": "litchar.text.sources.bundled", "name": "ml.txt"}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"path": "/home/me/a.txt", "source": BUNDLED}, "a.txt"),
        ({"path": ["a.txt", "/home/me/b.txt"]}, "a.txt, b.txt"),
        ({"mixture": [{"path": "/home/me/a.txt"}, {"path": "b.txt", "name": "c"}]}, "a.txt, c"),
        ({"mixture": [{"path": "a"}, {"path": "b"}], "source": BUNDLED}, "a, b"),
        ({"name": "/home/me/set"}, "set"),
        ({"name": "org/set"}, "org/set"),
        ({"source": BUNDLED}, "ml.txt"),
        ({"source": {"url": "https://there/input.txt"}}, "input.txt"),
        ({"source": {}}, "a text"),
    ],
)
def test_the_card_names_what_was_trained_on(saved, data, name):
    assert text_of(Checkpoint.load(saved(data=data))) == name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "relu2"}, 'Qwen3, which has no model.activation="relu2" (only "swiglu")'),
        ({"norm": "layer"}, 'which has no model.norm="layer" (only "rms")'),
        ({"qk_norm": False}, "which has no model.qk_norm=false (only true)"),
        ({"logit_cap": 5.0}, "which has no model.logit_cap=5.0 (only null)"),
        ({"ngrams": [[2, 10, 4]]}, "which has no model.ngrams=[[2, 10, 4]] (only [])"),
        ({"bias": True}, "which has no model.bias=true (only false)"),
        ({"head_bias": True}, "which has no model.head_bias=true (only false)"),
        (GPT2 | {"activation": "swiglu"}, 'GPT-2, which has no model.activation="swiglu"'),
        (GPT2 | {"qk_norm": True}, "GPT-2, which has no model.qk_norm=true (only false)"),
        (GPT2 | {"head_bias": True}, "GPT-2, which has no model.head_bias=true (only false)"),
        ({"vocabulary": Vocabulary("ab\ud800")}, "has '\\ud800', half of a character"),
        ({"kind": Bigram}, "no class for model._target_=litchar.models.bigram.Bigram"),
        ({"kind": Recurrent, "n_layer": 1, "n_embd": 8}, "model._target_=litchar.models.recurrent"),
    ],
)
def test_a_form_that_transformers_has_not_is_refused_by_its_option(saved, tmp_path, options, words):
    with pytest.raises(UserError) as refusal:
        export(saved(**options), tmp_path / "out")
    assert words in str(refusal.value)
    assert os.listdir(tmp_path) == ["model.ckpt"]


def test_what_an_export_has_not_written_is_not_replaced(saved, tmp_path):
    path, output = saved(), tmp_path / "out"
    output.mkdir()
    for content in ("5", '"litchar"', '{"model_type": "gpt2"}'):
        (output / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"holds files that litchar did not export"):
            export(path, output)
    assert os.listdir(output) == ["config.json"]
    (output / "config.json").unlink()
    export(path, output)  # an empty one is filled
    weights = (output / "model.safetensors").read_bytes()
    export(saved(**GPT2), output)  # and one of ours replaced
    assert json.loads((output / "config.json").read_text())["model_type"] == "gpt2"
    assert (output / "model.safetensors").read_bytes() != weights
    (output / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds files that litchar did not export"):
        export(path, output)
    with pytest.raises(UserError, match=r"is a file; name a directory"):
        export(path, path)


def test_a_missing_package_is_named_with_its_extra(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs the package transformers: .*\.\[hf\]"):
        export(saved(), tmp_path / "out")
    assert os.listdir(tmp_path) == ["model.ckpt"]


@pytest.mark.slow
def test_the_page_about_exports_runs_as_it_is_written(train, tmp_path, monkeypatch, capsys):
    text = f"data.path={ROOT / 'src/litchar/text/ml.txt'}"
    run_dir = train(text, "trainer.max_steps=2", "trainer.val_check_interval=2")
    monkeypatch.chdir(tmp_path)
    for form, output in (
        ("huggingface", "exported"),
        ("onnx", "model.onnx"),
        ("torch", "model.pt2"),
    ):
        export(run_dir, tmp_path / output, format=form)
    capsys.readouterr()
    page = (ROOT / "docs" / "export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/export.md", "exec"), {})
    onnx, torch_program = capsys.readouterr().out.splitlines()[-2:]
    assert onnx == torch_program
