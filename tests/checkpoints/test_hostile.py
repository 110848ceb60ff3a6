"""Untrusted files: no code in them runs, and invalid contents allocate no memory."""

import builtins
import collections
import math
import os
import pickle
import random
import zipfile

import pytest
import torch

import litchar.models
from litchar import checkpoints
from litchar.checkpoints import Checkpoint
from litchar.checkpoints.checkpoint import MODELS, make_card
from litchar.errors import UserError
from litchar.launched import Place
from litchar.models import Transformer
from litchar.terminal import Terminal
from litchar.text import Vocabulary

SIZES = {"vocab_size": 5, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}


@pytest.fixture
def content():
    torch.manual_seed(0)
    settings = {"_target_": "litchar.models.Transformer", **SIZES}
    weights = Transformer(**SIZES).state_dict()
    return {
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
        "global_step": 7,
        "litchar": make_card(Vocabulary("abcde"), settings, {"seed": 1}, fingerprint="f"),
    }


def refused(path):
    """Load the checkpoint and build its model, as every script does; return the error message."""
    with pytest.raises(UserError) as refusal:
        Checkpoint.load(path).build_model()
    assert path.name in str(refusal.value)
    return str(refusal.value)


HUGE = torch.zeros(1).expand(2**42, 8)  # claims 140 TB, and stores four bytes


class Gadget:
    """An object that pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def gadgets(mark):
    return {
        "os.system": Gadget(os.system, f"touch {mark}"),
        "eval": Gadget(builtins.eval, f"open({str(mark)!r}, 'w')"),
        "exec": Gadget(builtins.exec, f"open({str(mark)!r}, 'w')"),
        "import": Gadget(builtins.__import__, "antigravity"),
        "nested": collections.OrderedDict(a=[{"b": Gadget(os.mkdir, str(mark))}]),
    }


@pytest.mark.parametrize("kind", gadgets(""))
@pytest.mark.parametrize("place", ["beside", "within", "as a weight", "in the vocabulary", "alone"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_is_refused_and_does_not_run(content, tmp_path, kind, place, zipped):
    mark = tmp_path / "it ran"
    gadget = gadgets(mark)[kind]
    if place == "beside":
        content["payload"] = gadget
    elif place == "within":
        content["litchar"]["config"]["data"] = gadget
    elif place == "as a weight":
        content["state_dict"]["model.head.weight"] = gadget
    elif place == "in the vocabulary":
        content["litchar"]["vocabulary"]["characters"] = gadget
    else:
        content = gadget
    path = tmp_path / "hostile.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(path)
    assert not mark.exists()


def test_a_plain_pickle_is_refused_and_does_not_run(tmp_path):
    mark = tmp_path / "it ran"
    path = tmp_path / "hostile.ckpt"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(gadgets(mark)["os.system"], protocol=protocol))
        refused(path)
    assert not mark.exists()


def test_a_compiled_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / "hostile.ckpt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    refused(path)


@pytest.mark.linux
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["litchar"]["vocabulary"].update(characters="abc"), "3 characters"),
        (lambda c: c["litchar"]["vocabulary"].update(characters=[1, 2, 3, 4, 5]), "litchar wrote"),
        (lambda c: c["litchar"].update(vocabulary=None), "litchar wrote"),
        (lambda c: c.update(global_step="many"), "litchar wrote"),
        (lambda c: c.update(global_step=math.inf), "litchar wrote"),
        (lambda c: c["state_dict"].pop("model.head.weight"), "missing"),
        (lambda c: c["state_dict"].update({"model.more": torch.zeros(1)}), "surplus"),
        (lambda c: c["state_dict"].update({"more": torch.zeros(1)}), "more is not a weight"),
        (
            lambda c: c["state_dict"].update({"head.weight": c["state_dict"]["model.head.weight"]}),
            "head.weight is not a weight",
        ),
        (lambda c: c["state_dict"].update({"model.head.weight": [1.0]}), "not a plain tensor"),
        (
            lambda c: c["state_dict"].update({"model.head.weight": torch.zeros(5, 8).to_sparse()}),
            "not a plain tensor",
        ),
        (
            lambda c: c["state_dict"].update(
                {"model.head.weight": torch.zeros(5, 8, dtype=torch.int64)}
            ),
            "has type",
        ),
        (
            lambda c: c["state_dict"].update({"model.head.weight": HUGE}),
            "claims more",
        ),
        (lambda c: c["litchar"]["model"].update(n_embd=2**20, n_head=2**10), "has shape"),
        (lambda c: c["litchar"]["model"].update(n_embd=2**40, n_head=2**20), "overflow"),
        (lambda c: c["litchar"]["model"].update(n_layer=10**12), "layers"),
        (lambda c: c["litchar"]["model"].update(block_size=2**40), "rotary tables"),
        (lambda c: c["litchar"]["model"].update(block_size=2**70), "do not fit"),
        (lambda c: c["litchar"]["model"].update(n_layer="1"), "do not fit"),
        (lambda c: c["litchar"]["model"].update(_target_=f"{MODELS}checks.check_sizes"), "fit"),
        (lambda c: c["litchar"].update(format=torch.zeros(3)), "litchar wrote"),
        (lambda c: c["litchar"].update(model=torch.zeros(3)), "litchar wrote"),
        (lambda c: c["litchar"]["model"].update(vocab_size=torch.zeros(3)), "litchar wrote"),
    ],
)
def test_what_does_not_fit_is_refused_before_memory_is_taken(content, tmp_path, change, words):
    change(content)
    path = tmp_path / "odd.ckpt"
    torch.save(content, path)
    before = peak_kilobytes()
    assert words in refused(path)
    assert peak_kilobytes() - before < 200_000


class Masked(torch.nn.Module):
    """A model of one's own with a table that grows with the square of its context."""

    def __init__(self, vocab_size, block_size):
        super().__init__()
        self.block_size = block_size
        self.head = torch.nn.Embedding(vocab_size, vocab_size)
        self.register_buffer("mask", torch.ones(block_size, block_size), persistent=False)


@pytest.mark.linux
def test_buffers_that_would_take_too_much_memory_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.setattr(Masked, "__module__", "litchar.models")
    monkeypatch.setattr(litchar.models, "Masked", Masked, raising=False)
    model = {"_target_": f"{MODELS}Masked", "vocab_size": 5, "block_size": 2**15}
    content["litchar"]["model"] = model
    content["state_dict"] = {"model.head.weight": torch.zeros(5, 5)}
    path = tmp_path / "odd.ckpt"
    torch.save(content, path)
    before = peak_kilobytes()
    assert "buffers" in refused(path)
    assert peak_kilobytes() - before < 200_000


@pytest.mark.linux
def test_weights_that_claim_more_than_is_stored_are_refused(content, tmp_path):
    sizes = SIZES | {"n_embd": 2**13}
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in Transformer(**sizes).state_dict().items()}
    content["litchar"]["model"] |= sizes
    content["state_dict"] = {
        f"model.{name}": torch.zeros(1).expand(shape) for name, shape in shapes.items()
    }
    path = tmp_path / "claims.ckpt"
    torch.save(content, path)
    before = peak_kilobytes()
    assert "claims more numbers than are stored" in refused(path)
    assert peak_kilobytes() - before < 200_000


def peak_kilobytes():
    with open("/proc/self/status") as status:
        return int(status.read().split("VmHWM:")[1].split()[0])


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(content, tmp_path):
    plain, bomb = tmp_path / "plain.ckpt", tmp_path / "bomb.ckpt"
    content["state_dict"]["model.head.weight"] = torch.zeros(5000, 8000)
    torch.save(content, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < plain.stat().st_size / 100
    assert "would unpack to more than its size" in refused(bomb)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "litchar.text.sources.urllib.request.urlopen",
        "litchar.text.sources._fetch_checked",
        "os",
    ],
)
def test_a_data_source_from_a_checkpoint_is_the_projects_own(content, tmp_path, target):
    from litchar.analysis.evaluate import splits_of

    content["litchar"]["config"]["data"] = {
        "_target_": "litchar.data.TextDataModule",
        "source": {"_target_": target, "_partial_": True, "command": "touch /tmp/it-ran"},
    }
    path = tmp_path / "hostile.ckpt"
    torch.save(content, path)
    with pytest.raises(UserError, match="it was not built; name its text by path"):
        splits_of(Checkpoint.load(path))


def writes(file):
    """Return plain data that makes `instantiate` write a file."""
    place = {"_target_": "pathlib.Path", "_args_": [str(file)]}
    return {"_target_": "pathlib.Path.write_text", "_args_": [place, "it ran"]}


@pytest.mark.parametrize(
    ("begins", "part", "key"),
    [
        ("init_from", "model", "qkv_bias"),
        ("init_from", "model", "block_size"),
        ("resume", "data", "mixture"),
        ("resume", "data", "path"),
        ("resume", "model", "qkv_bias"),
        ("resume", "trainer", "max_time"),
    ],
)
def test_nothing_that_a_checkpoint_names_is_built_when_training_begins_from_it(
    content, compose, tmp_path, begins, part, key
):
    from litchar.training.prepare import prepare

    mark = tmp_path / "it ran"
    settings = content["litchar"]["model"]
    if begins == "resume":
        settings = content["litchar"]["config"][part] = {}
    settings[key] = [writes(mark)] if begins == "resume" else writes(mark)
    path = tmp_path / "hostile.ckpt"
    torch.save(content, path)
    config = compose("data=text", f"{begins}={path}", "trainer.max_steps=null")
    with pytest.raises(UserError, match=rf"hostile.ckpt: its {part}\.{key} has a _target_, but"):
        prepare(config, tmp_path, Place(), Terminal(quiet=True))
    assert not mark.exists()


def test_a_thousand_flipped_bytes_are_refused_or_change_nothing(content, tmp_path):
    path = tmp_path / "model.ckpt"
    checkpoints.save(content, path)
    whole = path.read_bytes()
    draw = random.Random(0)
    refusals = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 8))):
            damaged[draw.randrange(len(damaged))] ^= draw.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            loaded = checkpoints.load(path)
        except UserError:
            refusals += 1
            continue
        weights = (content["state_dict"], loaded["state_dict"])
        torch.testing.assert_close(*weights, rtol=0, atol=0)
        assert loaded["litchar"] == content["litchar"]
    assert refusals > 950


def test_a_text_with_escape_codes_and_html_is_shown_as_text(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html

    from litchar.training.loggers import TensorBoard

    logger = TensorBoard(tmp_path, name="", version="tensorboard")
    logger.log_text("samples", "<script>alert(1)</script>\n# no heading\n<b>bold</b>", 1)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    stored = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0]
    html = markdown_to_safe_html(stored)
    assert "<script" not in html
    assert "<b>" not in html
    assert "<h1>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
