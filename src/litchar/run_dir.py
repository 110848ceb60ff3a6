"""Where runs lie, and what there is in a run's directory. One process at a time trains there.

Nothing heavy is imported here; see `litchar.cli`.
"""

import contextlib
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from litchar.errors import BusyError

ROOT = Path(__file__).resolve().parents[2]  # of the checkout the package is installed from


def default_outputs() -> Path:
    """Return the directory of runs and sweeps: `$LITCHAR_OUTPUTS`, else the checkout's outputs/."""
    return Path(os.environ.get("LITCHAR_OUTPUTS", ROOT / "outputs"))


def sole_owner(run_dir: Path) -> AbstractContextManager[object]:
    """Return a lock on `run_dir`, already acquired: two processes training in one directory would
    corrupt each other's run.

    Raises:
        BusyError: another process is training there.
    """
    lock = FileLock(run_dir / ".lock")
    try:
        return lock.acquire(timeout=1)  # `is_busy` in another process holds it for a moment
    except Timeout:
        raise BusyError(run_dir) from None


def is_busy(run_dir: Path) -> bool:
    """Return whether another process is training in `run_dir`."""
    return run_dir.is_dir() and is_locked(run_dir / ".lock")


def is_locked(file: Path) -> bool:
    """Return whether another process holds the lock file `file`."""
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True


def newest_first(outputs: Path, *patterns: str) -> list[Path]:
    """Return the run directories below `outputs`, the one that was written to last first.

    Args:
        patterns: where they lie; by default those of runs and of the jobs of sweeps.
    """
    written: list[tuple[int, Path]] = []
    for pattern in patterns or ("runs/*", "sweeps/*/*"):
        for run_dir in outputs.glob(pattern):
            times = []
            for name in ("summary.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
                with contextlib.suppress(OSError):  # there is none, or one may not look
                    times.append((run_dir / name).stat().st_mtime_ns)
            if times:
                written.append((max(times), run_dir))
    return [run_dir for _, run_dir in sorted(written, reverse=True)]


def records(run_dir: Path) -> list[Path]:
    """Return where Hydra recorded the command lines of a run, the latest first: those that resumed
    it are in `.hydra/resumed-N`."""
    resumed = (run_dir / ".hydra").glob("resumed-*")
    last_first = sorted(resumed, key=lambda place: (len(place.name), place.name), reverse=True)
    return [*last_first, run_dir / ".hydra"]


def holds_a_run(run_dir: Path) -> bool:
    """Return whether a run has begun in `run_dir`: the first that it writes is its summary."""
    return any((run_dir / name).exists() for name in ("summary.json", "checkpoints"))


def remove_traces(run_dir: Path) -> None:
    """Delete what Hydra wrote for a run that did not begin: its record and, if nothing else is in
    it, the directory."""
    latest = records(run_dir)[0]
    if latest.name != ".hydra":  # there was a run before
        shutil.rmtree(latest, ignore_errors=True)
        return
    if holds_a_run(run_dir):
        return  # whose own record it is
    shutil.rmtree(latest, ignore_errors=True)
    with contextlib.suppress(OSError):  # such as a mount point; why the run ended matters more
        for file in (run_dir / ".lock", run_dir / "train.log"):
            if file.exists() and not file.stat().st_size:
                file.unlink()
        if not run_dir.samefile(Path.cwd()):
            run_dir.rmdir()  # if it is empty
