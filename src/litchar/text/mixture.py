"""Several corpora as one: with one vocabulary, each split by itself, and mixed by weight."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from litchar.errors import UserError, is_number
from litchar.text.cleaning import Cleaning
from litchar.text.corpus import Corpus

Bounds = Mapping[str, tuple[int, int]]  # of each split: where it begins and ends
ENTRY = ("path", "weight", "name", "pattern", "field", "column")


class Mixture(Corpus):
    """Several corpora, read one after the other.

    Args:
        corpora: what is mixed.
        cleaning: done to the characters of each; what is rare is so in all together.
    """

    def __init__(self, corpora: Sequence[Corpus], cleaning: Cleaning) -> None:
        super().__init__([path for corpus in corpora for path in corpus.paths])
        self._uncleaned = corpora
        self.cleaning = cleaning
        self.corpora = [cleaning.of(corpus) for corpus in corpora]
        self.min_count = cleaning.min_count or 0

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.corpora))

    def fingerprint(self) -> str:
        """Return the identity of the corpora, in their order."""
        identity = "\0".join(corpus.fingerprint() for corpus in self.corpora)
        return hashlib.sha256(f"mixture\0{identity}".encode()).hexdigest()

    def parts(self, document: str | None) -> Iterator[Corpus]:
        """Yield what is read by itself."""
        return chain.from_iterable(corpus.parts(document) for corpus in self.corpora)

    def read(self) -> Iterator[str]:
        """Yield the text in pieces."""
        return chain.from_iterable(corpus.read() for corpus in self.corpora)

    def read_bytes(self) -> Iterator[bytes]:
        """Yield the bytes in pieces."""
        return chain.from_iterable(corpus.read_bytes() for corpus in self.corpora)

    def changes(self, document: str | None) -> list[str]:
        """Return what cleaning changes in all of them together."""
        if not self.cleaning.name:
            return []
        return self.cleaning.of(Mixture(self._uncleaned, Cleaning())).changes(document)


@dataclass(frozen=True)
class Splitting:
    """How each corpus of a mixture is split.

    Attributes:
        name: another one for each way.
        bounds: from a corpus's tokens to where its splits lie.
    """

    name: str
    bounds: Callable[[np.ndarray], Bounds]


def arrange(
    mixture: Mixture, corpora: Sequence[np.ndarray], splitting: Splitting, documents: bool
) -> tuple[Iterator[np.ndarray], dict[str, list[tuple[int, int]]]]:
    """Return the tokens of a mixture in the order of a text that is split: the training splits of
    all corpora, then their validation splits, then their test splits.

    So a mixture's splits are contiguous, as those of any text are. One boundary stands between
    documents of two corpora, which ends the one and begins the other.

    Args:
        corpora: the tokens of each.
        documents: they have boundaries.

    Returns:
        the tokens in pieces, and where the part of each corpus lies in each split.

    Raises:
        UserError: one of them cannot be split, and the message says which.
    """
    bounds = []
    for corpus, tokens in zip(mixture.corpora, corpora, strict=True):
        try:
            bounds.append(splitting.bounds(tokens))
        except UserError as error:
            raise UserError(f"{corpus}: {error}") from None
    shared = int(documents)
    pieces: list[np.ndarray] = []
    ranges: dict[str, list[tuple[int, int]]] = {}
    end = 0
    for split in bounds[0]:
        ranges[split] = []
        for tokens, bound in zip(corpora, bounds, strict=True):
            start, stop = bound[split]
            piece = tokens[start + shared if pieces else start : stop]
            ranges[split].append((end - shared if pieces else end, end + len(piece)))
            pieces.append(piece)
            end += len(piece)
    return iter(pieces), ranges


def read_mixture(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the weight of each corpus of `data.mixture` by its name; weights sum to 1.

    A corpus is called what its `name` says, or as its path ends.

    Raises:
        UserError: an entry is malformed, and the message says which.
    """
    weights: dict[str, float] = {}
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise UserError(
            f"data.mixture={entries}: is a list: [{{path: a.txt, weight: 2}}, {{path: b.txt}}]"
        )
    for number, entry in enumerate(entries):
        place = f"data.mixture[{number}]"
        if not isinstance(entry, Mapping) or entry.get("path") is None:
            raise UserError(f"{place}: names no path; write {{path: FILE, weight: 1}}")
        if unknown := [key for key in entry if key not in ENTRY]:
            raise UserError(f"{place}: there is no {unknown[0]}; there are {', '.join(ENTRY)}")
        for key in ("pattern", "field", "column"):
            if entry.get(key) is not None and not isinstance(entry[key], str):
                raise UserError(f"{place}: {key}={entry[key]} must be a text, in quotes")
        weight = entry.get("weight", 1)
        if not is_number(weight) or not 0 < weight < 1e9:
            raise UserError(f"{place}: weight={weight} must be a number above 0")
        name = str(entry.get("name") or str(entry["path"]).rstrip("/").rpartition("/")[2])
        name = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
        if name == "all":
            raise UserError(
                f"{place}: all is what all texts together are called; give it a name: "
                "{name: other}"
            )
        if name in weights:
            raise UserError(f"{place}: {name} is there already; give it a name: {{name: other}}")
        weights[name] = float(weight)
    if len(weights) < 2:
        raise UserError("data.mixture: takes two corpora or more; for one, set data.path")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
