"""Pieces: the parts of a text that reach a client or a browser while it is being generated."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from litchar.generation.sampling import Step, log_softmax
from litchar.generation.writing import Writing
from litchar.text import Vocabulary
from litchar.text.vocabulary import BOUNDARY_TOKEN


class Token(NamedTuple):
    """A token with its probabilities under the model, before temperature and other settings.

    Attributes:
        id: id of the token.
        text: its character; `bytes:\\xNN` for a byte that is not a character by itself.
        offset: number of characters before its own. Bytes of one character share it.
        log_prob: in nats; None for a token without context.
        likeliest: the most likely ids in its place and their log-probabilities; None likewise.
    """

    id: int
    text: str
    offset: int
    log_prob: float | None
    likeliest: list[tuple[int, float]] | None


class Piece(NamedTuple):
    """A part of a text: what one id more made final.

    Attributes:
        text: the new text.
        tokens: its tokens.
        finish: None except in the last piece: `end` of the document, `stop`, or `length`.
    """

    text: str
    tokens: list[Token]
    finish: str | None


def token_name(vocabulary: Vocabulary, token: int) -> str:
    """Return the name of a token, as clients see it."""
    symbol = vocabulary.symbols[token]
    if vocabulary.unit == "byte" and symbol >= "\x80":
        return f"bytes:\\x{ord(symbol):02x}"
    return symbol or BOUNDARY_TOKEN


class Tokens:
    """Describes the tokens of one text, in order.

    Args:
        n_likeliest: how many of the most likely ids to include.
        offset: number of characters before the text.
    """

    def __init__(self, vocabulary: Vocabulary, n_likeliest: int, offset: int = 0) -> None:
        self.vocabulary = vocabulary
        self.n_likeliest = n_likeliest
        self.offset = offset
        self._decode = vocabulary.decoder()

    def first(self, token: int) -> Token:
        """Return the `Token` of a first id, which has no context."""
        return self._tell(token, None, None)

    def next(self, step: Step) -> Token:
        """Return the `Token` sampled in a step of one text."""
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
        return Token(token, token_name(self.vocabulary, token), offset, log_prob, likeliest)


class Pieces:
    """Makes the pieces of one text, holding back what may turn out to be a stop string.

    Args:
        tokens: describes its tokens, if requested.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str], tokens: Tokens | None) -> None:
        self.writing = Writing(iter(()), vocabulary, stop)
        self.tokens = tokens
        self.offset = 0 if tokens is None else tokens.offset
        self._held: list[Token] = []

    def next(self, step: Step, last: bool) -> Piece:
        """Return the piece that a step completes; `last` if the text ends with it."""
        if self.tokens is not None:
            self._held.append(self.tokens.next(step))
        text = self.writing.add(int(step.ids[0]), np.nan)
        if last and not self.writing.finish:
            text += self.writing.end("length")
        length = len(self.writing.text)
        ready = [token for token in self._held if token.offset - self.offset < length]
        self._held = self._held[len(ready) :]
        return Piece(text, ready, self.writing.finish)


def read(step: Step, last: bool, tokens: Tokens) -> Piece:
    """Return the piece of a step of a given text, such as a prompt: its token, and no text."""
    return Piece("", [tokens.next(step)], "length" if last else None)
