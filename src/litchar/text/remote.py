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

MOST_BYTES = 20_000_000_000  # per file, so as not to fill the disk
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
# Metadata of a file, in various file systems, that changes when the file does.
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
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_remote(path: object) -> bool:
    """Return whether a path is a URL, such as `s3://...`, and not a local path."""
    return _URL.match(str(path)) is not None


def fetch(url: str, pattern: str) -> list[Path]:
    """Return local copies of the file at `url`, or of the files in that directory.

    Copies are cached by URL and the file's metadata: entity tag, size, modification time. A
    changed file is fetched again. An interrupted download resumes where it stopped, as long as the
    file has not changed.

    Args:
        pattern: a glob for the files of a directory, which are returned in sorted order.

    Raises:
        UserError: the file cannot be read; the message says why.
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
    """Return why a file cannot be read, and what to do about it."""
    # fsspec turns every unusable response of a web server into "not found".
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    said = first_line(cause or error)
    status = getattr(cause, "status", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        return f"no permission to read it ({said}); give credentials as {package} expects them"
    if isinstance(error, FileNotFoundError) and (cause is None or status == 404):
        return "there is no such file"
    return f"cannot be read ({said}); run the same command again to resume"


def _file_system(url: str) -> tuple["AbstractFileSystem", str]:
    protocol = _protocol(url)
    loopback = url.startswith(("http://127.0.0.1:", "http://localhost:"))
    if protocol not in PACKAGES or "::" in url or (protocol == "http" and not loopback):
        offered = ", ".join(f"{name}://" for name in PACKAGES if name not in ("http", "memory"))
        raise UserError(f"{url}: not a supported kind of URL; choose from {offered}")
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
    """Return aiohttp's settings: no limit on the total time, and no compression in transit, as
    it rules out range requests."""
    import aiohttp

    return {
        "trust_env": True,
        "headers": {"Accept-Encoding": "identity"},
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60),
    }


def _copy(fs: "AbstractFileSystem", path: str, url: str) -> Path:
    """Return the local copy of one file, fetched if it is missing."""
    info = fs.info(path)
    if str(info.get("url", "")).startswith("http://") and url.startswith("https://"):
        raise UserError(f"{url}: it redirects to {info['url']}, which is not https")
    said = _identity(info)
    digest = hashlib.sha256(json.dumps([fs.unstrip_protocol(path), said]).encode()).hexdigest()
    name = path.rstrip("/").rpartition("/")[2].partition("?")[0] or "text"
    place = cache_dir() / "remote" / digest[:32] / name
    if os.path.isfile(place):  # no need to write, and perhaps no permission
        return place
    make_cache(place.parent)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            # Without a time or a tag, a partial download may be of an older version.
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
            raise OSError(f"{file.tell():,} of {size:,} bytes arrived")
    os.replace(draft, place)


def save(blocks: Iterable[bytes], file: BinaryIO, name: str, size: int | None) -> None:
    """Write `blocks` from the current position of `file` on, with a progress bar called `name`.

    Raises:
        ValueError: the file grows beyond `MOST_BYTES`.
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

    That a server sends only whole files may not show until a range is requested.
    """
    for block_size in (BLOCK_BYTES, 0):  # 0: in a single response
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
    """Seek to byte `begin` of an open file, or read up to it if it is not seekable."""
    try:
        remote.seek(begin)
    except (ValueError, OSError):  # a single response
        while begin and (skipped := remote.read(min(BLOCK_BYTES, begin))):
            begin -= len(skipped)


def _identity(info: Mapping[str, Any]) -> dict[str, str]:
    """Return those of a file's metadata that change when the file does."""
    return {
        name.lower(): str(value)
        for name, value in sorted(info.items())
        if name.lower() in IDENTITY and value is not None
    }


def _protocol(url: str) -> str:
    return url.partition("://")[0]
