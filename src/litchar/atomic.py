"""Atomic writes: a file is written beside its place, then renamed, and so is whole or absent."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

DRAFT = ".draft-"  # how a file that is being written begins


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file or a directory to; then rename that.

    If anything goes wrong, nothing of it stays, and what was at `path` is there as before. Several
    processes may do so at once, on one machine or on several; the last one's stays.
    """
    draft = path.with_name(f"{DRAFT}{secrets.token_hex(4)}-{path.name}")
    old = draft.with_name(f"{draft.name}-old")
    try:
        yield draft
        if path.is_dir() and draft.is_dir():  # one directory is not renamed over another
            os.rename(path, old)
        os.replace(draft, path)
    except BaseException:
        if old.exists():
            os.rename(old, path)
        raise
    finally:
        for rest in (draft, old):
            _remove(rest)


def remove_drafts(directory: Path) -> None:
    """Delete what a process that was killed while it wrote has left in `directory`."""
    for draft in directory.glob(f"{DRAFT}*"):
        _remove(draft)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
