"""Cleaning: what is done to the characters of a text before it is encoded, and what changed."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import numpy as np

from litchar.errors import UserError
from litchar.text.corpus import Corpus
from litchar.text.vocabulary import REPLACEMENT, codepoints, count_into, describe, no_counts

FORMS = ("NFC", "NFKC")
MOST_NAMED = 5  # characters in a line
SIGMA = "Σ"  # GREEK CAPITAL LETTER SIGMA
Step = Callable[[str], str]


@dataclass(frozen=True)
class Cleaning:
    """What is done to a text, in this order. None is nothing, as `conf/data` has it.

    Attributes:
        normalize: a Unicode normal form: `NFC` composes characters, `NFKC` also replaces variants
            such as ligatures and full-width letters (Unicode Standard Annex 15). False: none.
        lowercase: make all letters small.
        min_count: characters that a whole text has less often become `REPLACEMENT`.

    Raises:
        UserError: a setting is unfit.
    """

    normalize: str | bool | None = None
    lowercase: bool | None = None
    min_count: int | None = None

    def __post_init__(self) -> None:
        if self.normalize not in (*FORMS, None, False):
            raise UserError(f"data.normalize={self.normalize}: there are {', '.join(FORMS)}, null")
        if not isinstance(self.lowercase, bool | None):
            raise UserError(f"data.lowercase={self.lowercase}: must be true or false")
        if type(self.min_count) not in (int, type(None)) or (self.min_count or 0) < 0:
            raise UserError(f"data.min_count={self.min_count}: must be a whole number from 0 on")

    @classmethod
    def named_in(cls, settings: Mapping[str, Any]) -> "Cleaning":
        """Return the cleaning that a configuration's `data` asks for; older ones ask for none."""
        return cls(**{field.name: settings.get(field.name) for field in fields(cls)})

    @property
    def name(self) -> str:
        """A short name, another one for each cleaning; empty if nothing is done."""
        rare = self.min_count if (self.min_count or 0) > 1 else None
        parts = (self.normalize, self.lowercase and "lower", rare)
        return "-".join(str(part) for part in parts if part)

    def steps(self) -> dict[str, Step]:
        """Return what is done to each piece of a text, by the setting that asks for it."""
        steps: dict[str, Step] = {}
        form = cast(Literal["NFC", "NFKC"] | None, self.normalize or None)  # as was checked
        if form:
            steps[f"data.normalize={form}"] = lambda text: unicodedata.normalize(form, text)
        if self.lowercase:
            # A small letter may compose with what follows it where the capital did not.
            steps["data.lowercase=true"] = (
                (lambda text: unicodedata.normalize(form, text.lower())) if form else str.lower
            )
        return steps

    def of(self, corpus: Corpus) -> Corpus:
        """Return the corpus, cleaned."""
        return Cleaned(corpus, self) if self.name else corpus

    def __call__(self, text: str) -> str:
        """Return a whole text, such as a prompt, with its characters normalised and lowercase."""
        return "".join(self.read([text]))

    def read(self, pieces: Iterable[str], changes: "Changes | None" = None) -> Iterator[str]:
        """Yield the pieces of a text, normalised and lowercase: as the whole text would be.

        Args:
            changes: is told what changed.
        """
        steps = self.steps()
        for piece in whole_characters(pieces) if steps else pieces:
            for setting, step in steps.items():
                before, piece = piece, step(piece)
                if changes is not None:
                    changes.add(setting, before, piece)
            yield piece


class Cleaned(Corpus):
    """A corpus, normalised and lowercase; and the store replaces what is too rare in it."""

    def __init__(self, corpus: Corpus, cleaning: Cleaning) -> None:
        super().__init__(corpus.paths, corpus.field, corpus.column)
        self.corpus = corpus
        self.cleaning = cleaning
        self.min_count = cleaning.min_count or 0

    def __repr__(self) -> str:
        return repr(self.corpus)

    def fingerprint(self) -> str:
        """Return the corpus's identity together with that of the cleaning."""
        identity = f"{self.corpus.fingerprint()}\0{self.cleaning.name}"
        return hashlib.sha256(identity.encode()).hexdigest()

    def parts(self, document: str | None) -> Iterator[Corpus]:
        """Yield what is read, and cleaned, by itself."""
        return (Cleaned(part, self.cleaning) for part in self.corpus.parts(document))

    def read(self) -> Iterator[str]:
        """Yield the cleaned text in pieces."""
        return self.cleaning.read(self.corpus.read())

    def changes(self, document: str | None) -> list[str]:
        """Read the text, and return a line for each setting that says what it changes."""
        if not self.cleaning.steps():
            return []  # what is too rare, the store counts
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
        """Count the characters that `setting` took away and put there."""
        counts = self.counts[setting]
        if before != after:
            count_into(counts, codepoints(before), -1)
            count_into(counts, codepoints(after))

    def lines(self) -> list[str]:
        """Return a line for each setting: how many characters it changed, and which most often."""
        return [
            f"{setting}: {_count(-counts.clip(max=0), 'changed')}"
            for setting, counts in self.counts.items()
        ]


def rare_line(min_count: int, counts: np.ndarray) -> str:
    """Return a line for the characters that are too rare.

    Args:
        counts: how often each of them stands in the text, by code point: (n,)
    """
    return f"data.min_count={min_count}: {_count(counts, f'became U+{ord(REPLACEMENT):04X}')}"


def _count(counts: np.ndarray, what: str) -> str:
    kinds = np.flatnonzero(counts)
    if len(kinds) == 0:
        return "no character to change"
    often = kinds[np.argsort(-counts[kinds], kind="stable")]
    shown = often[:MOST_NAMED].tolist()
    named = [f"{describe(chr(kind))} {_times(counts[kind])}" for kind in shown]
    more = [f"and {len(kinds) - MOST_NAMED} more"] if len(kinds) > MOST_NAMED else []
    return f"{counts.sum():,} characters of {len(kinds):,} kinds {what}: {', '.join(named + more)}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def whole_characters(pieces: Iterable[str]) -> Iterator[str]:
    """Yield a text in pieces that can be normalised and lowercased one by one.

    What follows may change the end of a piece: a mark composes with the letter before it, and the
    capital sigma becomes another small letter at the end of a word. So each piece is cut at the
    last place where neither can be, and what is behind that is put before the next piece.
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
    """Return whether a character neither composes with one before it, nor is or is passed over by
    the rule for the sigma at the end of a word (Unicode Standard, section 3.13)."""
    if character.isascii():
        return character not in _PASSED_OVER
    first = unicodedata.normalize("NFKD", character)[0]
    return (
        not {unicodedata.category(character), unicodedata.category(first)} & _DEPENDENT
        and not "\u1160" <= first <= "\u11ff"  # vowels and ends of Hangul syllables
        and character != SIGMA
    )


_PASSED_OVER = "'.:^`"
# Marks, modifiers, format characters, and punctuation, some of which is passed over.
_DEPENDENT = {"Mn", "Mc", "Me", "Lm", "Sk", "Cf", "Po", "Pi", "Pf"}
