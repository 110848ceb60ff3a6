"""File formats: decompression, and the rows of JSON-lines and Parquet files."""

import contextlib
import gzip
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from backports import zstd

from litchar.errors import UserError, extra, first_line
from litchar.settings import flatten

if TYPE_CHECKING:
    import pyarrow

DECOMPRESSED_BY: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": zstd.open,
}
DAMAGED = (
    EOFError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    NotImplementedError,  # zipfile: an unsupported version
    zipfile.BadZipFile,
    zlib.error,
    zstd.ZstdError,
)
ROWS_AT_ONCE = 256
LONGEST_LINE = 1 << 28  # bytes; a file that is not JSON-lines may be a single line


def compression(path: Path) -> str:
    """Return a file's compression by its name: `.gz`, `.xz`, `.zst`, `.zip` or an empty string."""
    suffix = path.suffix.lower()
    return suffix if suffix in (".zip", *DECOMPRESSED_BY) else ""


def is_jsonl(path: Path) -> bool:
    """Return whether a file is JSON-lines, possibly compressed, by its name."""
    return path.name.lower().removesuffix(compression(path)).endswith((".jsonl", ".ndjson"))


def is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet by its name."""
    return path.suffix.lower() == ".parquet"


@contextlib.contextmanager
def opened(path: Path, decompressed: bool = True) -> Iterator[IO[bytes]]:
    """Open a file in binary mode; `.gz`, `.xz`, `.zst` and `.zip` files are decompressed.

    Args:
        decompressed: False: read compressed files as they are, too.

    Raises:
        UserError: (also during reads) the file cannot be read, is damaged or holds several files.
    """
    suffix = compression(path) if decompressed else ""
    if suffix and Path(path.stem).suffix == ".tar":
        raise UserError(f"{path}: an archive of files; unpack it and give the directory")
    try:
        with open(path, "rb") as file:
            try:
                if suffix == ".zip":
                    with zipfile.ZipFile(file) as archive, _only_member(archive, path) as content:
                        yield content
                elif suffix:
                    with DECOMPRESSED_BY[suffix](file) as content:
                        yield content
                else:
                    yield file
            except DAMAGED as error:  # the offset is only a bound, as reads run ahead
                raise UserError(
                    f"{path}: damaged at or before offset {file.tell():,} ({error}); download or "
                    f"create the {suffix} file again"
                ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _only_member(archive: zipfile.ZipFile, path: Path) -> IO[bytes]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        raise UserError(
            f"{path}: holds {len(members)} files, not one; unpack it and give the directory"
        )
    try:
        return archive.open(members[0])
    except (RuntimeError, NotImplementedError) as error:  # a password, an unknown method
        raise UserError(
            f"{path}: cannot be unpacked ({error}); unpack it with another tool"
        ) from None


def jsonl_rows(path: Path, field: str | None) -> Iterator[str]:
    """Yield the text of each row of a JSON-lines file, skipping rows in which it is null.

    Args:
        field: the name of the text's field, with dots for nested objects: `meta.title`.

    Raises:
        UserError: a row lacks the field or holds no text in it, or a line is not a JSON object.
    """
    with opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            where = f"{path}, line {number:,}"
            if len(line) == LONGEST_LINE:
                raise UserError(f"{where}: longer than {LONGEST_LINE:,} bytes; is it JSON-lines?")
            if line.isspace():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON ({error}); each line is an object") from None
            if not isinstance(row, dict):
                raise UserError(f"{where}: is a {type(row).__name__}; each line is an object")
            value = _value(row, field, where)
            if value is not None:
                yield _text(value, f"{where}: data.field={field}")


def _value(row: dict[str, Any], field: str | None, where: str) -> Any:
    """Return a field of a row, by its literal name or else by its dotted path."""
    if field in row:
        return row[field]
    value: Any = row
    for part in (field or "").split("."):
        if value is None:
            break
        if not isinstance(value, dict) or part not in value:
            texts = (name for name, value in flatten(row).items() if isinstance(value, str))
            names = ", ".join(texts) or "none"
            wrong = "data.field is not set" if field is None else f"data.field={field} not found"
            raise UserError(f"{where}: {wrong}; fields with text: {names}")
        value = value[part]
    return value


def parquet_rows(path: Path, column: str | None) -> Iterator[str]:
    """Yield the text of each row of a Parquet file, skipping rows in which it is null.

    Raises:
        UserError: there is no such column, it is not text, or the file is damaged.
    """
    with extra("parquet", needed_for="data.column"):
        import pyarrow
        from pyarrow.parquet import ParquetFile

    read = 0
    try:
        # These settings stream a row group instead of reading it whole.
        with ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            check_column(file.schema_arrow, column, str(path))
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
                yield from column_rows(batch.column(0), f"{path}: data.column={column}")
                read += len(batch)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: damaged after row {read:,}, or not Parquet: {first_line(error)}"
        ) from None


def column_rows(column: "pyarrow.Array | pyarrow.ChunkedArray", what: str) -> Iterator[str]:
    """Yield the text of each row of a column, skipping nulls; messages call it `what`."""
    try:
        rows = column.to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is not UTF-8: {error}") from None
    return (_text(row, what) for row in rows if row is not None)


def check_column(schema: "pyarrow.Schema", column: str | None, where: str) -> None:
    """Raise UserError unless the column is one of text; the message names those that are."""
    kinds = {field.name: field.type for field in schema}
    if column is None:
        wrong = "data.column is not set"
    elif column not in kinds:
        wrong = f"data.column={column} not found"
    elif not _is_text(kinds[column]):
        wrong = f"data.column={column} holds {kinds[column]}, not text"
    else:
        return
    names = ", ".join(name for name in kinds if _is_text(kinds[name])) or "none"
    raise UserError(f"{where}: {wrong}; columns with text: {names}")


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    kinds = (types.is_string, types.is_large_string, types.is_string_view)
    return any(is_kind(kind) for is_kind in kinds)


def _text(value: Any, what: str) -> str:
    """Return `value` with its line ends converted to `\\n`.

    Raises:
        UserError: it is not a string, or holds a lone surrogate, which JSON can express.
    """
    if not isinstance(value, str):
        raise UserError(f"{what} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise UserError(f"{what} holds {half!r}, half a surrogate pair, not a character") from None
    return value.replace("\r\n", "\n").replace("\r", "\n")
