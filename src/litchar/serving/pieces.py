"""Pieces: what is told of a text while it is written, to a client or a browser."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from litchar.generation.sampling import Step, log_softmax
from litchar.generation.writing import Writing
from litchar.text import Vocabulary
from litchar.text.vocabulary import BOUNDARY_TOKEN


class Token(NamedTuple):
    """A token, and what the model itself said of it, before temperature and the like.

    Attributes:
        id: of the token.
        text: the character; `bytes:\\xNN` for a byte that is none by itself.
        offset: how many characters stand before its own. Bytes of one character share it.
        log_prob: in nats; None for a token that nothing stands before.
        likeliest: the ids that were likeliest in its place, with theirs; None likewise.
    """

    id: int
    text: str
    offset: int
    log_prob: float | None
    likeliest: list[tuple[int, float]] | None


class Piece(NamedTuple):
    """A part of a text.

    Attributes:
        text: what is new.
        tokens: of that.
        n_ids: how many ids were sampled for it, those of a stop string included.
        finish: None, but for the last piece: `end` of the document, `stop`, or `length`.
    """

    text: str
    tokens: list[Token]
    n_ids: int
    finish: str | None


def name_of(vocabulary: Vocabulary, token: int) -> str:
    """Return a token as a text that stands for it."""
    symbol = vocabulary.symbols[token]
    if vocabulary.unit == "byte" and symbol >= "\x80":
        return f"bytes:\\x{ord(symbol):02x}"
    return symbol or BOUNDARY_TOKEN


class Tokens:
    """Tells of the tokens of one text, in turn.

    Args:
        n_likeliest: how many of the likeliest are told.
        offset: how many characters stand before it.
    """

    def __init__(self, vocabulary: Vocabulary, n_likeliest: int, offset: int = 0) -> None:
        self.vocabulary = vocabulary
        self.n_likeliest = n_likeliest
        self.offset = offset
        self._decode = vocabulary.decoder()

    def first(self, token: int) -> Token:
        """Return what is to be told of a token that nothing stands before."""
        return self._tell(token, None, None)

    def next(self, step: Step) -> Token:
        """Return what is to be told of a step of one text."""
        log_probs = log_softmax(step.logits)[0]
        likeliest = (-log_probs).argsort(kind="stable")[: self.n_likeliest].tolist()
        token = int(step.ids[0])
        return self._tell(
            token, float(log_probs[token]), [(i, float(log_probs[i])) for i in likeliest]
        )

    def _tell(
        self, token: int, log_prob: float | None, likeliest: list[tuple[int, float]] | None
    ) -> Token:
        text = self._decode([token])
        self.offset += len(text)
        begins = not text or self._decode.pending  # as far as is known; else it ends a character
        offset = self.offset if begins else self.offset - 1
        return Token(token, name_of(self.vocabulary, token), offset, log_prob, likeliest)


def written(
    steps: Iterator[Step], vocabulary: Vocabulary, stop: Sequence[str], tokens: Tokens | None
) -> Iterator[Piece]:
    """Yield a text as it is sampled, without what may yet become a stop string.

    Args:
        tokens: tells of its tokens, if that is wanted.
    """
    offset = 0 if tokens is None else tokens.offset
    held: list[Token] = []
    n_ids, exhausted = 0, False

    def pairs() -> Iterator[tuple[int, float]]:
        nonlocal n_ids, exhausted
        for step in steps:
            n_ids += 1
            if tokens is not None:
                held.append(tokens.next(step))
            yield int(step.ids[0]), np.nan
        exhausted = True

    writing = Writing(pairs(), vocabulary, stop)
    for text in writing:
        finish = writing.finish if exhausted or writing.finish != "length" else None
        ready = [token for token in held if token.offset - offset < len(writing.text)]
        held = held[len(ready) :]
        yield Piece(text, ready, n_ids, finish)
        n_ids = 0
        if finish:
            return


def read(steps: Iterator[Step], tokens: Tokens) -> Iterator[Piece]:
    """Yield what the model says of each token of a text that is given."""
    for step in steps:
        yield Piece("", [tokens.next(step)], 0, None)
    yield Piece("", [], 0, "length")
