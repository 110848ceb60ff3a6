"""The process of a run: its time and memory, and what a run before in it has left behind."""

import contextlib
import gc
import os
import resource
import sys
import time
from pathlib import Path

import torch

_started = {"jobs": 0, "at": time.monotonic()}


def begin() -> None:
    """Begin to count a run's time and memory, and clear or end what a run before has left behind.

    A sweep has several runs in one process, and each must be what it would be alone.
    """
    if not _started["jobs"]:
        gc.freeze()  # what imports made is never looked through again: half a second each time
    else:
        _started["at"] = time.monotonic()
        if (wandb := sys.modules.get("wandb")) and wandb.run:
            wandb.finish()  # or this run would be written into that one
        gc.collect()  # a Trainer and its callbacks refer to each other
        torch.use_deterministic_algorithms(False)  # trainer.deterministic sets it for the process
        torch.backends.cudnn.benchmark = False
        torch.compiler.reset()  # or the ninth model of a size of its own would not be compiled
        torch.cuda.empty_cache()  # nothing without a GPU
    _started["jobs"] += 1
    # cuBLAS reads it once in a process, and a deterministic run may follow one that is not.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)


def seconds_since_start() -> float:
    """Return the seconds since this process began, or since the run did if it is not the first."""
    if _started["jobs"] > 1:
        return time.monotonic() - _started["at"]
    try:
        clock_ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - clock_ticks / os.sysconf("SC_CLK_TCK")
    except OSError:  # no /proc outside of Linux
        return time.monotonic() - _started["at"]


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory in use so far: on a CUDA device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
