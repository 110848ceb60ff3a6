"""Where a run took place: versions, hardware, the state of the code."""

import contextlib
import gc
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from litchar.overrides import without_passwords

ROOT = Path(__file__).resolve().parents[3]  # of the checkout that the package is installed from
CODE = ("src", "conf", "scripts")  # where a new file may change what a run does
_started = {"jobs": 0, "at": time.monotonic()}


def describe(device: torch.device) -> dict[str, Any]:
    """Return versions, device and git revision as plain data."""
    names = ("litchar", "torch", "lightning", "hydra-core", "omegaconf", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "platform": platform.platform(),
        "device": device_name(device),
        "cpu_threads": torch.get_num_threads(),
        "revision": _revision(),
        "uncommitted": bool(_difference()),
    }


def record(run_dir: Path, described: dict[str, Any]) -> None:
    """Write `environment.json`, and `code.diff` if the code differs from its revision."""
    command = [without_passwords(word) for word in sys.argv]
    text = json.dumps({**described, "command": command, "cwd": os.getcwd()}, indent=2)
    (run_dir / "environment.json").write_text(text + "\n")
    (run_dir / "code.diff").unlink(missing_ok=True)  # of a revision before, if the run goes on
    if difference := _difference():
        (run_dir / "code.diff").write_bytes(difference)


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"CPU, {torch.get_num_threads()} threads"


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


def _revision() -> str | None:
    """Return git's name of the code, if it is a checkout."""
    return _git("rev-parse", "HEAD").decode().strip() or None


def _difference() -> bytes:
    """Return how the code differs from its revision, in whatever encoding; new files are whole."""
    if _revision() is None:
        return b""
    index = Path(os.fsdecode(_git("rev-parse", "--absolute-git-dir").strip()), "index")
    if not index.is_file():
        return b""
    with tempfile.TemporaryDirectory() as directory:
        # What a person has staged stays as it is. By its time git knows which files to look into.
        shutil.copy2(index, directory)
        # What git adds goes there as well: the checkout may be read-only, or another person's.
        (Path(directory) / "info").mkdir()
        own = os.fsdecode(_git("rev-parse", "--git-path", "objects").removesuffix(b"\n"))
        (Path(directory) / "info" / "alternates").write_bytes(os.fsencode(ROOT / own) + b"\n")
        aside = {"GIT_INDEX_FILE": f"{directory}/index", "GIT_OBJECT_DIRECTORY": directory}
        new = [name for name in CODE if (ROOT / name).is_dir()]
        _git("add", "--intent-to-add", "--", *new, variables=aside)
        # As `git apply` reads it, however a person likes to see one.
        plain = (
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
            "--src-prefix=a/",
            "--dst-prefix=b/",
        )
        return _git("diff", *plain, "HEAD", variables=aside)


def git(*arguments: str) -> list[str]:
    """Return the command that asks git about this checkout alone, named so that neither the
    project that it may lie in, nor a hook of another one (GIT_DIR), nor another owner matters."""
    return ["git", "-C", str(ROOT), f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}", *arguments]


def _git(*arguments: str, variables: Mapping[str, str] | None = None) -> bytes:
    environment = os.environ | (variables or {})
    try:
        return subprocess.run(
            git(*arguments), capture_output=True, check=True, env=environment
        ).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return b""
