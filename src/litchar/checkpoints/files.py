"""Checkpoint files: written atomically, verified by checksum, loaded as plain data."""

import errno
import hashlib
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from litchar.atomic import atomic_write
from litchar.errors import UserError, first_line, is_out_of_memory

# A checkpoint is torch's zip archive, followed by these bytes and the SHA-256 of the archive. Zip
# readers search backwards for the end record, whatever follows it, so `torch.load` opens it too.
SEAL = b"litchar-sha256:"
_ZIP_END_BYTES = 22  # the end-of-central-directory record


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write `checkpoint` atomically: to a draft beside `path`, synced, then renamed over `path`.

    The file at `path` is complete at every moment; if saving fails, the previous one remains.

    Raises:
        OSError: the file cannot be written.
        UserError: `checkpoint` is not of plain data, so that it could not be loaded again.
    """
    with atomic_write(path) as draft, open(draft, "w+b") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # how torch reports a failed write
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.write(SEAL + _sha256(file, file.tell()))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        try:  # on `meta`, where no weight takes any time
            torch.load(file, map_location="meta", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            raise UserError(
                f"{path}: not saved: the state of a callback or the optimizer holds a "
                f"{found[1] if found else 'strange object'}, but only plain data could be loaded "
                "again: numbers, strings, lists, dictionaries and tensors"
            ) from None
        except NotImplementedError:  # `meta` lacks some rare kinds of tensors
            pass
    flush_directory(path.parent)


def load(path: Path) -> dict[str, Any]:
    """Return the content of a litchar checkpoint: tensors and plain data; no code in it is run.

    Raises:
        UserError: the file is missing, damaged, not of plain data, or not a litchar checkpoint.
    """
    data = read(path)
    if not isinstance(data, dict) or "litchar" not in data or "state_dict" not in data:
        raise UserError(f"{path}: not a checkpoint that litchar wrote")
    return data


def read(path: Path) -> Any:
    """Return the content of any `torch.save` file of tensors and plain data; no code in it is run.

    Raises:
        UserError: the file is missing, damaged, or not an archive of plain data.
        PermissionError: it must not be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with open(path, "rb") as file:
            _check(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a bad file
        if isinstance(error, PermissionError) or is_out_of_memory(error):
            raise  # the file may be whole
        reason = first_line(error).split(". ")[0]
        raise UserError(
            f"{path}: not a complete checkpoint of plain data, so it was not loaded ({reason})"
        ) from None


def _check(file: BinaryIO) -> None:
    """Check a file's seal, if it has one, and the size that it would unpack to.

    Raises:
        ValueError: the checksum does not match, the file is not a zip archive, or it would unpack
            to more than its own size.
    """
    size = file.seek(0, os.SEEK_END)
    sealed = size - len(SEAL) - hashlib.sha256().digest_size
    file.seek(max(0, sealed))
    end = file.read()
    unsealed = end[-_ZIP_END_BYTES:].startswith(b"PK\5\6")  # plain torch.save
    if not unsealed and end != SEAL + _sha256(file, sealed):
        raise ValueError("its checksum does not match: the file was cut or damaged")
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not an archive of torch.save")
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise ValueError("it would unpack to more than its size")


def _sha256(file: BinaryIO, length: int) -> bytes:
    """Return the SHA-256 of the first `length` bytes, leaving the file positioned after them."""
    digest = hashlib.sha256()
    file.seek(0)
    for start in range(0, max(0, length), 1 << 20):
        digest.update(file.read(min(1 << 20, length - start)))
    return digest.digest()


def flush_directory(directory: Path) -> None:
    """Sync `directory` to disk, so that a rename in it survives a power cut; some file systems,
    such as those of shared folders, cannot."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
