"""Texts with a name: the bundled primer, downloads, the Python standard library."""

import http.client
import os
import sysconfig
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from litchar.errors import UserError
from litchar.text.corpus import CHUNK_BYTES, Corpus
from litchar.text.store import cache_dir, file_sha256, make_cache

MOST_BYTES = 20_000_000_000  # that a download may have; a full disk helps nobody


def bundled(name: str) -> Corpus:
    """Return a text that ships with the package, such as `ml.txt`."""
    return Corpus([Path(__file__).with_name(name)])


def python_stdlib() -> Corpus:
    """Return the source files of the running interpreter's standard library, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    files = (
        path
        for path in sorted(root.rglob("*.py"))
        if not left_out.intersection(path.relative_to(root).parts)
    )
    return Corpus(list(files))


def download(url: str, sha256: str) -> Corpus:
    """Return the file at `url`, fetched on first use with a progress bar and kept in the cache.

    Raises:
        UserError: the file cannot be fetched (the message says where to put it by hand), or is not
            the one whose SHA-256 was given.
    """
    place = cache_dir() / "downloads" / sha256[:16] / url.rsplit("/", 1)[-1]
    make_cache(place.parent)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            _fetch_checked(url, sha256, place)
        elif file_sha256(place) != sha256:
            raise UserError(f"{place}: its SHA-256 is not {sha256}; delete it to fetch it again")
    return Corpus([place])


def _fetch_checked(url: str, sha256: str, place: Path) -> None:
    """Put the file at `url` at `place`, whole and checked, or not at all."""
    draft = place.with_name(f"{place.name}.draft")
    try:
        with open(draft, "wb") as file:
            _fetch(url, file)
            file.flush()
            os.fsync(file.fileno())
        if (found := file_sha256(draft)) != sha256:
            raise UserError(f"{url}: the SHA-256 is {found}, not {sha256}; nothing was kept")
        os.replace(draft, place)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{url}: cannot be fetched ({getattr(error, 'reason', error)}); put a copy of the file "
            f"at {place}, or give its path: data.path=FILE"
        ) from None
    finally:
        draft.unlink(missing_ok=True)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only: not to plain http, ftp or a local file."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.startswith("https://"):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, file: BinaryIO) -> None:
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    if not url.startswith(("https://", "http://127.0.0.1:")):  # loopback: for tests and mirrors
        raise ValueError("only https is fetched")
    name = url.rsplit("/", 1)[-1]
    with urllib.request.build_opener(_SafeRedirects).open(url, timeout=30) as response:
        length = response.headers.get("Content-Length")
        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task(name, total=length and int(length))
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                if file.tell() > MOST_BYTES:
                    raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
                progress.advance(task, len(chunk))
