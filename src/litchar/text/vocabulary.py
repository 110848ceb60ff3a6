"""The vocabulary: which character, or which byte, has which id."""

import codecs
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from litchar.errors import UserError


class Vocabulary:
    """The sorted distinct characters of a text; a character's id is its place in that order.

    `encode` and `decode` are exact inverses for every text made of these characters.

    Args:
        characters: the characters of the vocabulary; repeats and order do not matter.

    Raises:
        UserError: there are none.
    """

    unit = "character"  # what a token is
    _code = np.dtype("<u4")  # a token's code is its code point
    # A lone surrogate is no valid text, yet a command line may hold one; it passes unharmed.
    _encoding = ("utf-32-le", "surrogatepass")  # of codes

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(characters)))
        if not self.characters:
            raise UserError("a vocabulary needs at least one character, and the text has none")
        self._codes = codepoints(self.characters).astype(self._code)
        # Every code point that is not in the vocabulary, and all beyond the table (`clip`), get
        # the id `len(self)`.
        self._ids = np.full(int(self._codes[-1]) + 2, len(self), np.min_scalar_type(len(self)))
        self._ids[self._codes] = np.arange(len(self))

    def __len__(self) -> int:
        return len(self.characters)

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

    @property
    def sizes(self) -> np.ndarray:
        """How many characters and UTF-8 bytes of text each id stands for: (V, 2) int64."""
        lengths = 1 + np.searchsorted((0x80, 0x800, 0x10000), self._codes, side="right")
        return np.stack((np.ones_like(lengths), lengths), axis=1)

    def codes(self, text: str) -> np.ndarray:
        """Return the code points of `text`, of which `lookup` knows the ids."""
        return codepoints(text)

    def lookup(self, codes: np.ndarray) -> np.ndarray:
        """Return the ids of code points; `len(self)` for those outside the vocabulary."""
        return np.take(self._ids, codes, mode="clip")

    def encode(self, text: str, unknown: str = "error") -> np.ndarray:
        """Return the ids of `text`, one for each token, in `self.dtype`.

        Args:
            unknown: what becomes of characters outside the vocabulary: `error`, `skip` (left out),
                or a replacement character of the vocabulary.

        Raises:
            UserError: the text has such characters and `unknown` is `error`; or the replacement is
                itself outside the vocabulary.
        """
        ids = self.lookup(self.codes(text))
        if ids.size and ids.max() == len(self):
            outside = ids == len(self)
            if unknown == "skip":
                ids = ids[~outside]
            elif unknown in self and len(unknown) == 1:
                ids[outside] = self.characters.index(unknown)
            elif unknown == "error":
                raise UserError(
                    f"the model never saw {describe(self.unknown(text))}; "
                    "leave such characters out with unknown=skip, or replace them: unknown=?"
                )
            else:
                raise UserError(
                    f"unknown={unknown}: give error, skip, or one character that the model knows"
                )
        return ids.astype(self.dtype, copy=False)

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """Return the text whose ids these are.

        Raises:
            IndexError: an id is not in the vocabulary.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and ids.min() < 0:  # numpy would count from the end
            raise IndexError(f"id {ids.min()} is not in a vocabulary of {len(self)} {self.unit}s")
        return self._codes[ids].tobytes().decode(*self._encoding)

    def decoder(self) -> Callable[..., str]:
        """Return a function that decodes a stream of ids piece by piece: `decode(ids)`.

        It returns the text that is complete by then; `decode(ids, final=True)` what is left too.
        """
        decoder = codecs.getincrementaldecoder(self._encoding[0])(self._encoding[1])
        return lambda ids, final=False: decoder.decode(
            self._codes[np.asarray(ids, dtype=np.int64)].tobytes(), final
        )

    def unknown(self, text: str) -> str:
        """Return the distinct characters of `text` that are outside the vocabulary, sorted."""
        return "".join(sorted(set(text) - set(self.characters)))

    def to_json(self) -> dict[str, list[str]]:
        """Return the vocabulary as plain data, for a checkpoint or a JSON file."""
        return {"characters": list(self.characters)}  # JSON would join surrogates in one string

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Vocabulary":
        """Return the vocabulary that `to_json` saved."""
        if data.get("unit") == ByteVocabulary.unit:
            return ByteVocabulary()
        return Vocabulary(data["characters"])


class ByteVocabulary(Vocabulary):
    """The 256 byte values, of which UTF-8 text and every other file is made; a byte is its own id.

    `encode` returns a text's UTF-8 bytes, and so knows every character. `decode` shows bytes that
    are no UTF-8 as U+FFFD, so that it is the inverse for valid text only. In `characters` the
    byte b is the character U+00b.
    """

    unit = "byte"
    _code = np.dtype(np.uint8)
    _encoding = ("utf-8", "replace")

    def __init__(self) -> None:
        super().__init__(map(chr, range(256)))

    def __repr__(self) -> str:
        return "ByteVocabulary()"

    @property
    def sizes(self) -> np.ndarray:
        """As of characters: each character is counted at its first byte."""
        begins = (self._codes & 0xC0) != 0x80
        return np.stack((begins, np.ones_like(begins)), axis=1).astype(np.int64)

    def codes(self, text: str) -> np.ndarray:
        """Return the UTF-8 bytes of `text`; what Python reads undecodable bytes of a command line
        as (U+DC80 to U+DCFF) are those bytes.

        Raises:
            UserError: the text has another surrogate, which no bytes can stand for.
        """
        try:
            return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
        except UnicodeEncodeError as error:
            wrong = text[error.start]
            raise UserError(f"{wrong!r} is no character: UTF-8 has no bytes for it") from None

    def unknown(self, text: str) -> str:
        """Return no character: all are made of bytes."""
        return ""

    def to_json(self) -> dict[str, str]:
        """Return the vocabulary as plain data, for a checkpoint or a JSON file."""
        return {"unit": self.unit}


UNITS = (Vocabulary.unit, ByteVocabulary.unit)


def codepoints(text: str) -> np.ndarray:
    """Return the Unicode code points of `text`: uint8 if all are ASCII, else uint32."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode(*Vocabulary._encoding), Vocabulary._code)


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
    """Return `text` with control characters, which could steer a terminal, made visible."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
