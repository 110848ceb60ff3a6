"""A run's process: elapsed time, peak memory, and cleaning up after an earlier run in it."""

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
    """Start measuring a run's time and memory, and clean up after an earlier run.

    A sweep has several runs in one process, and each must behave as if it were alone.
    """
    if not _started["jobs"]:
        gc.freeze()  # collections skip what imports created: saves half a second each
    else:
        _started["at"] = time.monotonic()
        if (wandb := sys.modules.get("wandb")) and wandb.run:
            wandb.finish()  # otherwise this run would be logged into the previous one
        gc.collect()  # a Trainer and its callbacks form reference cycles
        torch.use_deterministic_algorithms(False)  # trainer.deterministic sets it process-wide
        torch.backends.cudnn.benchmark = False
        torch.compiler.reset()  # otherwise the ninth model of a new size would not be compiled
        torch.cuda.empty_cache()  # a no-op without a GPU
    _started["jobs"] += 1
    # cuBLAS reads it once per process, and a deterministic run may follow a non-deterministic one.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)


def seconds_since_start() -> float:
    """Return the seconds since this process started, or since the run began if not its first."""
    if _started["jobs"] > 1:
        return time.monotonic() - _started["at"]
    try:
        clock_ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - clock_ticks / os.sysconf("SC_CLK_TCK")
    except OSError:  # no /proc outside Linux
        return time.monotonic() - _started["at"]


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory of a run: allocated on a CUDA device, else resident in this process;
    None if that of an earlier run may have been higher."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # no /proc outside Linux
        if _started["jobs"] > 1:
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
