"""Checkpoint files on disk: whole or absent, checked, and loaded as plain data."""

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from litchar.atomic import atomic_write
from litchar.errors import UserError, first_line

# A checkpoint is torch's zip archive, then these bytes and the SHA-256 of the archive. A zip
# archive is read from its end, whatever follows it, so that `torch.load` opens the file as well.
SEAL = b"litchar-sha256:"
_ZIP_END_BYTES = 22  # the record with which a zip archive ends


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write `checkpoint` beside its place, flush it, then rename it over the one before.

    A file at `path` is whole at every moment; if saving fails it is the one before.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft, open(draft, "w+b") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's own, after a write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.write(SEAL + _sha256(file, file.tell()))
        file.flush()
        os.fsync(file.fileno())
    flush_directory(path.parent)


def load(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Return what a checkpoint of ours holds: tensors and plain data; nothing in the file is run.

    Raises:
        UserError: there is no such file, or it is not a whole checkpoint of plain data.
    """
    data = read(path, map_location)
    if not isinstance(data, dict) or "litchar" not in data or "state_dict" not in data:
        raise UserError(f"{path}: not a checkpoint that litchar wrote")
    return data


def read(path: Path, map_location: Any = "cpu") -> Any:
    """Return the tensors and plain data that anyone has saved; nothing in the file is run.

    Raises:
        UserError: there is no such file, or it is not a whole archive of plain data.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with open(path, "rb") as file:
            _check(file)
            file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        reason = first_line(error).split(". ")[0]
        raise UserError(
            f"{path}: not a whole checkpoint of plain data, so it was not loaded ({reason})"
        ) from None


def _check(file: BinaryIO) -> None:
    """Refuse a file that was changed since it was saved, or would unpack to more than it is.

    Raises:
        ValueError: it is such a file.
    """
    size = file.seek(0, os.SEEK_END)
    sealed = size - len(SEAL) - hashlib.sha256().digest_size
    file.seek(max(0, sealed))
    end = file.read()
    unsealed = end[-_ZIP_END_BYTES:].startswith(b"PK\5\6")  # saved by torch.save itself
    if not unsealed and end != SEAL + _sha256(file, sealed):
        raise ValueError("its checksum does not match: the file was cut or damaged")
    if not zipfile.is_zipfile(file):
        raise ValueError("it is no archive of torch.save")
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise ValueError("it would unpack to more than its size")


def _sha256(file: BinaryIO, length: int) -> bytes:
    """Return the digest of the first `length` bytes; the file is left at their end."""
    digest = hashlib.sha256()
    file.seek(0)
    for start in range(0, max(0, length), 1 << 20):
        digest.update(file.read(min(1 << 20, length - start)))
    return digest.digest()


def flush_directory(directory: Path) -> None:
    """Let what was renamed in `directory` outlast a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
