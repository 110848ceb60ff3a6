"""The token store: a corpus as a memory-mapped array of ids, built once and cached by content."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from litchar.errors import UserError
from litchar.text.corpus import Corpus
from litchar.text.vocabulary import ByteVocabulary, Vocabulary, codepoints

FORMAT = 1  # of a store; another number leaves older ones alone


@dataclass(frozen=True)
class TokenStore:
    """An encoded corpus.

    Attributes:
        tokens: the ids, one for each character or byte; memory-mapped, read-only, in
            `vocabulary.dtype`.
        vocabulary: the corpus's characters, or the byte values.
        fingerprint: the content's identity, `Corpus.fingerprint`.
    """

    tokens: np.ndarray
    vocabulary: Vocabulary
    fingerprint: str


def cache_dir() -> Path:
    """Return where token stores and downloads are kept: `$LITCHAR_CACHE`, or the user's cache."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("LITCHAR_CACHE") or user_cache / "litchar")


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
        raise UserError(
            f"{directory}: the cache cannot be written ({error.strerror}); name another place in "
            "the environment: LITCHAR_CACHE=DIRECTORY"
        ) from None


def open_store(corpus: Corpus, unit: str = "character") -> TokenStore:
    """Return the token store of `corpus`, from the cache or built now.

    The corpus is read with bounded memory: once to fingerprint it and, if it is new, once to find
    its characters, once to encode it and once to see that it is still the same. A store that is
    damaged is built again; of processes that want the same one at once, the first builds it and
    the others wait.

    Args:
        unit: what a token is, `character` or `byte`.

    Raises:
        UserError: the corpus is empty, has one distinct character or byte only, or is not UTF-8
            although it shall be read by character.
    """
    fingerprint = corpus.fingerprint()
    place = cache_dir() / "tokens" / f"{fingerprint[:32]}-{unit}-{FORMAT}"
    make_cache(place.parent)
    with FileLock(f"{place}.lock"):
        vocabulary = _vocabulary_of(place)
        if vocabulary is None:
            vocabulary = _build(corpus, unit, place, fingerprint)
    tokens = np.load(place / "tokens.npy", mmap_mode="r")
    return TokenStore(tokens, vocabulary, fingerprint)


def _vocabulary_of(place: Path) -> Vocabulary | None:
    """Return the vocabulary of the store at `place`, or None if there is no whole store."""
    try:
        meta = json.loads((place / "meta.json").read_text())
        if meta["tokens_sha256"] == file_sha256(place / "tokens.npy"):
            return Vocabulary.from_json(meta["vocabulary"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _build(corpus: Corpus, unit: str, place: Path, fingerprint: str) -> Vocabulary:
    """Encode `corpus` into the directory `place`, which appears whole or not at all.

    Raises:
        UserError: the text is unfit, or was changed under way.
    """
    draft = place.with_name(f"{place.name}.draft")
    for leftover in (draft, place):  # of a process that was killed, or damaged
        shutil.rmtree(leftover, ignore_errors=True)
    vocabulary, length = _scan(corpus, unit)
    draft.mkdir()
    try:
        with open(draft / "tokens.npy", "wb") as file:  # not through a memory map: its pages would
            np.lib.format.write_array_header_1_0(  # count as this process's memory
                file,
                {
                    "descr": np.lib.format.dtype_to_descr(vocabulary.dtype),
                    "fortran_order": False,
                    "shape": (length,),
                },
            )
            for codes in read_codes(corpus, unit):
                vocabulary.lookup(codes).astype(vocabulary.dtype, copy=False).tofile(file)
            file.flush()
            os.fsync(file.fileno())
        meta = {
            "vocabulary": vocabulary.to_json(),
            "tokens_sha256": file_sha256(draft / "tokens.npy"),
        }
        with open(draft / "meta.json", "w") as file:
            json.dump(meta, file)
            file.flush()
            os.fsync(file.fileno())
        if corpus.fingerprint() != fingerprint:
            raise UserError(f"{corpus}: the text was changed while it was read; try again")
        os.rename(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return vocabulary


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_codes(corpus: Corpus, unit: str) -> Iterator[np.ndarray]:
    """Yield the corpus in pieces: its code points, or its bytes."""
    if unit == ByteVocabulary.unit:
        return (np.frombuffer(chunk, np.uint8) for chunk in corpus.read_bytes())
    return (codepoints(text) for text in corpus.read())


def _scan(corpus: Corpus, unit: str) -> tuple[Vocabulary, int]:
    """Return the vocabulary of `corpus` and its length in tokens."""
    counts = np.zeros(0x110000, dtype=np.int64)  # Unicode's code points
    for codes in read_codes(corpus, unit):
        chunk_counts = np.bincount(codes)
        counts[: len(chunk_counts)] += chunk_counts
    present = np.flatnonzero(counts)
    if len(present) == 0:
        raise UserError(f"{corpus}: the text is empty")
    if len(present) == 1:
        raise UserError(
            f"{corpus}: the text has one distinct {unit}, {chr(present[0])!r}; "
            "there is nothing to predict"
        )
    byte = unit == ByteVocabulary.unit
    vocabulary = ByteVocabulary() if byte else Vocabulary(map(chr, present))
    return vocabulary, int(counts.sum())
