"""Cleaning: edits to a text's characters before it is encoded, and a report of the changes."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import numpy as np

from litchar.errors import UserError, check_flag, check_integer
from litchar.text.corpus import Corpus
from litchar.text.vocabulary import REPLACEMENT, codepoints, count_into, describe, no_counts

FORMS = ("NFC", "NFKC")
MOST_NAMED = 5  # characters in a line of the report
SIGMA = "Σ"  # GREEK CAPITAL LETTER SIGMA
Step = Callable[[str], str]


@dataclass(frozen=True)
class Cleaning:
    """The cleaning of a text, in this order. A setting of None (null in `conf/data`) is off.

    Attributes:
        normalize: a Unicode normal form: `NFC` composes characters, `NFKC` also replaces variants
            such as ligatures and full-width letters (Unicode Standard Annex 15). False: none.
        lowercase: convert the text to lowercase.
        min_count: characters that occur fewer times in the whole text become `REPLACEMENT`.

    Raises:
        UserError: a setting is invalid.
    """

    normalize: str | bool | None = None
    lowercase: bool | None = None
    min_count: int | None = None

    def __post_init__(self) -> None:
        if self.normalize not in (*FORMS, None, False):
            raise UserError(f"data.normalize={self.normalize}: must be {', '.join(FORMS)} or null")
        if self.lowercase is not None:
            check_flag("data.lowercase", self.lowercase)
        if self.min_count is not None:
            check_integer("data.min_count", self.min_count, 0)

    @classmethod
    def named_in(cls, settings: Mapping[str, Any]) -> "Cleaning":
        """Return the cleaning set in a configuration's `data`; keys missing in old ones are off."""
        return cls(**{field.name: settings.get(field.name) for field in fields(cls)})

    @property
    def name(self) -> str:
        """A short name, unique to each cleaning; empty if nothing is done."""
        rare = self.min_count if (self.min_count or 0) > 1 else None
        parts = (self.normalize, self.lowercase and "lower", rare)
        return "-".join(str(part) for part in parts if part)

    def steps(self) -> dict[str, Step]:
        """Return the functions that clean each piece of a text, by the setting that asks for it."""
        steps: dict[str, Step] = {}
        form = cast(Literal["NFC", "NFKC"] | None, self.normalize or None)  # checked on init
        if form:
            steps[f"data.normalize={form}"] = lambda text: unicodedata.normalize(form, text)
        if self.lowercase:
            # A lowercase letter may compose with what follows where its capital did not.
            steps["data.lowercase=true"] = (
                (lambda text: unicodedata.normalize(form, text.lower())) if form else str.lower
            )
        return steps

    def of(self, corpus: Corpus) -> Corpus:
        """Return the corpus, cleaned."""
        return Cleaned(corpus, self) if self.name else corpus

    def __call__(self, text: str) -> str:
        """Return a whole text, such as a prompt, normalised and lowercased."""
        return "".join(self.read([text]))

    def read(self, pieces: Iterable[str], changes: "Changes | None" = None) -> Iterator[str]:
        """Yield the pieces of a text normalised and lowercased as if it were one string.

        Args:
            changes: counts what changed.
        """
        steps = self.steps()
        for piece in whole_characters(pieces) if steps else pieces:
            for setting, step in steps.items():
                before, piece = piece, step(piece)
                if changes is not None:
                    changes.add(setting, before, piece)
            yield piece


class Cleaned(Corpus):
    """A corpus, normalised and lowercased; its rare characters are replaced by the store."""

    def __init__(self, corpus: Corpus, cleaning: Cleaning) -> None:
        super().__init__(corpus.paths, corpus.field, corpus.column)
        self.corpus = corpus
        self.cleaning = cleaning
        self.min_count = cleaning.min_count or 0

    def __repr__(self) -> str:
        return repr(self.corpus)

    def fingerprint(self) -> str:
        """Return a hash of the corpus's identity and the cleaning."""
        identity = f"{self.corpus.fingerprint()}\0{self.cleaning.name}"
        return hashlib.sha256(identity.encode()).hexdigest()

    def parts(self, document: str | None) -> Iterator[Corpus]:
        """Yield the parts that are read and cleaned independently."""
        return (Cleaned(part, self.cleaning) for part in self.corpus.parts(document))

    def read(self) -> Iterator[str]:
        """Yield the cleaned text in pieces."""
        return self.cleaning.read(self.corpus.read())

    def changes(self, document: str | None) -> list[str]:
        """Read the text and return one line per setting that says what it changes."""
        if not self.cleaning.steps():
            return []  # the store counts rare characters
        changes = Changes()
        for part in self.corpus.parts(document):
            for _ in self.cleaning.read(part.read(), changes):
                pass
        return changes.lines()


class Changes:
    """Counts what cleaning changes in a text."""

    def __init__(self) -> None:
        self.counts: dict[str, np.ndarray] = defaultdict(no_counts)

    def add(self, setting: str, before: str, after: str) -> None:
        """Count the characters that `setting` removed and added, or else those that it moved."""
        counts = self.counts[setting]
        if before == after:
            return
        old, new = codepoints(before), codepoints(after)
        if len(old) == len(new):
            differ = old != new  # few, and the others cancel out
            old, new = old[differ], new[differ]
            if np.array_equal(np.sort(old), np.sort(new)):  # combining marks in another order
                new = new[:0]
        count_into(counts, old, -1)
        count_into(counts, new)

    def lines(self) -> list[str]:
        """Return one line per setting: how many characters it changed, and the most frequent."""
        return [
            f"{setting}: {_count(-counts.clip(max=0), 'changed')}"
            for setting, counts in self.counts.items()
        ]


def rare_line(min_count: int, counts: np.ndarray) -> str:
    """Return the report's line for the rare characters that were replaced.

    Args:
        counts: how often each of them occurs in the text, by code point: (n,)
    """
    return f"data.min_count={min_count}: {_count(counts, f'became U+{ord(REPLACEMENT):04X}')}"


def _count(counts: np.ndarray, what: str) -> str:
    kinds = np.flatnonzero(counts)
    if len(kinds) == 0:
        return "no characters to change"
    often = kinds[np.argsort(-counts[kinds], kind="stable")]
    shown = often[:MOST_NAMED].tolist()
    named = [f"{describe(chr(kind))} {_times(counts[kind])}" for kind in shown]
    more = [f"and {len(kinds) - MOST_NAMED} more"] if len(kinds) > MOST_NAMED else []
    return f"{counts.sum():,} characters of {len(kinds):,} kinds {what}: {', '.join(named + more)}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def whole_characters(pieces: Iterable[str]) -> Iterator[str]:
    """Yield a text in pieces that can be normalised and lowercased independently.

    What follows can change the end of a piece: a combining mark composes with the letter before
    it, and capital sigma has another lowercase form at the end of a word. So each piece is cut at
    the last place where neither can happen, and the rest is carried over to the next piece.
    """
    held = ""
    for piece in pieces:
        searched = max(1, len(held))
        held += piece
        cut = next((i for i in range(len(held) - 1, searched - 1, -1) if _is_cut(held, i)), 0)
        if cut:
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _is_cut(text: str, place: int) -> bool:
    """Return whether `text` may be cut before the character at `place`."""
    if not _stands_alone(text[place]):
        return False
    before = place - 1
    while before > 0 and text[before] != SIGMA and not _stands_alone(text[before]):
        before -= 1
    return text[before] != SIGMA


def _stands_alone(character: str) -> bool:
    """Return whether a character neither composes with the one before it, nor is a sigma or skipped
    by the rule for a sigma at the end of a word (Unicode Standard, section 3.13)."""
    if character.isascii():
        return character not in _PASSED_OVER
    first = unicodedata.normalize("NFKD", character)[0]
    return (
        not {unicodedata.category(character), unicodedata.category(first)} & _DEPENDENT
        and not "\u1160" <= first <= "\u11ff"  # vowels and ends of Hangul syllables
        and character != SIGMA
    )


_PASSED_OVER = "'.:^`"
# Marks, modifiers, format characters, and punctuation, some of which the rule skips.
_DEPENDENT = {"Mn", "Mc", "Me", "Lm", "Sk", "Cf", "Po", "Pi", "Pf"}
