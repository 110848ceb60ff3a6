"""Matrix multiplication precision, and what happens before a CUDA graph is captured."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from litchar import device
from litchar.device import capture, device_name, set_matmul_precision
from litchar.errors import UserError
from litchar.models import Transformer
from litchar.training import callbacks


@pytest.fixture(autouse=True)
def _own_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("rows", "inner", "columns"), [(512, 64, 256), (77, 131, 69), (3, 5, 7)])
def test_products_are_float32_where_nothing_else_is_asked_for(rows, inner, columns):
    set_matmul_precision(None, torch.device("cpu"))
    torch.manual_seed(0)
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    exact = a.double() @ b.double()
    # bfloat16 would be off by about 4e-3 of a factor, a thousand times as much.
    allowed = {"rtol": 0, "atol": 1e-6 * inner}
    torch.testing.assert_close((a @ b).double(), exact, **allowed)
    torch.testing.assert_close(torch.bmm(a[None], b[None])[0].double(), exact, **allowed)
    torch.testing.assert_close(torch.nn.functional.linear(a, b.T).double(), exact, **allowed)


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_a_setting_is_torchs_own(setting):
    set_matmul_precision(setting, torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == setting


@pytest.mark.parametrize(("threads", "name"), [(1, "CPU, 1 thread"), (2, "CPU, 2 threads")])
def test_one_thread_is_one(monkeypatch, threads, name):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert device_name(torch.device("cpu")) == name


def test_a_gpu_keeps_torchs_default():
    torch.set_float32_matmul_precision("medium")
    set_matmul_precision(None, torch.device("cuda"))
    assert torch.get_float32_matmul_precision() == "highest"


def test_each_run_multiplies_as_it_is_told(train):
    for setting in ("high", "highest"):
        train(f"float32_matmul_precision={setting}", "trainer.max_steps=1", name=setting)
        assert torch.get_float32_matmul_precision() == setting
    with pytest.raises(UserError, match="float32_matmul_precision=tf32: must be highest, high"):
        train("float32_matmul_precision=tf32", name="refused")


def test_evaluation_multiplies_as_fast_as_float32_allows(train, loss_of, monkeypatch):
    run_dir = train("trainer.max_steps=1")
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(device, "_fastest_float32", lambda _: "medium")
    loss_of(f"checkpoint={run_dir}/checkpoints/last.ckpt")
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_the_peak_of_a_gpu_is_found_by_the_name_its_driver_gives_it(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    model = Transformer(65, 256, 6, 6, 384, activation="relu2")
    trainer = SimpleNamespace(
        strategy=strategy, precision="bf16-mixed", world_size=1, lightning_module=None
    )
    monkeypatch.setattr(callbacks, "language_model", lambda _: SimpleNamespace(model=model))
    weights = 6 * 12 * 384**2 + 65 * 384  # of the blocks, and the head
    flops = 6 * weights + 12 * 6 * 384 * 256  # a character
    share = callbacks.model_flops_utilization(trainer, 989.4e12 / flops / 4)
    assert share == pytest.approx(0.25)


@pytest.mark.parametrize(("free", "given_back"), [(24, True), (25, False)])
def test_a_capture_has_the_memory_of_graphs_that_are_gone(monkeypatch, free, given_back):
    cuda = MagicMock()
    cuda.mem_get_info.return_value = (free, 100)
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    monkeypatch.setattr(device, "_capturing_stream", MagicMock())
    capture(lambda: None, torch.device("cuda"))
    names = [call[0] for call in cuda.mock_calls]
    before = names[: names.index("CUDAGraph().capture_begin")]
    assert ("empty_cache" in before) is given_back
