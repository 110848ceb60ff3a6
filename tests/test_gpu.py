"""Tests that need a GPU: `pytest -m gpu -n 0` on a machine that has one."""

import copy
import functools

import numpy as np
import pytest
import torch

from conftest import assert_same_run, summary
from litchar.errors import Interrupted
from litchar.generation.readers import Prepared, WindowReader
from litchar.generation.sampling import Chooser, Sampling, generate
from litchar.losses import mean_loss
from litchar.models import Recurrent, Transformer
from litchar.training.optimizers import muon, orthogonalize
from litchar.training.replay import ReplayedLoss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GPU = ("trainer.accelerator=gpu", "model.dropout=0.1", "data.block_size=32")


@pytest.fixture
def train(train):
    return functools.partial(train, dashboard=True)


def test_a_gpu_run_is_compiled_in_bf16_and_learns_what_the_cpu_learns(train):
    here = summary(train("data.block_size=32", name="cpu"))
    there = summary(train("data.block_size=32", "trainer.accelerator=gpu", name="gpu"))
    assert there["device"] == "cuda:0"
    assert there["precision"] == "bf16-mixed"
    assert there["peak_memory_bytes"] > 0
    assert there["val_loss"] == pytest.approx(here["val_loss"], abs=0.02)


def test_a_gpu_draws_the_windows_that_the_cpu_draws(train):
    exact = ("trainer.precision=32-true", "compile=false", "data.block_size=32")
    here = summary(train(*exact, name="cpu"))
    there = summary(train(*exact, "trainer.accelerator=gpu", name="gpu"))
    assert there["val_loss"] == pytest.approx(here["val_loss"], abs=1e-3)


def test_a_gpu_trains_on_more_characters_than_a_byte_counts(train, tmp_path):
    text = tmp_path / "many.txt"
    text.write_text("".join(chr(0x4E00 + (7 * i + i // 50) % 331) for i in range(8000)))
    assert summary(train("trainer.accelerator=gpu", f"data.path={text}"))["status"] == "completed"


@pytest.mark.parametrize("compiled", ["true", "false"])
@pytest.mark.parametrize("step", [7, 10])
def test_a_deterministic_gpu_run_goes_on_exactly(train, step, compiled):
    setting = (*GPU, "trainer.deterministic=true", f"compile={compiled}")
    whole = train(*setting, name="whole")
    stop = ("+callbacks.stop._target_=conftest.SignalAt", f"+callbacks.stop.step={step}")
    with pytest.raises(Interrupted):
        train(*setting, *stop, name="stopped")
    stopped = train(*setting, "resume=auto", name="stopped")
    assert_same_run(whole, stopped)


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_a_strategy_of_several_gpus_trains_on_one_too(train, trainer):
    setting = (*GPU, f"trainer={trainer}", "trainer.devices=1", "compile=false")
    assert summary(train(*setting))["status"] == "completed"


OPTIONS = [{}, {"position": "learned", "norm": "layer", "bias": True, "ngrams": [[2, 50, 8]]}]


@pytest.mark.parametrize("batch_size", [1, 3, 40])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_captured_step_says_what_the_model_says(options, batch_size):
    reads_as_on_the_cpu(options, batch_size, fused=True)


@pytest.mark.parametrize("batch_size", [1, 40])
@pytest.mark.parametrize("options", OPTIONS)
def test_without_triton_it_is_a_step_in_torch(options, batch_size, monkeypatch):
    def fails(*args):
        raise RuntimeError("Failed to find C compiler. Please specify via CC")

    monkeypatch.setattr("litchar.generation.fused.FusedStep.__init__", fails)
    with pytest.warns(UserWarning, match="without Triton: Failed to find C compiler"):
        reads_as_on_the_cpu(options, batch_size, fused=False)


def reads_as_on_the_cpu(options, batch_size, fused):
    torch.manual_seed(0)
    sizes = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 32, "init": "torch"}
    model = Transformer(13, **(sizes | options)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # gains, shifts and biases that would be noticed
    idx = np.random.default_rng(0).integers(13, size=(batch_size, 50))
    prepared = Prepared(copy.deepcopy(model).cuda())
    assert (prepared.fused is not None) == fused
    with torch.inference_mode():
        expected, reader = WindowReader(model), prepared.open(batch_size, 50)
        for t in range(50):
            ours, theirs = reader.read(idx[:, t : t + 1]), expected.read(idx[:, t : t + 1])
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.7, 0.0])
@pytest.mark.parametrize("batch_size", [1, 3, 40])
@pytest.mark.parametrize("n", [1, 2, 16, 90])
def test_what_is_sampled_ahead_is_what_would_be_chosen(n, batch_size, temperature):
    torch.manual_seed(0)
    model = Transformer(13, 16, 2, 2, 32, ngrams=[[2, 50, 8]], init="torch").cuda().eval()
    sampling = Sampling(temperature=temperature)
    prompt = np.random.default_rng(0).integers(13, size=(batch_size, 5))
    chooser, idx = Chooser(sampling, range(7, 7 + batch_size)), prompt
    prepared = Prepared(model)
    assert prepared.fused is not None
    steps = list(generate(prepared, prompt, n, sampling, range(7, 7 + batch_size)))
    assert len(steps) == n
    with torch.inference_mode():
        reader = prepared.open(batch_size, 5 + n)
        for step in steps:
            np.testing.assert_allclose(step.logits, reader.read(idx), atol=1e-5)
            assert step.ids.tolist() == chooser.choose(idx, step.logits).tolist()
            idx = step.ids[:, None]


def test_a_text_may_be_left_while_it_is_sampled_ahead():
    model = MODELS["transformer"]().cuda().eval()
    prompt = np.zeros((1, 1), dtype=np.int64)
    whole = [step.ids.tolist() for step in generate(model, prompt, 60)]
    for n in (1, 2, 20, 40):
        steps = generate(model, prompt, 60)
        assert [next(steps).ids.tolist() for _ in range(n)] == whole[:n]
        steps.close()
    assert [step.ids.tolist() for step in generate(model, prompt, 60)] == whole


def test_texts_leave_room_for_the_next():
    prepared = Prepared(MODELS["transformer"]().cuda().eval())
    idx = np.zeros((1, 1), dtype=np.int64)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - (1 << 30), dtype=torch.uint8, device="cuda")
    with torch.inference_mode():
        for _ in range(100):  # each graph takes 20 MiB or more
            reader = prepared.open(1, 2)
            assert all(np.isfinite(reader.read(idx)).all() for _ in range(2))
    del taken


MODELS = {
    "transformer": lambda: Transformer(13, 16, 2, 2, 32, dropout=0.0, init="torch"),
    "tied": lambda: Transformer(13, 16, 1, 2, 32, tie_head=True, init="gpt2"),
    "ngrams": lambda: Transformer(13, 16, 1, 2, 32, ngrams=[[2, 50, 8]], init="torch"),
    "gru": lambda: Recurrent(13, 16, 2, 32, cell="gru"),
    "lstm": lambda: Recurrent(13, 16, 2, 32, cell="lstm"),
}


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(13, (4, 17), generator=generator).cuda()
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


@pytest.mark.parametrize("name", MODELS)
def test_a_replayed_batch_has_the_loss_and_gradients_of_its_own(name):
    torch.manual_seed(0)
    model = MODELS[name]().cuda()
    alone = copy.deepcopy(model)
    replayed = ReplayedLoss(mean_loss, model, (4, 16), torch.enable_grad)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (model, alone)]
    for seed in range(4):
        loss = replayed(model, *batch(seed))
        for optimizer in optimizers:
            optimizer.zero_grad()
        replayed.backward()
        expected = mean_loss(alone, *batch(seed))
        expected.backward()
        torch.testing.assert_close(loss, expected.detach())
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
        for optimizer in optimizers:
            optimizer.step()


def test_a_replay_finds_weights_that_have_been_moved():
    torch.manual_seed(0)
    model = MODELS["transformer"]().cuda()
    replayed = ReplayedLoss(mean_loss, model, (4, 16), torch.enable_grad)
    model.head.weight.data = torch.zeros_like(model.head.weight)
    assert float(replayed(model, *batch(0))) == pytest.approx(np.log(13), abs=1e-5)


def test_a_replay_drops_by_the_seed_of_its_step():
    torch.manual_seed(0)
    model = Transformer(13, 16, 1, 2, 32, dropout=0.5, init="torch").cuda()
    replayed = ReplayedLoss(torch.compile(mean_loss), model, (4, 16), torch.enable_grad)
    losses = []
    for seed in (1, 2, 1):
        torch.cuda.manual_seed(seed)
        losses.append(float(replayed(model, *batch(0))))
    assert losses[0] == losses[2] != losses[1]


def test_a_replay_leaves_what_is_frozen():
    torch.manual_seed(0)
    model = MODELS["transformer"]().cuda()
    replayed = ReplayedLoss(mean_loss, model, (4, 16), torch.enable_grad)
    model.head.weight.requires_grad_(False)
    replayed(model, *batch(0))
    replayed.backward()
    assert model.head.weight.grad is None
    assert all(p.grad is not None for p in model.blocks.parameters())
    model.head.weight.requires_grad_(True)
    replayed(model, *batch(0))
    replayed.backward()
    assert model.head.weight.grad is not None


def test_a_graph_captured_anew_drops_what_its_step_would():
    torch.manual_seed(0)
    model = Transformer(13, 16, 1, 2, 32, dropout=0.5, init="torch").cuda()
    replayed = ReplayedLoss(mean_loss, model, (4, 16), torch.enable_grad)
    model.head.weight.requires_grad_(False)
    losses = []
    for _ in range(2):
        torch.cuda.manual_seed(1)
        losses.append(float(replayed(model, *batch(0))))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recurrent_layers_compute_in_float32(cell):
    model = Recurrent(13, 16, 2, 32, cell=cell).cuda()
    found = []
    model.layers.register_forward_hook(lambda _, __, output: found.append(output[0].dtype))
    with torch.autocast("cuda", torch.bfloat16):
        model(batch(0)[0])
    assert found == [torch.float32]


class Waits(Transformer):
    """Reads a value from the GPU, which synchronises, before it continues."""

    def forward(self, idx):
        assert idx.min().item() >= 0
        return super().forward(idx)


def test_what_cannot_be_captured_spoils_nothing():
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="synchroniz"):
        ReplayedLoss(mean_loss, Waits(13, 16, 1, 2, 32).cuda(), (4, 16), torch.enable_grad)
    assert torch.rand(3, device="cuda").min().item() >= 0
    model = Transformer(13, 16, 1, 2, 32, dropout=0.5).cuda()
    replayed = ReplayedLoss(mean_loss, model, (4, 16), torch.enable_grad)
    assert np.isfinite(float(replayed(model, *batch(0))))


def test_orthogonalizing_in_a_graph_is_orthogonalizing():
    torch.manual_seed(0)
    model = MODELS["transformer"]().cuda()
    matrices = [model.blocks[i].attention.qkv.weight for i in range(2)]
    optimizer = muon(model, lr=0.1, weight_decay=0.0, momentum=0.0)
    for seed in range(3):
        before = torch.stack([m.detach().clone() for m in matrices])
        optimizer.zero_grad()
        mean_loss(model, *batch(seed)).backward()
        given = torch.stack([m.grad for m in matrices])
        optimizer.step()
        moved = before - torch.stack([m.detach() for m in matrices])
        expected = 0.1 * 0.2 * 96**0.5 * orthogonalize([given], 5)[0]
        torch.testing.assert_close(moved, expected, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize(
    "model",
    [
        ("model=gru", "model.dropout=0.0"),  # with dropout they are not replayed
        ("model=lstm", "model.dropout=0.0"),
        ("model=gru",),
        ("model=bigram",),
        ("model=gpt2",),
    ],
)
def test_each_model_trains_compiled_and_replayed(train, text_file, capsys, model):
    setting = ("trainer.accelerator=gpu", "trainer.max_steps=10", "trainer.val_check_interval=10")
    run = train(f"data.path={text_file}", *model, *setting, only=True)
    assert summary(run)["status"] == "completed"
    assert "continuing without" not in capsys.readouterr().out


def test_averages_are_taken_of_replayed_runs(train):
    average = "+callbacks.average._target_=lightning.pytorch.callbacks.EMAWeightAveraging"
    assert summary(train(*GPU, average))["status"] == "completed"
