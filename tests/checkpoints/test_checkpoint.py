import collections
import errno
import os
import pickle
import resource
import stat

import numpy as np
import pytest
import torch

from litchar import checkpoints
from litchar.checkpoints import Checkpoint, find
from litchar.checkpoints.checkpoint import make_card
from litchar.errors import UserError
from litchar.models import Transformer
from litchar.text import Vocabulary

SIZES = {"vocab_size": 5, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}


@pytest.fixture
def content():
    torch.manual_seed(0)
    model = Transformer(**SIZES)
    settings = {"_target_": "litchar.models.Transformer", **SIZES}
    return {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "global_step": 7,
        "litchar": make_card(Vocabulary("abcde"), settings, {"seed": 1}, fingerprint="f"),
    }


@pytest.fixture
def save(tmp_path):
    def save(content):
        path = tmp_path / "model.ckpt"
        checkpoints.save(content, path)
        return path

    return save


@pytest.mark.parametrize("kept", [np.float64(1.5), collections.deque([1])])
def test_what_could_not_be_loaded_again_is_not_saved(save, content, tmp_path, kept):
    before = save(content).read_bytes()
    with pytest.raises(UserError, match=r"model\.ckpt: not saved: .* a callback .* plain data"):
        save(content | {"callbacks": {"Mine": {"best": kept}}})
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == before


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_a_tensor_that_the_meta_device_lacks_is_saved(save, content):
    kept = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    path = save(content | {"callbacks": {"Mine": {"kept": kept}}})
    assert torch.equal(checkpoints.load(path)["callbacks"]["Mine"]["kept"][1], torch.ones(3))


def test_a_file_of_several_parts_is_sealed_as_a_whole(content, save):
    path = save(content | {"callbacks": {"Mine": {"kept": torch.arange(600_000)}}})  # 4.8 MB
    assert torch.equal(checkpoints.load(path)["callbacks"]["Mine"]["kept"], torch.arange(600_000))
    whole = bytearray(path.read_bytes())
    for place in range(500_000, len(whole), 1 << 20):
        damaged = whole.copy()
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="its checksum does not match"):
            checkpoints.load(path)


def test_a_checkpoint_is_enough_to_build_the_model_again(content, save):
    checkpoint = Checkpoint.load(save(content))
    assert checkpoint.step == 7
    assert checkpoint.vocabulary == Vocabulary("abcde")
    assert len(repr(checkpoint)) < 500  # without its weights
    model = checkpoint.build_model()
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, content["state_dict"][f"model.{name}"])


def test_a_failed_save_keeps_the_one_before_and_leaves_nothing(content, save, monkeypatch):
    path = save(content)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(content | {"global_step": 8})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["model.ckpt"]


@pytest.mark.parametrize("reason", [PermissionError(13, "Permission denied"), MemoryError()])
def test_what_cannot_be_read_now_is_not_called_damaged(content, save, monkeypatch, reason):
    """Else a run would go on from an older checkpoint, and delete its best."""

    def refuse(*_, **__):
        raise reason

    path = save(content)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(type(reason)):
        Checkpoint.load(path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_a_directory_is_saved_to(
    content, save, monkeypatch, number
):
    def flush(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", flush)
    assert Checkpoint.load(save(content)).step == 7


@pytest.mark.parametrize("most_bytes", range(0, 1_700_000, 250_000))
def test_a_disk_that_is_full_anywhere_in_a_file_is_told_by_an_oserror(content, save, most_bytes):
    large = {f"model.{i}": torch.zeros(100_000) for i in range(5)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(content | {"state_dict": content["state_dict"] | large})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Gadget:
    def __reduce__(self):
        return (os.system, ("touch /tmp/litchar-was-here",))


def test_a_pickled_payload_is_refused_and_does_not_run(content, tmp_path):
    path = tmp_path / "hostile.ckpt"
    torch.save(content | {"payload": Gadget()}, path)
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps(Gadget()))
    for file in (path, plain):
        with pytest.raises(UserError, match=f"{file.name}: not a complete checkpoint"):
            Checkpoint.load(file)
    assert not os.path.exists("/tmp/litchar-was-here")


@pytest.mark.parametrize("kept", [0, 1, 100, -100])
def test_a_truncated_checkpoint_is_refused_by_name(content, save, kept):
    path = save(content)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.ckpt: not a complete checkpoint"):
        Checkpoint.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"litchar": None}, "not a checkpoint that litchar wrote"),
        ({"state_dict": None}, "not a checkpoint that litchar wrote"),
        ({"litchar": "text"}, "not a checkpoint that litchar wrote"),
    ],
)
def test_a_file_of_something_else_is_refused(content, save, change, words):
    content |= change
    with pytest.raises(UserError, match=words):
        Checkpoint.load(save({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("name", ["_target_", "vocab_size", "block_size"])
def test_a_model_without_its_size_or_class_is_refused(content, save, name):
    del content["litchar"]["model"][name]
    with pytest.raises(UserError, match=rf"model\.ckpt: .* \(its model has no {name}\)"):
        Checkpoint.load(save(content))


def test_a_home_directory_of_nobody_is_refused_like_a_missing_file(tmp_path):
    for place in ("~nobody-here.ckpt", find("~nobody-here.ckpt", tmp_path)):
        with pytest.raises(UserError, match=r"~nobody-here.ckpt: no such checkpoint"):
            Checkpoint.load(place)


def test_a_newer_format_is_refused(content, save):
    content["litchar"]["format"] = 99
    with pytest.raises(UserError, match="format 99"):
        Checkpoint.load(save(content))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.nn.Linear",
        "litchar.models.Nothing",
        "litchar.models.transformer.F",
        None,
    ],
)
def test_only_the_projects_models_are_built(content, save, target):
    content["litchar"]["model"]["_target_"] = target
    with pytest.raises(UserError, match="it was not built"):
        Checkpoint.load(save(content)).build_model()


def test_a_model_whose_module_is_gone_is_said_to_be(content, save):
    content["litchar"]["model"]["_target_"] = "litchar.models.mine.Mine"
    words = r"litchar.models.mine.Mine cannot be imported \(No module named 'litchar.models.mine'\)"
    with pytest.raises(UserError, match=words):
        Checkpoint.load(save(content)).build_model()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_embd": 16}, "has shape"),
        ({"n_layer": 2}, "missing"),
        ({"vocab_size": 6}, "5 characters, but a model for 6"),
        ({"n_embd": 2**20}, "has shape"),  # refused before memory is taken
        ({"surprise": 1}, "surprise"),
    ],
)
def test_weights_that_do_not_fit_are_refused(content, save, settings, words):
    content["litchar"]["model"] |= settings
    with pytest.raises(UserError, match=words):
        Checkpoint.load(save(content)).build_model()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_that_has_diverged_is_refused(content, save, value):
    content["state_dict"]["model.head.weight"][3, 5] = value
    with pytest.raises(UserError, match=r"model\.ckpt: .*head\.weight.*use an earlier checkpoint"):
        Checkpoint.load(save(content)).build_model()


def test_no_checkpoint_is_none(tmp_path):
    with pytest.raises(UserError, match=r"^checkpoint=null: give a file, a run's directory, or"):
        find(None, tmp_path)


def test_latest_is_the_newest_runs_best(tmp_path):
    for number, names in enumerate((["best", "last"], ["last"])):
        directory = tmp_path / "runs" / f"run{number}" / "checkpoints"
        directory.mkdir(parents=True)
        for name in names:
            (directory / f"{name}.ckpt").touch()
            os.utime(directory / f"{name}.ckpt", (number, number))
    assert find("latest", tmp_path) == tmp_path / "runs/run1/checkpoints/last.ckpt"
    assert find(str(tmp_path / "runs/run0"), tmp_path).name == "best.ckpt"
    os.utime(tmp_path / "runs/run0/checkpoints/last.ckpt", (2, 2))  # gone on with, no better
    assert find("latest", tmp_path) == tmp_path / "runs/run0/checkpoints/best.ckpt"
    with pytest.raises(UserError, match=r"python scripts/train\.py"):
        find("latest", tmp_path / "empty")


def test_latest_passes_over_what_one_may_not_look_into(tmp_path, monkeypatch):
    for name in ("mine", "private"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / name / "checkpoints/best.ckpt").touch()
    stat = os.stat

    def allowed(path, **options):  # root, who may run this, may look everywhere
        if "private" in str(path) and str(path).endswith(".ckpt"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", allowed)
    assert find("latest", tmp_path) == tmp_path / "runs/mine/checkpoints/best.ckpt"
    with pytest.raises(PermissionError):  # it is named, and may have one
        find(tmp_path / "runs/private", tmp_path)
