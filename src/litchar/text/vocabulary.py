"""Vocabularies: the mapping between characters, or bytes, and token ids."""

import codecs
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from litchar.errors import UserError

DOCUMENTS = (None, "line", "file")  # no documents, one per line, or one per file
REPLACEMENT = "\ufffd"  # REPLACEMENT CHARACTER, which stands for rare characters
BOUNDARY = 0  # the id of the document boundary, in vocabularies that have one
BOUNDARY_TOKEN = "<|endoftext|>"  # its name where it stands for no character but needs one


class Vocabulary:
    """The sorted distinct characters of a text; a character's id is its index.

    `encode` and `decode` are exact inverses for every text made of these characters.

    With documents, there is one more symbol, with the id `BOUNDARY`, before and after each
    document. If documents are lines, it takes the place of the newline; if they are files, it
    stands for none of their characters. It decodes to a newline.

    Args:
        characters: the characters of the vocabulary; repeats and order do not matter.
        document: what a document is, see `DOCUMENTS`.
        replaces: add `REPLACEMENT`, to stand for every character outside the vocabulary.

    Raises:
        UserError: there are no characters.
    """

    unit = "character"  # what a token is
    _code: np.dtype = np.dtype("<u4")  # a token's code is its code point
    # A lone surrogate is not valid text, but a command line may hold one: let it through.
    _encoding = ("utf-32-le", "surrogatepass")  # of the codes, as bytes

    def __init__(
        self, characters: Iterable[str], document: str | None = None, replaces: bool = False
    ) -> None:
        if document not in DOCUMENTS:
            raise ValueError(f"document={document}")
        self.document = document
        self._line_end = "\n" if document == "line" else ""
        characters = {*characters, REPLACEMENT} if replaces else set(characters)
        self.characters = "".join(sorted(characters - set(self._line_end)))
        if not self.characters:
            raise UserError("a vocabulary needs at least one character, and the text has none")
        boundary = "\n" if document else ""
        self._codes = codepoints(boundary + self.characters).astype(self._code)
        # Code points outside the vocabulary, or beyond the table (`clip`), get the id
        # `len(self)`.
        self._ids = np.full(int(self._codes.max()) + 2, len(self), np.min_scalar_type(len(self)))
        self._ids[self._codes[len(boundary) :]] = np.arange(len(boundary), len(self))
        if self._line_end:
            self._ids[ord(self._line_end)] = BOUNDARY
        self.replaces = replaces
        if replaces:
            self._ids[self._ids == len(self)] = self._ids[ord(REPLACEMENT)]

    def __len__(self) -> int:
        return len(self._codes)

    def __contains__(self, character: str) -> bool:
        return character in self.characters

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.characters)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.characters!r})"

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(len(self) - 1)

    @cached_property
    def symbols(self) -> list[str]:
        """The character that each id stands for; an empty string for the boundary between files."""
        return [self._line_end] * (self.document is not None) + list(self.characters)

    @property
    def sizes(self) -> np.ndarray:
        """How many characters and UTF-8 bytes of text each id stands for: (V, 2) int64."""
        lengths = 1 + np.searchsorted((0x80, 0x800, 0x10000), self._codes, side="right")
        return np.stack((np.ones_like(lengths), lengths), axis=1)

    def codes(self, text: str) -> np.ndarray:
        """Return the code points of `text`, which `lookup` maps to ids."""
        return codepoints(text)

    def lookup(self, codes: np.ndarray) -> np.ndarray:
        """Return the ids of code points; `len(self)` for those outside the vocabulary."""
        return np.take(self._ids, codes, mode="clip")

    def encode(self, text: str, unknown: str = "error") -> np.ndarray:
        """Return the ids of `text`, one for each token, in `self.dtype`.

        Args:
            unknown: what to do about characters outside the vocabulary: `error` (where rare ones
                were replaced in training, replace them as well), `skip` them, or replace them with
                this character of the vocabulary.

        Raises:
            UserError: the text has such characters and `unknown` is `error`; or the replacement is
                itself outside the vocabulary.
        """
        codes = self.codes(text)
        ids = self.lookup(codes)
        outside = ids == len(self)
        if self.replaces and unknown != "error":  # another way was asked for
            outside = (ids == self._ids[ord(REPLACEMENT)]) & (codes != ord(REPLACEMENT))
        if outside.any():
            if unknown == "skip":
                ids = ids[~outside]
            elif unknown in self and len(unknown) == 1:
                ids[outside] = self.lookup(self.codes(unknown))
            elif unknown == "error":
                raise UserError(
                    f"the model never saw {describe(self.unknown(text))}; "
                    "leave such characters out with unknown=skip, or replace them: unknown=?"
                )
            else:
                raise UserError(
                    f"unknown={unknown}: must be error, skip, or one character that the model knows"
                )
        return ids.astype(self.dtype, copy=False)

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """Return the text that `ids` stand for.

        Raises:
            IndexError: an id is not in the vocabulary.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and ids.min() < 0:  # numpy would count from the end
            raise IndexError(f"id {ids.min()} is not in a vocabulary of {len(self)} {self.unit}s")
        codes: np.ndarray = self._codes[ids]
        return codes.tobytes().decode(*self._encoding)

    def to_bytes(self, ids: np.ndarray) -> bytes:
        """Return the text that `ids` stand for as UTF-8, or as it is if tokens are bytes."""
        return self.decode(ids).encode()

    def decoder(self) -> "Decoder":
        """Return an incremental decoder for a stream of ids."""
        return Decoder(self._codes, *self._encoding)

    def unknown(self, text: str) -> str:
        """Return the distinct characters of `text` that are outside the vocabulary, sorted."""
        return "" if self.replaces else "".join(sorted(set(text) - set(self.symbols)))

    def to_json(self) -> dict[str, Any]:
        """Return the vocabulary as plain data, for a checkpoint or a JSON file."""
        # A list: in a single string, JSON would join surrogates.
        replaces = {"replaces": True} if self.replaces else {}
        return {"characters": list(self.characters)} | replaces | self._document_json()

    def _document_json(self) -> dict[str, str]:
        return {"document": self.document} if self.document else {}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Vocabulary":
        """Return the vocabulary that `to_json` saved."""
        if data.get("unit") == ByteVocabulary.unit:
            return ByteVocabulary(data.get("document"))
        replaces = data.get("replaces") is True
        return Vocabulary(data["characters"], data.get("document"), replaces)


class Decoder:
    """Incremental decoder for a stream of ids.

    Args:
        codes: the code of each id, in `encoding`.
        errors: how to handle invalid codes, as in `bytes.decode`.
    """

    def __init__(self, codes: np.ndarray, encoding: str, errors: str) -> None:
        self._codes = codes
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)

    def __call__(self, ids: np.ndarray | Sequence[int], final: bool = False) -> str:
        """Return the text that `ids` complete; with `final`, incomplete characters as well."""
        codes: np.ndarray = self._codes[np.asarray(ids, dtype=np.int64)]
        return self._decoder.decode(codes.tobytes(), final)

    @property
    def pending(self) -> bool:
        """Whether the last id belongs to a character that is not complete yet."""
        return bool(self._decoder.getstate()[0])


class ByteVocabulary(Vocabulary):
    """The 256 byte values in order, which cover UTF-8 text and any other file.

    `encode` works on a text's UTF-8 bytes, so no character is unknown. `decode` shows invalid
    UTF-8 as U+FFFD, so it is the inverse for valid text only. In `characters`, byte b is the
    character with code point b.
    """

    unit = "byte"
    _code = np.dtype(np.uint8)
    _encoding = ("utf-8", "replace")

    def __init__(self, document: str | None = None) -> None:
        super().__init__(map(chr, range(256)), document)

    def __repr__(self) -> str:
        return f"ByteVocabulary({self.document!r})"

    @property
    def sizes(self) -> np.ndarray:
        """As for characters; each character is counted at its first byte."""
        begins = (self._codes & 0xC0) != 0x80
        return np.stack((begins, np.ones_like(begins)), axis=1).astype(np.int64)

    def codes(self, text: str) -> np.ndarray:
        """Return the UTF-8 bytes of `text`; surrogate escapes (U+DC80 to U+DCFF), as which Python
        reads undecodable bytes of a command line, become those bytes.

        Raises:
            UserError: the text has any other surrogate, which UTF-8 cannot encode.
        """
        try:
            return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
        except UnicodeEncodeError as error:
            wrong = text[error.start]
            raise UserError(f"{wrong!r} is not a character: UTF-8 cannot encode it") from None

    def to_bytes(self, ids: np.ndarray) -> bytes:
        """Return the bytes that `ids` stand for."""
        codes: np.ndarray = self._codes[ids]
        return codes.tobytes()

    def unknown(self, text: str) -> str:
        """Return an empty string: every character is made of bytes."""
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return the vocabulary as plain data, for a checkpoint or a JSON file."""
        return {"unit": self.unit} | self._document_json()


UNITS = (Vocabulary.unit, ByteVocabulary.unit)


def codepoints(text: str) -> np.ndarray:
    """Return the Unicode code points of `text`: uint8 if all are ASCII, else uint32."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode(*Vocabulary._encoding), Vocabulary._code)


def no_counts() -> np.ndarray:
    """Return a count of zero for every Unicode code point: (0x110000,) int64."""
    return np.zeros(0x110000, dtype=np.int64)


def count_into(counts: np.ndarray, codes: np.ndarray, sign: int = 1) -> None:
    """Add how often each code point occurs in `codes` to `counts`, or subtract it (`sign=-1`)."""
    if len(codes) < 4096:  # short documents: bincount's cost grows with the largest code
        np.add.at(counts, codes, sign)
        return
    found = np.bincount(codes)
    counts[: len(found)] += sign * found


def describe(characters: str, most: int = 8) -> str:
    """Name characters for a message: `'é' (LATIN SMALL LETTER E WITH ACUTE), '\\t' (U+0009)`."""
    named = [
        f"{character!r} ({unicodedata.name(character, f'U+{ord(character):04X}')})"
        for character in characters[:most]
    ]
    if len(characters) > most:
        named.append(f"and {len(characters) - most} more")
    return ", ".join(named)


def printable(text: str) -> str:
    """Return `text` with control and format characters, which could steer a terminal, escaped.

    Spaces of every width are kept, and so are the joiners used in Persian, Hindi and emoji.
    """
    return "".join(c if _is_shown(c) else f"\\x{ord(c):02x}" for c in text)


def _is_shown(c: str) -> bool:
    return c.isprintable() or c in "\n\t\u200c\u200d" or unicodedata.category(c) == "Zs"
