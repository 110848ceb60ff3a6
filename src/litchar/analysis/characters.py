"""The characters of a text: names and labels, oddities and lookalikes."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

import numpy as np

from litchar.text import TokenStore, Vocabulary

NAMES = {  # of control codes, which Unicode leaves unnamed
    "\0": "NULL",
    "\b": "BACKSPACE",
    "\t": "TAB",
    "\n": "LINE FEED",
    "\v": "VERTICAL TAB",
    "\f": "FORM FEED",
    "\r": "CARRIAGE RETURN",
    "\x1b": "ESCAPE",
    "\x7f": "DELETE",
    "\x85": "NEXT LINE",
}
SCRIPTS = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "CHEROKEE", "COPTIC")  # with lookalike letters
SIGNS = {  # ASCII punctuation and its lookalikes
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d",
    "'": "\u2018\u2019\u201a\u201b\u02b9\u02bb\u02bc\u02bd\u02c8\u2032\u00b4\uff40\uff07",
    '"': "\u201c\u201d\u201e\u201f\u2033\uff02",
    ".": "\u2024\u3002\uff0e",
    ",": "\u060c\uff0c",
    ":": "\u2236\uff1a\u02d0",
    ";": "\u037e\uff1b",
    "!": "\u01c3\uff01",
    "*": "\u2217\uff0a",
    "/": "\u2215\u2044\uff0f",
    "|": "\u01c0\u2223\uff5c",
    "~": "\u223c\uff5e\u02dc",
}
LIKE_SIGNS = {alike: sign for sign, all_alike in SIGNS.items() for alike in all_alike}
MOST_WORDS = 100_000  # occurrences of mixed-script words that are counted
LONGEST_WORD = 100  # in characters; a longer one is split


def name_of(character: str, unit: str = Vocabulary.unit) -> str:
    """Return a character's Unicode name, or a byte's number."""
    if not character:
        return "boundary between files"
    if unit != Vocabulary.unit:
        return f"byte 0x{ord(character):02X}"
    code = f"U+{ord(character):04X}"
    return NAMES.get(character, "") or unicodedata.name(character, code)


def label_of(character: str, unit: str = Vocabulary.unit) -> str:
    """Return a visible label for a character: the character itself if it has ink.

    A space is `␣`, a line end `\\n`; any other invisible character is shown as its hex code, and a
    combining mark on a dotted circle.
    """
    if not character:
        return "end"  # the boundary between files
    if character in _VISIBLE:
        return _VISIBLE[character]
    if unit != Vocabulary.unit and not character.isascii():
        return f"0x{ord(character):02X}"
    category = unicodedata.category(character)
    if category in ("Mn", "Me"):
        return f"◌{character}"
    if category[0] in "CZ":
        return f"0x{ord(character):02X}" if unit != Vocabulary.unit else f"U+{ord(character):04X}"
    return character


def kind_of(character: str, unit: str = Vocabulary.unit) -> str:
    """Return a character's kind: a letter, a digit, punctuation, a mark, a space, or other; or that
    it is a byte which is no character."""
    if not character:
        return "boundary"
    if unit != Vocabulary.unit and not character.isascii():
        return "byte"
    if character.isupper() or character.islower():
        return "small letter" if character.islower() else "capital letter"
    return {"L": "letter", "N": "digit", "P": "punctuation", "M": "mark", "Z": "space"}.get(
        unicodedata.category(character)[0], "space" if character.isspace() else "other"
    )


_VISIBLE = {" ": "␣", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def oddity(character: str) -> str | None:
    """Return what is odd about a character; None if nothing is."""
    if character in "\n\t ":  # or "", the boundary between files
        return None
    category = unicodedata.category(character)
    if character == "\ufffd":
        return "stands for what could not be read, or was rare (data.min_count)"
    kind = {
        "Cc": "control code",
        "Cf": "invisible",
        "Co": "private use",
        "Cn": "not assigned",
        "Cs": "half a character",
        "Zs": "unusual space",
        "Zl": "unusual line end",
        "Zp": "unusual line end",
        "Mn": "combines with the previous one; data.normalize=NFC may compose them",
        "Me": "combines with the previous one",
    }.get(category)
    if kind is not None:
        return kind
    if character in LIKE_SIGNS:
        return f"looks like {LIKE_SIGNS[character]}"
    if unicodedata.normalize("NFC", character) != character:
        return "data.normalize=NFC replaces it"
    if unicodedata.normalize("NFKC", character) != character:
        return "data.normalize=NFKC replaces it"
    return None


def script_of(character: str) -> int:
    """Return the place of a letter's script in `SCRIPTS`, from 1 on; 0 for anything else."""
    if not character.isalpha():
        return 0
    first = unicodedata.name(character, "").partition(" ")[0]
    return SCRIPTS.index(first) + 1 if first in SCRIPTS else 0


def mixed_words(store: TokenStore, chunk: int = 1 << 20) -> Counter[str]:
    """Return the words that mix letters of several `SCRIPTS`, and how often each occurs."""
    scripts = np.array([script_of(c) for c in store.vocabulary.symbols], np.uint8)
    words: Counter[str] = Counter()
    if len(set(scripts[scripts > 0].tolist())) < 2:
        return words
    tokens, end, looked_at = store.tokens, 0, 0
    for start in range(0, len(tokens) - 1, chunk):
        here = scripts[tokens[start : start + chunk + 1]]
        a, b = here[:-1], here[1:]
        for place in (start + np.flatnonzero((a != b) & (a > 0) & (b > 0))).tolist():
            if place < end:
                continue  # within the previous word
            first, before = place, max(end, place - LONGEST_WORD // 2)
            while first > before and scripts[tokens[first - 1]]:
                first -= 1
            end = place + 1
            while end < len(tokens) and scripts[tokens[end]] and end - first < LONGEST_WORD:
                end += 1
            words[store.vocabulary.decode(tokens[first:end])] += 1
            looked_at += 1
            if looked_at == MOST_WORDS:
                return words
    return words


def foreign_letters(word: str) -> str:
    """Return the distinct letters of a mixed word outside its main script, sorted."""
    letters = Counter(filter(None, map(script_of, word)))
    main = max(letters, key=lambda script: (letters[script], -script))
    return "".join(sorted({c for c in word if script_of(c) not in (0, main)}))


def count_line_ends(chunks: Iterable[bytes]) -> dict[str, int]:
    """Return how often `\\n`, `\\r\\n` and lone `\\r` occur in a text that is given in chunks."""
    lf = cr = crlf = 0
    before = b""
    for chunk in chunks:
        lf += chunk.count(b"\n")
        cr += chunk.count(b"\r")
        crlf += chunk.count(b"\r\n") + (before == b"\r" and chunk[:1] == b"\n")
        before = chunk[-1:]
    return {"\\n": lf - crlf, "\\r\\n": crlf, "\\r": cr - crlf}
