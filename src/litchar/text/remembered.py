"""The cache's place, and what it remembers of large files, so that they are not read again."""

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

LARGE = 1 << 30  # bytes of files together; less is read in a second or two, and always is
SETTLED_SECONDS = 2.0  # a file that was changed later may change again with the same time stamp


def cache_dir() -> Path:
    """Return where token stores and downloads are kept: `$LITCHAR_CACHE`, or the user's cache.

    Raises:
        UserError: there is neither.
    """
    if place := os.environ.get("LITCHAR_CACHE"):
        return Path(place)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "litchar")
    except RuntimeError:  # nobody's, in a container
        raise UserError(
            "there is no home directory to keep texts in; name a place in the environment: "
            "LITCHAR_CACHE=DIRECTORY"
        ) from None


def make_cache(directory: Path) -> None:
    """Make a directory of the cache.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
    except OSError as error:
        raise unwritable(directory, error) from None


def unwritable(directory: Path, error: OSError) -> UserError:
    """Return what to raise where the cache cannot be written."""
    return UserError(
        f"{directory}: the cache cannot be written ({error.strerror}); name another place in the "
        "environment: LITCHAR_CACHE=DIRECTORY"
    )


def remembered(paths: Sequence[Path], about: str, compute: Callable[[], str]) -> str:
    """Return what `compute` finds in files, if need be from the last time.

    Large files are read once. After that they are told by their names, sizes, inodes and the times
    of their last changes, which the system sets whenever anybody writes to them. A file that is
    not there is for `compute` to name.

    Args:
        about: what `compute` reads in them, if it is not all alike.
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


def keep(place: Path, text: str) -> None:
    """Write `text` to a place in the cache; on a full disk it is computed again next time."""
    with contextlib.suppress(OSError, UserError):
        make_cache(place.parent)
        with atomic_write(place) as draft:
            draft.write_text(text)
