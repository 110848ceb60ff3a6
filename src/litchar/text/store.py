"""The token store: a corpus as a memory-mapped array of ids, built once and cached by content."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from litchar.errors import UserError, is_disk_full
from litchar.text.cleaning import rare_line
from litchar.text.corpus import Corpus
from litchar.text.mixture import Mixture, Splitting, arrange
from litchar.text.remembered import cache_dir, file_sha256, known_sha256, make_cache, unwritable
from litchar.text.vocabulary import (
    BOUNDARY,
    REPLACEMENT,
    ByteVocabulary,
    Vocabulary,
    codepoints,
    count_into,
    no_counts,
)

FORMAT = 2  # version of the stores, in their names: a new one leaves older stores alone


@dataclass(frozen=True)
class TokenStore:
    """An encoded corpus.

    Attributes:
        tokens: the ids, one for each character or byte, and a `BOUNDARY` before and after each
            document; memory-mapped, read-only, in `vocabulary.dtype`.
        vocabulary: the corpus's characters, or the byte values.
        fingerprint: the content's identity, `Corpus.fingerprint`.
        changes: what cleaning changed in the text: one line per setting.
        ranges: for a mixture, the (start, stop) of each corpus's part of each split.
    """

    tokens: np.memmap
    vocabulary: Vocabulary
    fingerprint: str
    changes: list[str]
    ranges: dict[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class Encoding:
    """How a corpus becomes tokens; each encoding of a corpus has a store of its own.

    Attributes:
        unit: what a token is, `character` or `byte`.
        document: what a document is: `line`, `file` or None. Empty ones are dropped.
        shuffle: put the documents in a random order, the same for every run.
        splitting: for a mixture, how each of its corpora is split.
    """

    unit: str = "character"
    document: str | None = None
    shuffle: bool = False
    splitting: Splitting | None = None

    @property
    def name(self) -> str:
        """The suffix of its stores' names, after the corpus's fingerprint."""
        order = "shuffled" if self.shuffle else "in-order"
        split = f"-{self.splitting.name}" if self.splitting else ""
        return f"{self.unit}-{self.document}-{order}{split}-{FORMAT}"


def open_store(corpus: Corpus, encoding: Encoding = Encoding()) -> TokenStore:
    """Return the token store of `corpus`, from the cache or built now.

    The corpus is read with bounded memory: once to fingerprint it and, if it is new, once to find
    its characters (once more to report what cleaning changes), once to encode it and once to check
    that it has not changed. A damaged store is rebuilt; if several processes want the same one,
    the first builds it and the others wait.

    Raises:
        UserError: the corpus is empty, has only one distinct character or byte (and no documents),
            or is to be read by character but is not UTF-8.
    """
    fingerprint = corpus.fingerprint()
    if (found := find_store(fingerprint, encoding)) is not None:
        return found  # without a lock: the cache may be another user's and read-only
    place = _place(fingerprint, encoding)
    make_cache(place.parent)
    with FileLock(f"{place}.lock"):
        return _load(place, fingerprint) or _build(corpus, place, fingerprint, encoding)


def find_store(fingerprint: str, encoding: Encoding) -> TokenStore | None:
    """Return the token store of the corpus with this fingerprint if it is in the cache."""
    if not fingerprint.isalnum():  # it may come from a checkpoint: allow no paths
        return None
    return _load(_place(fingerprint, encoding), fingerprint)


def _place(fingerprint: str, encoding: Encoding) -> Path:
    return cache_dir() / "tokens" / f"{fingerprint[:32]}-{encoding.name}"


def _load(place: Path, fingerprint: str) -> TokenStore | None:
    """Return the store at `place`; None if there is none or its checksum does not match."""
    try:
        meta = json.loads((place / "meta.json").read_text())
        if meta.pop("sha256") != _seal(known_sha256(place / "tokens.npy"), meta):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    tokens = np.load(place / "tokens.npy", mmap_mode="r")
    vocabulary = Vocabulary.from_json(meta["vocabulary"])
    ranges = {name: [(start, stop) for start, stop in at] for name, at in meta["ranges"].items()}
    return TokenStore(tokens, vocabulary, fingerprint, meta["changes"], ranges)


def _seal(tokens_sha256: str, meta: dict[str, Any]) -> str:
    """Return a checksum over a store's tokens and metadata."""
    return hashlib.sha256(f"{tokens_sha256}{json.dumps(meta)}".encode()).hexdigest()


def _build(corpus: Corpus, place: Path, fingerprint: str, encoding: Encoding) -> TokenStore:
    """Encode `corpus` into the directory `place`, which appears whole or not at all.

    Raises:
        UserError: the text cannot be encoded, it changed while it was read, or the disk is full.
    """
    draft = place.with_name(f"{place.name}.draft")
    for leftover in (draft, place):  # from a killed process, or damaged
        shutil.rmtree(leftover, ignore_errors=True)
    vocabulary, changes = _scan(corpus, encoding.unit, encoding.document)
    draft.mkdir()
    try:
        ranges: dict[str, list[tuple[int, int]]] = {}
        if not isinstance(corpus, Mixture) or encoding.splitting is None:
            _encode_to(draft / "tokens.npy", corpus, vocabulary, encoding.shuffle)
        else:
            places = [draft / f"{number}.npy" for number in range(len(corpus.corpora))]
            for part, own in zip(places, corpus.corpora, strict=True):
                _encode_to(part, own, vocabulary, encoding.shuffle)
            parts = [np.load(part, mmap_mode="r") for part in places]
            documents = encoding.document is not None
            pieces, ranges = arrange(corpus, parts, encoding.splitting, documents)
            _save(draft / "tokens.npy", vocabulary.dtype, pieces)
            for part in places:
                part.unlink()
        meta = {"vocabulary": vocabulary.to_json(), "changes": changes, "ranges": ranges}
        seal = _seal(file_sha256(draft / "tokens.npy"), meta)
        with open(draft / "meta.json", "w") as file:
            json.dump(meta | {"sha256": seal}, file)
            file.flush()
            os.fsync(file.fileno())
        if corpus.fingerprint() != fingerprint:
            raise UserError(f"{corpus}: the text changed while it was being read; try again")
        os.rename(draft, place)
        tokens = np.load(place / "tokens.npy", mmap_mode="r")
        return TokenStore(tokens, vocabulary, fingerprint, changes, ranges)
    except OSError as error:
        if is_disk_full(error):
            raise unwritable(place.parent, error) from None
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _encode_to(path: Path, corpus: Corpus, vocabulary: Vocabulary, shuffle: bool) -> None:
    """Write the ids of `corpus`, with its documents in a random order if `shuffle` is set."""
    _save(path, vocabulary.dtype, encode_corpus(corpus, vocabulary))
    if shuffle:
        ordered = path.with_name("ordered.npy")
        path.rename(ordered)
        _save(path, vocabulary.dtype, _shuffled(np.load(ordered, mmap_mode="r")))
        ordered.unlink()


def _save(path: Path, dtype: np.dtype, pieces: Iterable[np.ndarray]) -> None:
    """Write a one-dimensional array in the .npy format, piece by piece."""
    header = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype))
    # Not through a memory map, whose pages would count as this process's memory.
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        length = 0
        for piece in pieces:
            file.write(piece.data)
            length += len(piece)
        file.seek(0)  # numpy's header has room for any length
        np.lib.format.write_array_header_1_0(file, header | {"shape": (length,)})
        file.flush()
        os.fsync(file.fileno())


def encode_corpus(corpus: Corpus, vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    """Yield the ids of the corpus in pieces, leaving out what is not in the vocabulary.

    With documents, there is one `BOUNDARY` before the first and one after each; empty documents
    are dropped. The end of a file ends a line.
    """
    pieces = _encode(corpus, vocabulary)
    if vocabulary.document is None:
        yield from pieces
        return
    boundary = np.full(1, BOUNDARY, vocabulary.dtype)
    yield boundary
    ended = True
    for part in corpus.parts(vocabulary.document):
        for ids in chain(_encode(part, vocabulary), [boundary]):
            ends = ids == BOUNDARY
            repeated = ends & np.concatenate(([ended], ends[:-1]))
            ended = ends[-1]
            yield ids[~repeated]


def _encode(corpus: Corpus, vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    for codes in read_codes(corpus, vocabulary.unit):
        ids = vocabulary.lookup(codes)
        if ids.max() == len(vocabulary):
            ids = ids[ids < len(vocabulary)]
        if len(ids):
            yield ids.astype(vocabulary.dtype, copy=False)


def boundaries(tokens: np.ndarray) -> np.ndarray:
    """Return the positions of the document boundaries: (D + 1,) int64 for D documents."""
    step = 1 << 24  # bounds the memory of the comparison
    starts = range(0, len(tokens), step)
    found = [np.flatnonzero(tokens[start : start + step] == BOUNDARY) + start for start in starts]
    return np.concatenate(found)


def has_document(tokens: np.ndarray, edges: np.ndarray, ids: Sequence[int]) -> bool:
    """Return whether one of the documents consists of exactly these ids.

    Args:
        edges: the `boundaries` of `tokens`
    """
    candidates = edges[:-1][np.diff(edges) == len(ids) + 1]
    for place, token in enumerate(ids, 1):
        candidates = candidates[tokens[candidates + place] == token]
    return len(candidates) > 0


def _shuffled(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the documents in a random order, each followed by its boundary.

    The order is the same for all runs, so that they validate on the same documents: it sorts the
    words of the counter-based generator that `data.windows` draws from, with a fixed key.
    """
    tokens = np.asarray(tokens)  # slices of a memory map take five times as long
    ends = boundaries(tokens) + 1
    yield tokens[:1]
    order = np.argsort(np.random.Philox(key=0).random_raw(len(ends) - 1), kind="stable")
    for document in order:
        yield tokens[ends[document] : ends[document + 1]]


def read_codes(corpus: Corpus, unit: str) -> Iterator[np.ndarray]:
    """Yield the corpus in pieces, as code points or bytes."""
    if unit == ByteVocabulary.unit:
        return (np.frombuffer(chunk, np.uint8) for chunk in corpus.read_bytes())
    return (codepoints(text) for text in corpus.read())


def count_codes(corpus: Corpus, unit: str, document: str | None) -> np.ndarray:
    """Return how often each code point, or byte, occurs: (0x110000,) int64."""
    counts = no_counts()
    for part in corpus.parts(document):
        for codes in read_codes(part, unit):
            count_into(counts, codes)
    return counts


def _scan(corpus: Corpus, unit: str, document: str | None) -> tuple[Vocabulary, list[str]]:
    """Return the vocabulary of `corpus`, and a report of what cleaning changes in it."""
    changes = corpus.changes(document)
    counts = count_codes(corpus, unit, document)
    if document == "line":
        counts[ord("\n")] = 0  # becomes the boundary
    rare = np.where(counts < corpus.min_count, counts, 0)
    if corpus.min_count > 1:
        changes.append(rare_line(corpus.min_count, rare))
    counts -= rare
    counts[ord(REPLACEMENT)] += rare.sum()
    present = np.flatnonzero(counts)
    if len(present) == 0:
        raise UserError(f"{corpus}: the text is empty")
    if len(present) == 1 and document is None:
        raise UserError(
            f"{corpus}: the text has one distinct {unit}, {chr(present[0])!r}; "
            "there is nothing to predict"
        )
    if unit == ByteVocabulary.unit:
        return ByteVocabulary(document), changes
    return Vocabulary(map(chr, present), document, replaces=bool(rare.any())), changes
