"""Several corpora as one: a shared vocabulary, separate splits, and mixing by weight."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from litchar.errors import UserError, is_number
from litchar.text.cleaning import Cleaning
from litchar.text.corpus import Corpus

Bounds = Mapping[str, tuple[int, int]]  # split -> (start, stop)
ENTRY = ("path", "weight", "name", "pattern", "field", "column")


class Mixture(Corpus):
    """Several corpora, read one after the other.

    Args:
        corpora: the corpora to mix.
        cleaning: applied to each; rare characters are counted over all of them together.
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
        """Return a hash of the identities of the corpora, in order."""
        identity = "\0".join(corpus.fingerprint() for corpus in self.corpora)
        return hashlib.sha256(f"mixture\0{identity}".encode()).hexdigest()

    def parts(self, document: str | None) -> Iterator[Corpus]:
        """Yield the parts that are read independently."""
        return chain.from_iterable(corpus.parts(document) for corpus in self.corpora)

    def read(self) -> Iterator[str]:
        """Yield the text in pieces."""
        return chain.from_iterable(corpus.read() for corpus in self.corpora)

    def read_bytes(self) -> Iterator[bytes]:
        """Yield the bytes in pieces."""
        return chain.from_iterable(corpus.read_bytes() for corpus in self.corpora)

    def changes(self, document: str | None) -> list[str]:
        """Return a report of what cleaning changes in all corpora together."""
        if not self.cleaning.name:
            return []
        return self.cleaning.of(Mixture(self._uncleaned, Cleaning())).changes(document)


@dataclass(frozen=True)
class Splitting:
    """How each corpus of a mixture is split.

    Attributes:
        name: unique to each way of splitting.
        bounds: a function from a corpus's tokens to the bounds of its splits.
    """

    name: str
    bounds: Callable[[np.ndarray], Bounds]


def arrange(
    mixture: Mixture, corpora: Sequence[np.ndarray], splitting: Splitting, documents: bool
) -> tuple[Iterator[np.ndarray], dict[str, list[tuple[int, int]]]]:
    """Return the tokens of a mixture ordered by split: the training splits of all corpora, then
    their validation splits, then their test splits.

    This makes a mixture's splits contiguous, like those of any text. Documents of two adjacent
    corpora share the boundary token between them.

    Args:
        corpora: the tokens of each corpus.
        documents: whether the tokens have document boundaries.

    Returns:
        the tokens in pieces, and for each split the (start, stop) of each corpus's part.

    Raises:
        UserError: a corpus cannot be split; the message says which.
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


def mixture_weights(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the weight of each corpus of `data.mixture` by name; the weights sum to 1.

    A corpus is called by its `name`, or else by the last part of its path.

    Raises:
        UserError: an entry is malformed; the message says which.
    """
    weights: dict[str, float] = {}
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise UserError(
            f"data.mixture={entries}: must be a list: [{{path: a.txt, weight: 2}}, {{path: b.txt}}]"
        )
    for number, entry in enumerate(entries):
        place = f"data.mixture[{number}]"
        if not isinstance(entry, Mapping) or entry.get("path") is None:
            raise UserError(f"{place}: has no path; write {{path: FILE, weight: 1}}")
        if unknown := [key for key in entry if key not in ENTRY]:
            raise UserError(f"{place}: unknown key {unknown[0]}; choose from {', '.join(ENTRY)}")
        for key in ("pattern", "field", "column"):
            if entry.get(key) is not None and not isinstance(entry[key], str):
                raise UserError(f"{place}: {key}={entry[key]} must be text, in quotes")
        weight = entry.get("weight", 1)
        if not is_number(weight) or not 0 < weight < 1e9:
            raise UserError(f"{place}: weight={weight} must be a number above 0")
        name = str(entry.get("name") or str(entry["path"]).rstrip("/").rpartition("/")[2])
        name = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
        if name == "all":
            raise UserError(
                f"{place}: the name all means all texts together; choose another: {{name: other}}"
            )
        if name in weights:
            raise UserError(f"{place}: the name {name} is taken; choose another: {{name: other}}")
        weights[name] = float(weight)
    if len(weights) < 2:
        raise UserError("data.mixture: needs at least two corpora; for one, set data.path")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
