"""A corpus: files read as one text, in pieces, with bounded memory."""

import codecs
import copy
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from litchar.errors import UserError
from litchar.text.formats import compression, is_jsonl, is_parquet, jsonl_rows, opened, parquet_rows
from litchar.text.remembered import remembered
from litchar.text.remote import fetch, is_remote

CHUNK_BYTES = 1 << 18  # small enough that a piece and its ids stay in a core's cache


class Corpus:
    """The text of one or more files, concatenated with nothing in between.

    Files are UTF-8; a byte-order mark at a file's start is dropped, and line ends become `\\n` as
    in Python's text mode. `.gz`, `.xz`, `.zst` and `.zip` files are decompressed. A row of
    JSON-lines or Parquet is read as a line, followed by a newline.

    Args:
        paths: the files, in reading order.
        field: read the files as JSON-lines, with the text in this field of each row.
        column: read the files as Parquet, with the text in this column.

    Raises:
        UserError: both a field and a column are given.
    """

    min_count = 0  # characters that occur fewer times are kept out of its vocabulary

    def __init__(
        self, paths: Sequence[Path], field: str | None = None, column: str | None = None
    ) -> None:
        if field is not None and column is not None:
            raise UserError(
                f"data.field={field} is for JSON-lines, data.column={column} for Parquet; set one"
            )
        self.paths = list(paths)
        self.field = field
        self.column = column

    @classmethod
    def find(
        cls,
        path: str | float | Sequence[str | float],
        pattern: str = "**/*.txt",
        field: str | None = None,
        column: str | None = None,
    ) -> "Corpus":
        """Return the corpus at `path`: a file, several files, or a directory.

        Args:
            path: a file, a directory, or a list of either; local, or the URL of an object store or
                a website, see `litchar.text.remote`.
            pattern: a glob for the files of a directory, which are read in sorted order.
            field: for JSON-lines, see the class.
            column: for Parquet, see the class.

        Raises:
            UserError: there is no such file, or no file in the directory matches.
        """
        found: list[Path] = []
        for entry in [path] if isinstance(path, str | float | int | Path) else path:
            if entry in (None, ""):
                said = "null" if entry is None else "empty (an unset variable?)"
                raise UserError(f"data.path is {said}, or has an entry that is; name a file")
            entry = str(entry)  # Hydra reads 1984 as a number
            found += fetch(entry, pattern) if is_remote(entry) else _local(entry, pattern)
        if not found:
            raise UserError("data.path names no file; give one: data.path=FILE")
        return cls(found, field, column)

    def __repr__(self) -> str:
        first, more = str(self.paths[0]), len(self.paths) - 1
        return f"{first} and {more} more file{'s' * (more > 1)}" if more else first

    def fingerprint(self) -> str:
        """Return the corpus's identity: the SHA-256 of the files' bytes and lengths, and of how
        they are read."""
        about = json.dumps([self.field, self.column])
        return remembered(self.paths, f"fingerprint {about}", self._fingerprint)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            length = 0
            with opened(path, decompressed=False) as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    length += len(chunk)
            digest.update(f"\0{length}\0".encode())
            read_as = [compression(path), self.field, self.column]
            if any(read_as):
                digest.update(f"{json.dumps(read_as)}\0".encode())
        return digest.hexdigest()

    def check_rows(self) -> None:
        """Raise UserError if the files are of rows and no field or column is set to read the text
        from; the message names those that have text."""
        if not self._of_rows:
            for path in self.paths:
                next(self._rows(path) or iter(()), None)

    def parts(self, document: str | None) -> "Iterator[Corpus]":
        """Yield the parts that are read independently: the whole corpus without documents; each
        file if a document is a line; if it is a file, each row where a field or column is set,
        else each file.
        """
        if document is None:
            yield self
            return
        for path in self.paths:
            rows = self._rows(path) if document == "file" and self._of_rows else None
            if rows is None:
                one = copy.copy(self)  # keeps the subclass
                one.paths = [path]
                yield one
            else:
                yield from map(Row, rows)

    def read_bytes(self) -> Iterator[bytes]:
        """Yield the files' bytes, decompressed, in pieces of at most `CHUNK_BYTES`, or the bytes of
        the rows if a field or column is set.

        Raises:
            UserError: a file cannot be read, or is not what its name and the settings say.
        """
        if self._of_rows:
            yield from (text.encode() for text in self.read())
            return
        for path in self.paths:
            with opened(path) as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk

    def read(self) -> Iterator[str]:
        """Yield the text in pieces of about `CHUNK_BYTES` bytes.

        Raises:
            UserError: a file cannot be read, or is not what its name and the settings say.
        """
        for path in self.paths:
            rows = self._rows(path)
            yield from _decoded(path) if rows is None else as_lines(rows)

    def changes(self, document: str | None) -> list[str]:
        """Return a report of what cleaning changes: empty here, see `litchar.text.cleaning`."""
        return []

    @property
    def _of_rows(self) -> bool:
        """Whether the text is a field or column of rows, rather than whole files."""
        return self.field is not None or self.column is not None

    def _rows(self, path: Path) -> Iterator[str] | None:
        """Return the rows of a JSON-lines or Parquet file; None for other files."""
        if self.column is not None or is_parquet(path):
            return parquet_rows(path, self.column)
        if self.field is not None or is_jsonl(path):
            return jsonl_rows(path, self.field)
        return None


class Row(Corpus):
    """One row of a file as a corpus of its own."""

    _of_rows = True

    def __init__(self, text: str) -> None:
        super().__init__([])
        self.text = text

    def read(self) -> Iterator[str]:
        """Yield the text, unless it is empty."""
        return iter([self.text] if self.text else [])


def as_lines(rows: Iterable[str]) -> Iterator[str]:
    """Yield rows, each followed by a newline, in pieces of about `CHUNK_BYTES` characters."""
    held, length = [], 0
    for row in rows:
        held.append(row)
        length += len(row) + 1
        if length >= CHUNK_BYTES:
            yield "\n".join(held) + "\n"
            held, length = [], 0
    if held:
        yield "\n".join(held) + "\n"


# What compressed files begin with, and what to do with one whose name does not say so.
COMPRESSED = {
    b"\x1f\x8b": "name it FILE.gz",
    b"\xfd7zXZ": "name it FILE.xz",
    b"\x28\xb5\x2f\xfd": "name it FILE.zst",
    b"PK\x03\x04": "name it FILE.zip",
    b"BZh": "unpack it with bunzip2",
}


def _decoded(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file in pieces.

    Raises:
        UserError: it is a tar archive, or not UTF-8 (with the offset of the first wrong byte).
    """
    if path.suffix.lower() == ".tar":
        raise UserError(f"{path}: an archive of files; unpack it and give the directory")
    # The decoder that Python's own text files use, without their small reads.
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    offset, at_start = 0, True
    with opened(path) as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                # The decoder's input is what it held back of earlier chunks, then this chunk.
                start = error.object if not offset else b""
                for first_bytes, mend in COMPRESSED.items():
                    if start.startswith(first_bytes):
                        raise UserError(f"{path}: compressed, not text as it is; {mend}") from None
                code = "UTF-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
                held_back = len(error.object) - len(chunk)
                cut = "" if chunk else "it may be cut; if it is whole, "
                raise UserError(
                    f"{path}: not UTF-8 text; the first wrong byte is "
                    f"0x{error.object[error.start]:02x} at offset "
                    f"{offset - held_back + error.start}; {cut}convert the file, for example: "
                    f"iconv -f {code} -t UTF-8"
                ) from None
            if not offset and (form := _utf16(chunk)):
                raise UserError(
                    f"{path}: {form}, not UTF-8 text: every other byte is a control character; "
                    f"convert the file, for example: iconv -f {form} -t UTF-8"
                )
            offset += len(chunk)
            if text:
                text, at_start = text.removeprefix("\ufeff") if at_start else text, False
            if text:
                yield text
            if not chunk:
                break


CONTROLS = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})


def _utf16(start: bytes) -> str | None:
    """Return the form of UTF-16 in which a file begins, if it has no byte-order mark but its first
    characters, such as Latin or Cyrillic ones, give it away: they are valid UTF-8, too."""
    if len(start) < 16:  # too short to tell
        return None
    halves = start[::2], start[1::2]
    even, odd = (1 - len(half.translate(None, CONTROLS)) / len(half) for half in halves)
    if max(even, odd) < 0.9 or min(even, odd) > 0.25:
        return None
    return "UTF-16LE" if odd > even else "UTF-16BE"


def _local(entry: str, pattern: str) -> list[Path]:
    """Return the file that an entry of `data.path` names, or the files of that directory."""
    place = Path(os.path.expanduser(entry))
    try:
        exists = place.exists()
    except PermissionError:
        raise
    except OSError as error:  # name too long: it is the text, not its file
        raise UserError(f"data.path: {error.strerror}: {entry[:80]}...") from None
    if place.is_file():
        return [place]
    if not place.is_dir():
        wrong = (
            "neither a file nor a directory; a text is read several times, so save it to a file "
            "first"
            if exists
            else "no such file or directory"
            + (f" (looked in {Path.cwd()})" if not place.is_absolute() else "")
        )
        raise UserError(f"data.path={entry}: {wrong}")
    matches = _matches(place, pattern)
    if not matches:
        raise UserError(
            f"data.path={entry}: no file in this directory matches data.pattern={pattern}; name "
            "another pattern, such as '**/*.md'"
        )
    return matches


def _matches(directory: Path, pattern: str) -> list[Path]:
    try:
        matches = sorted(directory.glob(pattern))
        found = [match for match in matches if match.is_file()]
    except (ValueError, NotImplementedError, IndexError) as error:
        raise UserError(
            f"data.pattern={pattern}: not a valid file pattern ({error}); try '**/*.txt'"
        ) from None
    for match in matches:
        hidden = match.name.startswith(".")  # such as the lock of an editor
        if match.is_symlink() and not match.exists() and not hidden:
            raise UserError(
                f"{match}: is a link to {os.readlink(match)}, which does not exist; mend the link "
                "or delete it"
            )
    # `glob` silently skips directories that it may not read.
    fixed = itertools.takewhile(lambda part: not set(part) & set("*?["), Path(pattern).parts)
    root = directory.joinpath(*fixed)
    if "**" in pattern:
        for _ in os.walk(root, onerror=_refused):
            pass
    elif not found and root.is_dir():
        os.scandir(root).close()
    return found


def _refused(error: OSError) -> None:
    """Raise the error of an unreadable directory, unless it is a file system's own `lost+found`."""
    if isinstance(error, PermissionError) and Path(error.filename).name != "lost+found":
        raise error
