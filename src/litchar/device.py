"""Devices: which one a model runs on, its matmul precision, and CUDA graph capture."""

import threading
from collections.abc import Callable
from functools import cache

import torch

from litchar.errors import UserError


def choose_device(name: str | None) -> torch.device:
    """Return the device called `name`, or the best available one for None.

    Raises:
        UserError: torch knows no such device, or this machine has none.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        raise UserError(f"device={name}: not available on this machine; try device=cpu") from None
    return device


def device_name(device: torch.device) -> str:
    """Return a human-readable name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def set_matmul_precision(setting: str | None, device: torch.device) -> None:
    """Set how the process multiplies float32 matrices from here on.

    Args:
        setting: as in `torch.set_float32_matmul_precision`; None: the fastest that keeps float32.

    Raises:
        UserError: torch knows no such setting.
    """
    if setting not in (None, "highest", "high", "medium"):
        raise UserError(
            f"float32_matmul_precision={setting}: must be highest, high, medium or null"
        )
    torch.set_float32_matmul_precision(setting or _fastest_float32(device))


def _fastest_float32(device: torch.device) -> str:
    """Return the fastest setting under which matrix products are still computed in float32.

    On AMD CPUs, torch's default, MKL, does not use AVX-512. oneDNN does, but is given
    float32 matrices only under "medium", which allows it to round them to bfloat16. It does so only
    on CPUs with AMX; on others its products remain float32.
    """
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # not in torch 2.9
        return "highest"
    cpu = torch.cpu.get_capabilities()
    is_amds = "AMD" in str(cpu.get("cpu_name"))
    return "medium" if is_amds and cpu["avx512_f"] and not cpu["amx_tile"] else "highest"


_CAPTURING = threading.Lock()


def capture(
    work: Callable[[], None], device: torch.device, undo: Callable[[], None] = lambda: None
) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of what `work` launches: a replay takes one launch in all, instead of
    one for each operation.

    `torch.cuda.graph` would first release all cached memory, and a training step after a sample
    would have to request it from the driver again. Here that is done only if little is left: the
    memory of a graph that is gone, as each generated text leaves behind, is of no use to another
    graph, and torch does not release it during a capture.

    Other threads may use the GPU meanwhile; if they capture, they wait. The cuBLAS workspace lies
    in the memory pool of the graph: elsewhere it would be freed under the graph as soon as
    Lightning releases unused memory.

    Args:
        work: run three times first as a warm-up, since what runs for the first time cannot be
            captured.
        undo: reverts the effects of each warm-up run.
    """
    with _CAPTURING:
        graph, stream = torch.cuda.CUDAGraph(), _capturing_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
                undo()
            torch.cuda.synchronize(device)
            torch._C._cuda_clearCublasWorkspaces()
            free, total = torch.cuda.mem_get_info(device)
            if free < total // 4:
                torch.cuda.empty_cache()
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
                torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.current_stream(device).wait_stream(stream)
    return graph


@cache
def _capturing_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream for all captures: cuBLAS keeps 32 MiB for every stream it has seen."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
