"""A run's directory: one process trains in it, and a run that is refused leaves none behind.

Nothing heavy is imported here; see `litchar.cli`.
"""

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from litchar.errors import BusyError


def sole_owner(run_dir: Path) -> AbstractContextManager[object]:
    """Return a lock on `run_dir`: two processes that train in one would spoil both.

    Raises:
        BusyError: another process trains there.
    """
    lock = FileLock(run_dir / ".lock")
    try:
        return lock.acquire(timeout=1)  # whoever only asks, see `is_busy`, has it for a moment
    except Timeout:
        raise BusyError(run_dir) from None


def is_busy(run_dir: Path) -> bool:
    """Return whether another process trains in this directory."""
    return run_dir.is_dir() and is_locked(run_dir / ".lock")


def is_locked(file: Path) -> bool:
    """Return whether another process holds the lock that this file is."""
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True


def remove_traces(run_dir: Path) -> None:
    """Take away what Hydra wrote for a run that was refused: its directory, or its part of one."""
    if {entry.name for entry in run_dir.iterdir()} <= {".hydra", ".lock", "train.log"}:
        shutil.rmtree(run_dir)
        return
    resumed = sorted(run_dir.glob(".hydra/resumed-*"), key=lambda path: path.stat().st_mtime_ns)
    if resumed:
        shutil.rmtree(resumed[-1])
