"""Texts in object stores and on the web, copied once to the local cache through fsspec."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock

from litchar.errors import UserError, extra, first_line, is_disk_full
from litchar.text.remembered import cache_dir, make_cache, unwritable

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem  # type: ignore[import-untyped]

MOST_BYTES = 20_000_000_000  # that a file may have; a full disk helps nobody
BLOCK_BYTES = 1 << 22  # fetched at a time
PACKAGES = {  # that fsspec needs for each protocol
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "https": "aiohttp",
    "http": "aiohttp",
    "memory": "fsspec",
}
# What file systems say of a file that changes when it does.
IDENTITY = frozenset(
    {
        "etag",
        "size",
        "mtime",
        "lastmodified",
        "last_modified",
        "last-modified",
        "updated",
        "created",
        "generation",
        "md5hash",
        "content-md5",
        "blob_id",
        "xet_hash",
        "versionid",
    }
)
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")


def is_remote(path: object) -> bool:
    """Return whether a path names something that is not on this machine, such as `s3://...`."""
    return _URL.match(str(path)) is not None


def fetch(url: str, pattern: str) -> list[Path]:
    """Return local copies of the file at `url`, or of the files in that directory.

    A copy is kept for each URL together with what the file system says of the file: entity tag,
    size, time of change. A changed file is fetched again. An interrupted copy goes on where it
    stopped, as long as the file is the same.

    Args:
        pattern: which files of a directory; in sorted order.

    Raises:
        UserError: it cannot be read, and the message says why.
    """
    fs, path = _file_system(url)
    try:
        if not url.startswith("http") and fs.isdir(path):
            found = sorted(fs.glob(f"{glob.escape(path.rstrip('/'))}/{pattern}"))
            files = [name for name in found if fs.isfile(name)]
            if not files:
                raise UserError(
                    f"{url}: no file in this directory matches data.pattern={pattern}; name "
                    "another pattern, such as '**/*.md'"
                )
        else:
            files = [path]
        return [_copy(fs, name, url) for name in files]
    except UserError:
        raise
    except Exception as error:  # whatever a network or its library raises
        if isinstance(error, OSError) and is_disk_full(error):
            raise unwritable(cache_dir(), error) from None
        raise UserError(f"{url}: {_reason(error, PACKAGES[_protocol(url)])}") from None


def _reason(error: Exception, package: str) -> str:
    """Return why a file cannot be read, and how to mend it."""
    # fsspec calls every answer of a web server that it has no use for "not found".
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    said = first_line(cause or error)
    status = getattr(cause, "status", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        return f"no permission to read it ({said}); give credentials as {package} takes them"
    if isinstance(error, FileNotFoundError) and (cause is None or status == 404):
        return "there is no such file"
    return f"cannot be read ({said}); the same line goes on where it stopped"


def _file_system(url: str) -> tuple["AbstractFileSystem", str]:
    protocol = _protocol(url)
    loopback = url.startswith(("http://127.0.0.1:", "http://localhost:"))
    if protocol not in PACKAGES or "::" in url or (protocol == "http" and not loopback):
        offered = ", ".join(f"{name}://" for name in PACKAGES if name not in ("http", "memory"))
        raise UserError(f"{url}: cannot be fetched from there; there are {offered}")
    with extra("remote", needed_for=f"{protocol}://"):
        import fsspec
    try:
        options = {"client_kwargs": _client_settings()} if protocol.startswith("http") else {}
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        if isinstance(error, ValueError) and "nstall" not in str(error):
            raise UserError(f"{url}: {first_line(error)}") from None
        package = PACKAGES[protocol]
        raise UserError(f"{protocol}:// needs {package}: pip install {package}") from None
    return fs, path


def _client_settings() -> dict[str, Any]:
    """Return how a web server is spoken to: for as long as it sends, and of bytes as they lie there
    (of what it packed as it sent it, no range could be asked for)."""
    import aiohttp

    return {
        "trust_env": True,
        "headers": {"Accept-Encoding": "identity"},
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60),
    }


def _copy(fs: "AbstractFileSystem", path: str, url: str) -> Path:
    """Return the local copy of one file, fetched if it is not there."""
    info = fs.info(path)
    if str(info.get("url", "")).startswith("http://") and url.startswith("https://"):
        raise UserError(f"{url}: it redirects to {info['url']}, which is not https")
    said = _identity(info)
    digest = hashlib.sha256(json.dumps([fs.unstrip_protocol(path), said]).encode()).hexdigest()
    name = path.rstrip("/").rpartition("/")[2].partition("?")[0] or "text"
    place = cache_dir() / "remote" / digest[:32] / name
    if os.path.isfile(place):  # nothing to write, and perhaps no right to
        return place
    make_cache(place.parent)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            # Without a time or a tag, what was fetched before may be of another file.
            _fetch(fs, path, place, info.get("size"), goes_on=bool(said.keys() - {"size"}))
    return place


def _fetch(
    fs: "AbstractFileSystem", path: str, place: Path, size: int | None, goes_on: bool
) -> None:
    _check_size(size or 0)
    draft = place.with_name(f"{place.name}.part")
    begin = draft.stat().st_size if goes_on and draft.exists() else 0
    if size is None or begin > size:
        begin = 0
    with open(draft, "r+b" if begin else "wb") as file:
        file.seek(begin)
        save(_blocks(fs, path, begin), file, place.name, size)
        if size is not None and file.tell() != size:
            raise OSError(f"{file.tell():,} of {size:,} bytes came")
    os.replace(draft, place)


def save(blocks: Iterable[bytes], file: BinaryIO, name: str, size: int | None) -> None:
    """Write `blocks` from where `file` stands on, under a progress bar called `name`.

    Raises:
        ValueError: the file comes to more than `MOST_BYTES`.
    """
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(name, total=size, completed=file.tell())
        for block in blocks:
            file.write(block)
            _check_size(file.tell())
            bar.advance(task, len(block))
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")


def _blocks(fs: "AbstractFileSystem", path: str, begin: int) -> Iterator[bytes]:
    """Yield a file from byte `begin` on, in pieces of bounded size.

    A server may say only when it is asked for a range that it sends whole files alone.
    """
    for block_size in (BLOCK_BYTES, 0):  # 0: in one answer
        try:
            with fs.open(path, "rb", block_size=block_size, cache_type="readahead") as remote:
                _skip(remote, begin)
                while block := remote.read(BLOCK_BYTES):
                    yield block
                    begin += len(block)
            return
        except ValueError:
            if not block_size:
                raise


def _skip(remote: IO[bytes], begin: int) -> None:
    """Go to byte `begin` of an open file, if need be by reading what lies before it."""
    try:
        remote.seek(begin)
    except (ValueError, OSError):  # it comes in one answer
        while begin and (skipped := remote.read(min(BLOCK_BYTES, begin))):
            begin -= len(skipped)


def _identity(info: Mapping[str, Any]) -> dict[str, str]:
    """Return what of a file's description changes when the file does."""
    return {
        name.lower(): str(value)
        for name, value in sorted(info.items())
        if name.lower() in IDENTITY and value is not None
    }


def _protocol(url: str) -> str:
    return url.partition("://")[0]
