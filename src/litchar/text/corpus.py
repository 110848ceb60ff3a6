"""A corpus: files read as one text, in pieces, with bounded memory."""

import codecs
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from litchar.errors import UserError

CHUNK_BYTES = 1 << 18  # small enough that a piece and its ids stay in a core's cache


class Corpus:
    """The text of one or several files, one after the other with nothing between.

    Files are UTF-8; a byte-order mark at a file's start is dropped, and line ends become `\\n` as
    in Python's text mode.

    Args:
        paths: the files, in the order in which they are read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    @classmethod
    def find(cls, path: str | Sequence[str], pattern: str = "**/*.txt") -> "Corpus":
        """Return the corpus at `path`: a file, several files, or a directory.

        Args:
            path: a file, a directory, or a list of either.
            pattern: which files of a directory, as `Path.glob` has it; read in sorted order.

        Raises:
            UserError: there is no such file, or nothing in the directory matches.
        """
        found: list[Path] = []
        for entry in [path] if isinstance(path, str | Path) else path:
            place = Path(entry).expanduser()
            if place.is_dir():
                matches = _matches(place, pattern)
                if not matches:
                    raise UserError(
                        f"data.path={entry}: no file in this directory matches "
                        f"data.pattern={pattern}; name another pattern, such as '**/*.md'"
                    )
                found += matches
            elif place.exists():
                found.append(place)
            else:
                raise UserError(
                    f"data.path={entry}: no such file or directory (looked in {Path.cwd()})"
                )
        if not found:
            raise UserError("data.path names no file; give one: data.path=FILE")
        return cls(found)

    def __repr__(self) -> str:
        first = str(self.paths[0])
        return first if len(self.paths) == 1 else f"{first} and {len(self.paths) - 1} more files"

    def fingerprint(self) -> str:
        """Return the SHA-256 of the files' bytes and lengths: the corpus's identity."""
        digest = hashlib.sha256()
        for path in self.paths:
            length = 0
            with _open(path) as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    length += len(chunk)
            digest.update(f"\0{length}\0".encode())
        return digest.hexdigest()

    def read(self) -> Iterator[str]:
        """Yield the text in pieces of about `CHUNK_BYTES` bytes.

        Raises:
            UserError: a file is not UTF-8; the message gives the offset of the first such byte.
        """
        for path in self.paths:
            # The decoder that Python's own text files use, without their small reads.
            decoder = io.IncrementalNewlineDecoder(
                codecs.getincrementaldecoder("utf-8")(), translate=True
            )
            with _open(path) as file:
                offset = file.seek(len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0)
                while True:
                    chunk = file.read(CHUNK_BYTES)
                    try:
                        text = decoder.decode(chunk, final=not chunk)
                    except UnicodeDecodeError as error:
                        # The decoder's input is what it held back before this chunk, then the chunk
                        held_back = len(error.object) - len(chunk)
                        raise UserError(
                            f"{path}: not UTF-8 text; the first wrong byte is "
                            f"0x{error.object[error.start]:02x} at offset "
                            f"{offset - held_back + error.start}; convert the file, for example: "
                            "iconv -f WINDOWS-1252 -t UTF-8"
                        ) from None
                    offset += len(chunk)
                    if text:
                        yield text
                    if not chunk:
                        break


def _matches(directory: Path, pattern: str) -> list[Path]:
    try:
        return sorted(match for match in directory.glob(pattern) if match.is_file())
    except (ValueError, NotImplementedError, IndexError) as error:
        raise UserError(
            f"data.pattern={pattern}: not a pattern for files ({error}); an example is '**/*.txt'"
        ) from None


def _open(path: Path) -> io.BufferedReader:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
