"""Which device a model is used on, how it multiplies there, and how it launches much at once."""

from collections.abc import Callable
from functools import cache

import torch

from litchar.errors import UserError


def choose_device(name: str | None) -> torch.device:
    """Return the device called `name`, or the best there is for None.

    Raises:
        UserError: torch knows no such device, or this machine has none.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        raise UserError(f"device={name}: not to be had on this machine; try device=cpu") from None
    return device


def device_of(accelerator: str) -> torch.device:
    """Return the device that `trainer.accelerator` means on this machine.

    Raises:
        UserError: there is no such device.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator in ("gpu", "cuda", "mps"):
        raise UserError(
            f"trainer.accelerator={accelerator}: torch finds no such device on this machine; "
            "try trainer.accelerator=auto"
        )
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"CPU, {torch.get_num_threads()} threads"


def set_matmul_precision(setting: str | None, device: torch.device) -> None:
    """Say how the process multiplies float32 matrices from here on.

    Args:
        setting: what `torch.set_float32_matmul_precision` takes; None: in float32, in the least
            time.

    Raises:
        UserError: torch knows no such setting.
    """
    if setting not in (None, "highest", "high", "medium"):
        raise UserError(
            f"float32_matmul_precision={setting}: must be highest, high or medium, or null"
        )
    torch.set_float32_matmul_precision(setting or _fastest_float32(device))


def _fastest_float32(device: torch.device) -> str:
    """Return the setting under which products are float32 and take the least time.

    On a CPU of AMD's, torch's default, MKL, leaves half of AVX-512 unused. oneDNN does not, but is
    given float32 matrices only where "medium" lets it round them to bfloat16. It does that on CPUs
    with AMX alone; on others its products are float32 all the same.
    """
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # not in torch 2.9
        return "highest"
    cpu = torch.cpu.get_capabilities()
    is_amds = "AMD" in str(cpu.get("cpu_name"))
    return "medium" if is_amds and cpu["avx512_f"] and not cpu["amx_tile"] else "highest"


def capture(
    work: Callable[[], None], device: torch.device, undo: Callable[[], None] = lambda: None
) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of what `work` launches: what takes one launch for each operation takes
    one in all when the graph is replayed.

    `torch.cuda.graph` would first give back all memory that is free: a training step behind a
    sample would have to ask the driver for it anew. Here that is done only where little is left:
    what a graph that is gone has worked in, as each text leaves behind, serves no other one, and
    torch does not give it back during a capture.

    Other threads may go on with theirs. What cuBLAS works in lies in the graph's own memory:
    elsewhere it would be taken from under the graph as soon as Lightning gives back what it does
    not need.

    Args:
        work: is done three times first, as what is done for the first time cannot be captured.
        undo: what each of these times leaves.
    """
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
    """Return the stream of all captures: cuBLAS keeps 32 MiB for each that it has ever met."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
