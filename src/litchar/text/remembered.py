"""The cache directory, and cached results about large files, so that they are read once."""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from litchar.atomic import atomic_write
from litchar.errors import UserError

LARGE = 1 << 30  # bytes in total; less is read in a second or two, and is always read again
SETTLED_SECONDS = 2.0  # a more recent change may be followed by another with the same time stamp


def cache_dir() -> Path:
    """Return where token stores and downloads are kept: `$LITCHAR_CACHE`, or the user's cache.

    Raises:
        UserError: the environment names no directory and the user has no home.
    """
    if place := os.environ.get("LITCHAR_CACHE"):
        return Path(place)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "litchar")
    except RuntimeError:  # a user without a home, as in a container
        raise UserError(
            "there is no home directory to keep texts in; set the environment variable "
            "LITCHAR_CACHE=DIRECTORY"
        ) from None


def make_cache(directory: Path) -> None:
    """Create a directory of the cache.

    Raises:
        UserError: the directory cannot be created or is not writable.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
    except OSError as error:
        raise unwritable(directory, error) from None


def unwritable(directory: Path, error: OSError) -> UserError:
    """Return the error to raise if the cache cannot be written."""
    return UserError(
        f"{directory}: the cache cannot be written ({error.strerror}); set the environment "
        "variable LITCHAR_CACHE=DIRECTORY"
    )


def remembered(paths: Sequence[Path], about: str, compute: Callable[[], str]) -> str:
    """Return what `compute` finds in files, from the cache if they are large and unchanged.

    Large files are read once. After that they are recognised by path, size, inode and the times of
    their last changes, which the system updates on every write. A missing file is left for
    `compute` to report.

    Args:
        about: tells apart different computations on the same files.
    """
    try:
        stamps = [(path, path.stat()) for path in paths]
    except OSError:
        return compute()
    newest = max((max(stat.st_mtime, stat.st_ctime) for _, stat in stamps), default=0.0)
    settled = time.time() - newest > SETTLED_SECONDS
    if not settled or sum(stat.st_size for _, stat in stamps) < LARGE:
        return compute()
    identity = [
        (str(path.absolute()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
        for path, stat in stamps
    ]
    key = hashlib.sha256(json.dumps([identity, about]).encode()).hexdigest()
    place = cache_dir() / "remembered" / key[:32]
    try:
        return place.read_text()
    except OSError:
        found = compute()
    keep(place, found)
    return found


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; a large one is read again only if it has changed."""
    return remembered([path], "", lambda: file_sha256(path))


def keep(place: Path, text: str) -> None:
    """Write `text` to the cache, or do nothing if that fails: it is computed again next time."""
    with contextlib.suppress(OSError, UserError):
        make_cache(place.parent)
        with atomic_write(place) as draft:
            draft.write_text(text)
