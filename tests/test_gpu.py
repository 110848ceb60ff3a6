"""What only a GPU can show: `pytest -m gpu` on a machine that has one."""

import copy

import numpy as np
import pytest
import torch

from conftest import assert_same_run, summary
from litchar.errors import Interrupted
from litchar.generation.readers import Prepared, Window
from litchar.models import Transformer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GPU = ("trainer.accelerator=gpu", "model.dropout=0.1", "data.block_size=32")


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


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_a_captured_graph_says_what_the_uncaptured_model_says(position, batch_size):
    torch.manual_seed(0)
    model = Transformer(13, 16, 1, 2, 32, position=position, init="torch").eval()
    idx = np.random.default_rng(0).integers(13, size=(batch_size, 50))
    with torch.inference_mode():
        expected = Window(model)
        reader = Prepared(copy.deepcopy(model).cuda()).open(batch_size, 50)
        for t in range(50):
            ours, theirs = reader.read(idx[:, t : t + 1]), expected.read(idx[:, t : t + 1])
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
