"""The vocabulary: which character has which id."""

import unicodedata
from collections.abc import Iterable

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

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(characters)))
        if not self.characters:
            raise UserError("a vocabulary needs at least one character, and the text has none")
        self._codepoints = codepoints(self.characters).astype(np.uint32)
        # Every code point that is not in the vocabulary, and all beyond the table (`clip`), get
        # the id `len(self)`.
        self._ids = np.full(int(self._codepoints[-1]) + 2, len(self), np.min_scalar_type(len(self)))
        self._ids[self._codepoints] = np.arange(len(self))

    def __len__(self) -> int:
        return len(self.characters)

    def __contains__(self, character: str) -> bool:
        return character in self.characters

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def __repr__(self) -> str:
        return f"Vocabulary({self.characters!r})"

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(len(self) - 1)

    def encode(self, text: str, unknown: str = "error") -> np.ndarray:
        """Return the ids of `text`, one for each character, in `self.dtype`.

        Args:
            unknown: what becomes of characters outside the vocabulary: `error`, `skip` (left out),
                or a replacement character of the vocabulary.

        Raises:
            UserError: the text has such characters and `unknown` is `error`; or the replacement is
                itself outside the vocabulary.
        """
        ids = np.take(self._ids, codepoints(text), mode="clip")
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
            raise IndexError(f"id {ids.min()} is not in a vocabulary of {len(self)} characters")
        return self._codepoints[ids].tobytes().decode(*_UTF32)

    def unknown(self, text: str) -> str:
        """Return the distinct characters of `text` that are outside the vocabulary, sorted."""
        return "".join(sorted(set(text) - set(self.characters)))

    def to_json(self) -> dict[str, list[str]]:
        """Return the vocabulary as plain data, for a checkpoint or a JSON file."""
        return {"characters": list(self.characters)}  # JSON would join surrogates in one string

    @classmethod
    def from_json(cls, data: dict[str, list[str]]) -> "Vocabulary":
        """Return the vocabulary that `to_json` saved."""
        return cls(data["characters"])


# A lone surrogate is no valid text, yet a command line may hold one; it passes through unharmed.
_UTF32 = ("utf-32-le", "surrogatepass")


def codepoints(text: str) -> np.ndarray:
    """Return the Unicode code points of `text`: uint8 if all are ASCII, else uint32."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode(*_UTF32), np.dtype("<u4"))


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
