"""`litchar.load`: a trained model from Python."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.overrides import TorchFunctionMode

import litchar
from conftest import ROOT, summary
from litchar.analysis.documents import document_losses
from litchar.checkpoints import Checkpoint
from litchar.errors import UserError
from litchar.generation.lean import LeanReader
from litchar.generation.readers import Prepared
from litchar.generation.scoring import Score, log_probs_of
from litchar.generation.text_model import TextModel
from litchar.generation.writing import Settings, write
from litchar.text import ByteVocabulary


class AppleGPU(TorchFunctionMode):
    """Refuses float64 as Apple's GPUs do, except for what was moved to the CPU before."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[torch.Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.double and not any(args[0] is tensor for tensor in self.moved):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.cpu:
            self.moved.append(result)
        return result


TINY = ("trainer.max_steps=2", "trainer.val_check_interval=1")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Run directories shared by tests, by name."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def model(train, kept) -> TextModel:
    if not (kept / "run").exists():
        shutil.move(train(*TINY), kept / "run")  # where no test looks for the latest
    return litchar.load(kept / "run", device="cpu")


def test_importing_litchar_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'hydra', 'lightning', 'omegaconf'}"
    code = f"import sys, litchar; print({heavy} & set(sys.modules)); print(litchar.load)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("set()\n<function load")


def test_its_defaults_are_those_of_the_script():
    config = OmegaConf.load(ROOT / "conf" / "generate.yaml")
    assert {field.name: field.default for field in fields(Settings)} == {
        field.name: config[field.name] for field in fields(Settings)
    }


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model=gpt2", "data.unit=byte"),
        ("model=gru", "model.n_layer=1", "data.document=line"),
        ("model=lstm", "model.n_layer=1", "data.lowercase=true"),
        ("model=bigram",),
    ],
    ids=lambda overrides: "-".join(overrides),
)
def test_it_writes_what_the_script_prints(train, generated, text_file, overrides):
    small = ("data.block_size=16", f"data.path={text_file}", "trainer.accelerator=cpu", *TINY)
    sizes = () if "model=bigram" in overrides else ("model.n_embd=16",)
    heads = (
        () if overrides and "gpt2" not in overrides[0] else ("model.n_head=2", "model.n_layer=1")
    )
    run_dir = train(*small, *sizes, *heads, *overrides, only=True)
    ours = litchar.load(run_dir, device="cpu")
    options = {"max_new_tokens": 30, "top_k": 5, "seed": 3, "stop": "9"}
    printed, _ = generated(
        f"checkpoint={run_dir}", "prompt=1 AND", "unknown=skip", "num_samples=1",
        *(f"{key}={value}" for key, value in options.items()),
    )  # fmt: skip
    read = ours.decode(ours.encode("1 AND", unknown="skip"))
    assert read == ("1 and" if "data.lowercase=true" in overrides else read)
    text = ours.stream("1 AND", unknown="skip", **options)
    assert text.prompt == read
    pieces = list(text)
    assert "".join(pieces) == text.text == ours.generate("1 AND", unknown="skip", **options)
    assert f"{read}{text.text}\n" == printed
    assert len(text.log_probs) == len(text.ids)
    score = ours.score("11 22", unknown="skip")
    assert score.log_probs.shape == (len(score.ids) - (ours.vocabulary.document is None),)


def test_the_mean_of_a_score_is_that_of_the_characters_it_counts(train, text_file):
    """Neither includes the bytes of a first character that is not predicted."""
    model = litchar.load(train(*TINY, "data.unit=byte"), device="cpu")
    score = model.score("日本語x")
    bits = [bits for _, bits, _ in score.surprises()]
    assert score.n_predicted == 3
    assert score.bits_per_character == pytest.approx(sum(bits[1:]) / 3)
    broken = model.score(b"\xe6\x97a".decode(errors="surrogateescape"))
    assert broken.bits_per_character == pytest.approx(-broken.log_probs.sum() / np.log(2))
    with pytest.raises(UserError, match="needs 2 characters"):
        model.score("日")


def test_the_most_surprising_are_as_many_as_were_asked_for():
    vocabulary = ByteVocabulary()
    ids = vocabulary.encode("é" + "a" * 12)  # whose first character is not predicted
    score = Score(vocabulary, ids, np.full(len(ids) - 1, -1.0))
    lines = score.most_surprising(10)
    assert len(lines) == 10
    assert all("'a'" in line.partition(" after ")[0] for line in lines)


def test_a_document_is_scored_behind_its_boundary_as_the_evaluation_does(train, text_file):
    sizes = ("model.n_embd=16", "model.n_head=2", "model.n_layer=1", "data.block_size=16")
    text = (f"data.path={text_file}", "data.document=line", "trainer.accelerator=cpu")
    model = litchar.load(train(*text, *sizes, *TINY, only=True), device="cpu")
    ids = model.encode("11 and 22").astype(np.int64)
    closed = torch.from_numpy(np.concatenate(([0], ids, [0])))
    with AppleGPU():
        whole = document_losses(model.model, closed, 1, torch.device("cpu"))
    score = model.score("11 and 22")
    end = log_probs_of(model.model, closed.numpy())[-1]  # which a score does not count
    assert -score.log_probs.sum() - end == pytest.approx(whole.item(), abs=1e-4)
    assert score.n_predicted == len(score.text) == len(list(score.surprises()))
    assert "not predicted" not in repr(score)
    assert model.score("1").n_predicted == 1
    with pytest.raises(UserError, match=r"^score: needs a character that the model knows$"):
        model.score("")
    assert len(score.most_surprising(99)) == len(score.text)


def test_a_text_streams_as_it_is_sampled(model, monkeypatch):
    reads = []
    read = LeanReader.read

    def counted(reader, idx):
        reads.append(idx)
        return read(reader, idx)

    pieces = iter(model.stream("1 and", max_new_tokens=10**9))
    monkeypatch.setattr(LeanReader, "read", counted)
    for n in range(1, 6):
        next(pieces)
        assert len(reads) == n


def test_texts_sampled_together_and_kept_are_each_their_own(model):
    prepared = Prepared(model.model)
    prepared.on_cpu, prepared.lean = False, None  # as on a GPU
    ids = model.encode("1 and")
    kept = list(write(prepared, model.vocabulary, ids, Settings(max_new_tokens=12), 3))
    alone = [model.generate("1 and", max_new_tokens=12, seed=1337 + i) for i in range(3)]
    assert [writing.whole() for writing in kept] == alone


def test_a_score_is_that_of_the_script_and_shows_colours_in_a_notebook(model, generated):
    score = model.score("1 and 2\n3 and")
    printed, _ = generated(f"checkpoint={model.checkpoint.path}", "score=1 and 2\n3 and")
    surprises = "\n".join(score.most_surprising())
    assert printed == f"1 and 2\n3 and\n{score}\nThe most surprising characters:\n{surprises}\n"
    html = score._repr_html_()
    assert html.startswith("<pre>")
    assert "color:" in html
    bare = re.sub(r"<[^>]+>", "", html)
    assert bare.startswith("1 and 2\n3 and\nbits: 0-1")
    assert str(score) in bare


def test_what_a_notebook_shows_is_escaped(train, tmp_path):
    path = tmp_path / "html.txt"
    path.write_text("<b>&amp;</b>\n" * 300)
    model = litchar.load(train(f"data.path={path}", *TINY, name="<img src=x>"), device="cpu")
    assert "<img" not in model._repr_html_()
    assert "&lt;img src=x&gt;" in model._repr_html_()
    html = model.score("<b>&amp;</b>")._repr_html_()
    assert "<b>" not in html
    assert "&amp;" in html


def test_its_repr_says_what_it_is(model):
    parameters = sum(p.numel() for p in model.model.parameters())
    for said in (repr(model), model._repr_html_()):
        for fact in ("Transformer", f"{parameters:,}", "15 characters", str(model.checkpoint.path)):
            assert fact in said
    assert f"{model.checkpoint.losses['val/loss']:.4f} nats per character" in repr(model)
    run_dir = model.checkpoint.path.parents[1]
    last = Checkpoint.load(run_dir / "checkpoints/last.ckpt").losses
    assert last["val/loss"] == summary(run_dir)["val_loss"]
    assert model.checkpoint.losses["val/bpc"] == pytest.approx(
        model.checkpoint.losses["val/loss"] / np.log(2)
    )


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda model: litchar.load("/nowhere/a.ckpt"), r"^/nowhere/a.ckpt: no such checkpoint$"),
        (lambda model: litchar.load(), r"^checkpoint=latest: no run under .*outputs has"),
        (
            lambda model: litchar.load(model.checkpoint.path, device="nsu"),
            r"^device=nsu: not available",
        ),
        (
            lambda model: litchar.load(model.checkpoint.path, device="meta"),
            r"^device=meta: not available",
        ),
        (lambda model: model.encode("é"), r"^the model never saw 'é' \(LATIN SMALL"),
        (lambda model: model.generate("é"), r"^the model never saw 'é'"),
        (lambda model: model.generate("1", unknown="??"), None),
        (lambda model: model.generate("é", unknown="??"), r"^unknown=\?\?: must be error, skip"),
        (lambda model: model.generate("é", unknown=None), r"^unknown=None: must be error, skip"),
        (lambda model: model.stream("1", temperature=-1), r"^temperature=-1: must be 0"),
        (lambda model: model.stream("1", seed=True), r"^seed=True: must be a whole number"),
        (
            lambda model: model.stream("1", stop=["a", ""]),
            r"^stop=\['a', ''\]: must be a non-empty",
        ),
        (lambda model: model.stream("1", stop=5), r"^stop=5: must be a non-empty text"),
        (lambda model: litchar.load(None), r"^checkpoint=null: give a file"),
        (lambda model: model.score("1"), r"^score: needs 2 characters"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_scripts(model, use, message):
    if message is None:
        use(model)
    else:
        with pytest.raises(UserError, match=message):
            use(model)


def test_numbers_of_numpy_are_numbers(model):
    expected = model.generate("1", seed=3, max_new_tokens=5, temperature=0.5, top_k=4)
    assert expected == model.generate(
        "1",
        seed=np.int64(3),
        max_new_tokens=np.int32(5),
        temperature=np.float32(0.5),
        top_k=np.int8(4),
    )


def test_the_page_about_python_runs_as_it_is_written(train, capsys):
    page = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 6
    train(f"data.path={ROOT / 'src/litchar/text/ml.txt'}", *TINY)  # the newest run: `latest`
    capsys.readouterr()
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    out = capsys.readouterr().out
    assert "never saw '☃' (SNOWMAN); leave such characters out with unknown=skip" in out
    assert "bits per character over 15 characters" in out
    assert names["text"].seed == 1338
