"""`compile=true`: the same training, and a fallback if compilation fails."""

import copy
import re
from functools import partial

import lightning as L
import pytest
import torch._inductor.config
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelPruning

import litchar.models
from conftest import summary
from litchar.errors import UserError
from litchar.losses import mean_loss
from litchar.models import Recurrent, Transformer
from litchar.training import compilation
from litchar.training.replay import ReplayedLoss


@pytest.mark.parametrize("cause", ["backend", pytest.param("c++", marks=pytest.mark.slow)])
def test_a_run_goes_on_uncompiled_where_compilation_fails(
    train, tmp_path, monkeypatch, capsys, cause
):
    def backend(*_):
        raise RuntimeError("/nowhere/backend")

    plain = summary(train(name="plain"))
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    if cause == "backend":
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    capsys.readouterr()
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",)}):
        broken = summary(train("compile=true", name="broken"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "Not compiled" in line]
    assert len(lines) == 1
    assert f"/nowhere/{cause}" in lines[0]
    assert broken["status"] == "completed"
    assert broken["val_loss"] == plain["val_loss"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_what_the_trial_compiles_serves_all_steps_and_validations(train, monkeypatch, precision):
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    train("compile=true", "model.dropout=0.0", f"trainer.precision={precision}")
    assert len(graphs) == 1


def test_a_trial_that_runs_out_of_memory_ends_the_run(train, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: exhausted)
    with pytest.raises(UserError, match=r"out of memory at step 0; try data\.batch_size=4 "):
        train("compile=true")


def test_a_loss_that_cannot_be_captured_is_still_compiled(train, monkeypatch, capsys):
    plain = summary(train("model.dropout=0.0", name="plain"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compilation, "can_replay", lambda *_: True)  # but there is no GPU to do so
    capsys.readouterr()
    compiled = summary(train("model.dropout=0.0", "compile=true", name="compiled"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "Not " in line]
    assert len(lines) == 1
    without = "AssertionError|RuntimeError"  # torch is built without CUDA; there is no GPU for it
    assert re.match(rf"Not replayed as a CUDA graph \(({without}): ", lines[0])
    assert compiled["val_loss"] == pytest.approx(plain["val_loss"], abs=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_copy_of_a_model_has_no_graph_of_its_own():
    replayed = ReplayedLoss.__new__(ReplayedLoss)
    replayed.mean_loss = mean_loss
    assert copy.deepcopy(replayed) is mean_loss


@pytest.mark.parametrize(
    ("settings", "replayed"),
    [
        ({}, True),
        ({"accumulate_grad_batches": 2}, False),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, False),
        ({"strategy": "ddp", "devices": 1}, False),
        ({"detect_anomaly": True}, False),
        ({"callbacks": [ModelPruning("l1_unstructured", amount=0.3)]}, False),
    ],
)
def test_a_graph_is_replayed_where_its_gradients_may_be_overwritten(settings, replayed):
    quiet = {"logger": False, "enable_checkpointing": False}
    made = L.Trainer(accelerator="cpu", **quiet, **settings)
    model = Recurrent(13, 16, 1, 8)
    assert compilation.can_replay(model, made, torch.device("cuda")) is replayed
    assert not compilation.can_replay(model, made, torch.device("cpu"))


def test_what_cudnn_drops_between_layers_is_not_replayed():
    made = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for dropout, replayed in ((0.0, True), (0.1, False)):
        model = Recurrent(13, 16, 2, 8, dropout=dropout)
        assert compilation.can_replay(model, made, torch.device("cuda")) is replayed


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(train):
    plain = summary(train(name="plain"))
    compiled = summary(train("compile=true", name="compiled"))
    assert compiled["val_loss"] == pytest.approx(plain["val_loss"], abs=1e-4)


class Counts(Transformer):
    """Counts its forward passes in training in a buffer."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("twice", torch.ones(1).expand(2), persistent=False)

    def forward(self, idx):
        if self.training:
            self.count += 1
        return super().forward(idx)


def test_the_trial_leaves_buffers_as_they_were(train, monkeypatch):
    monkeypatch.setattr(litchar.models, "Counts", Counts, raising=False)
    monkeypatch.setattr(Counts, "__module__", "litchar.models")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    run = train("compile=true", "model._target_=litchar.models.Counts", "model.dropout=0.0")
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state_dict"]["model.count"] == 20
