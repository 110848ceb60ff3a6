"""Named texts: the bundled primer, downloads, the standard library, the Hugging Face Hub."""

import functools
import hashlib
import http.client
import os
import re
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from filelock import FileLock

from litchar.atomic import atomic_write, remove_drafts
from litchar.errors import UserError, extra, first_line
from litchar.text.corpus import CHUNK_BYTES, Corpus
from litchar.text.formats import ROWS_AT_ONCE, check_column, column_rows
from litchar.text.remembered import cache_dir, file_sha256, known_sha256, make_cache
from litchar.text.remote import save

if TYPE_CHECKING:
    import datasets


def bundled(name: str) -> Corpus:
    """Return a text that ships with the package.

    Args:
        name: the file's name in `src/litchar/text`, such as `ml.txt`.
    """
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

    Args:
        url: an https URL.
        sha256: of the file, in hexadecimal digits; a file with another one is refused.

    Raises:
        UserError: the file cannot be fetched (the message says where to put it by hand), its
            SHA-256 differs, or `sha256` is malformed.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):  # it names a directory of the cache
        raise UserError(f"data.source.sha256={sha256}: must be 64 hexadecimal digits")
    place = cache_dir() / "downloads" / sha256[:16] / url.rsplit("/", 1)[-1]
    if not os.path.isfile(place):  # else no need to write, and perhaps no permission
        make_cache(place.parent)
        with FileLock(f"{place}.lock"):
            if not place.exists():
                _fetch_checked(url, sha256, place)
    if known_sha256(place) != sha256:
        raise UserError(f"{place}: its SHA-256 is not {sha256}; delete it to fetch it again")
    return Corpus([place])


class HuggingFace(Corpus):
    """A column of a dataset that the `datasets` library loads, from the Hub or a directory.

    The library keeps the dataset on disk, memory-mapped. No code of a dataset is run.

    Args:
        name: of a dataset on the Hub, or a directory.
        column: the column that holds the text; each row is read as a line.
        subset: which configuration of the dataset, if it has several.
        split: which of its splits, such as `train`, `train[:10%]` or `train+test`.

    Raises:
        UserError: (on reading) there is no such dataset or column, or the column is not text.
    """

    def __init__(
        self, name: str, column: str | None, subset: str | None = None, split: str = "train"
    ) -> None:
        super().__init__([Path(name)], column=column)
        self.name = name
        self.subset = subset
        self.split = split

    def __repr__(self) -> str:
        return "/".join(filter(None, (self.name, self.subset, self.split)))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the rows and their lengths: the corpus's identity."""
        digest = hashlib.sha256(b"rows")  # not a file's hash: a newline follows each row
        for row in self._rows(*self.paths):
            content = row.encode()
            digest.update(content + f"\0{len(content)}\0".encode())
        return digest.hexdigest()

    def _rows(self, path: Path) -> Iterator[str]:
        columns = self._table.select_columns([self.column]).with_format("arrow")
        for batch in columns.iter(batch_size=ROWS_AT_ONCE):
            yield from column_rows(batch.column(0), f"data.name={self}: data.column={self.column}")

    @functools.cached_property
    def _table(self) -> "datasets.Dataset":
        with extra("datasets", needed_for="data.name"):
            import datasets
        try:
            table = datasets.load_dataset(self.name, self.subset, split=self.split)
        except Exception as error:  # anything, from a wrong name to the network
            said = "; ".join(map(first_line, filter(None, (error, error.__cause__))))
            raise UserError(f"data.name={self}: cannot be loaded: {said}") from None
        if isinstance(table, dict):
            raise UserError(
                f"data.name={self}: data.split is not set; choose from {', '.join(table)}"
            )
        check_column(table.features.arrow_schema, self.column, f"data.name={self}")
        return table


def _fetch_checked(url: str, sha256: str, place: Path) -> None:
    """Download `url` to `place` atomically, after checking its SHA-256."""
    remove_drafts(place.parent)  # of a killed process; we hold the lock
    try:
        with atomic_write(place) as draft:
            with open(draft, "wb") as file:
                _fetch(url, file)
            if (found := file_sha256(draft)) != sha256:
                raise UserError(f"{url}: the SHA-256 is {found}, not {sha256}; nothing was kept")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{url}: cannot be fetched ({getattr(error, 'reason', error)}); put a copy of the file "
            f"at {place}, or give its path: data.path=FILE"
        ) from None


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only: not to plain http, ftp or a local file."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://"):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, file: BinaryIO) -> None:
    if not url.startswith(("https://", "http://127.0.0.1:")):  # loopback: for tests and mirrors
        raise ValueError("only https is supported")
    with urllib.request.build_opener(_SafeRedirects).open(url, timeout=30) as response:
        length = response.headers.get("Content-Length")
        chunks = iter(lambda: response.read(CHUNK_BYTES), b"")
        save(chunks, file, url.rsplit("/", 1)[-1], length and int(length))
