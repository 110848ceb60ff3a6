"""Atomic writes: a file is written beside its target, then renamed, so it is whole or absent."""

import contextlib
import csv
import errno
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DRAFT = ".draft-"  # prefix of files that are being written


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a directory to, then rename it to `path`.

    Its directory is created. On an error the draft is removed, and `path` is left as it was.
    Several processes may write the same file at once, on one machine or on several; the last one
    wins. Of a link, what it names is replaced.

    Raises:
        OSError: `path` is a device or a pipe, which renaming would destroy.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "a device or a pipe; give the name of a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{DRAFT}{secrets.token_hex(4)}-{path.name}")
    old = draft.with_name(f"{draft.name}-old")
    try:
        yield draft
        if path.is_dir() and draft.is_dir():  # a directory cannot be renamed over another
            os.rename(path, old)
        os.replace(draft, path)
    except BaseException:
        if old.exists():
            os.rename(old, path)
        raise
    finally:
        for rest in (draft, old):
            _remove(rest)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows` as a CSV file, atomically; an unknown figure is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # A path need not be valid UTF-8.
    with (
        atomic_write(path) as draft,
        open(draft, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            known = {k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
            writer.writerow(known)


def remove_drafts(directory: Path) -> None:
    """Delete the drafts that killed processes left in `directory`."""
    for draft in directory.glob(f"{DRAFT}*"):
        _remove(draft)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
