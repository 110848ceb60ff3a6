"""Scoring: how surprising each character of a text is to a model."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from rich.console import Console
from rich.text import Text as Coloured
from torch import nn

from litchar.generation.readers import Prepared
from litchar.generation.sampling import log_softmax
from litchar.text.vocabulary import Vocabulary, printable

# (least bits of surprise, style); 1 bit is a probability of 1/2. The styles differ in more than
# colour, for readers who cannot tell red from green, and for NO_COLOR.
COLOURS = (
    (8, "bold reverse red"),
    (4, "bold red"),
    (2, "underline yellow"),
    (1, "green"),
    (0, "dim"),
)


@torch.inference_mode()
def log_probs_of(model: nn.Module | Prepared, ids: np.ndarray) -> np.ndarray:
    """Return the log-probability of each id given those before it, in nats: (N,) -> (N - 1,).

    The text is read as it would be generated: id by id, with the same context.
    """
    reader = Prepared.of(model).open(1, len(ids))
    steps = (
        log_softmax(reader.read(ids[None, t : t + 1])[0])[ids[t + 1]] for t in range(len(ids) - 1)
    )
    return np.fromiter(steps, np.float64, len(ids) - 1)


@dataclass(frozen=True)
class Score:
    """How surprising a text is to a model; displayed in colour in a notebook.

    Attributes:
        ids: the ids of the text: (N,)
        log_probs: log-probabilities in nats of all ids but the first, which has no context:
            (N - 1,); of all ids if a document boundary precedes the text: (N,)
    """

    vocabulary: Vocabulary
    ids: np.ndarray
    log_probs: np.ndarray

    @cached_property
    def text(self) -> str:
        """The text, as the model read it."""
        return self.vocabulary.decode(self.ids)

    @property
    def n_given(self) -> int:
        """How many leading ids were not predicted: 1, or 0 if a boundary precedes the text."""
        return len(self.ids) - len(self.log_probs)

    @property
    def n_predicted(self) -> int:
        """How many characters were predicted."""
        return len(self.text) - self.n_given

    @property
    def bits_per_character(self) -> float:
        """The mean surprise of the predicted characters, in bits."""
        pieces = self.surprises()
        bits = (bits for piece, bits, place in pieces if place + len(piece) > self.n_given)
        return sum(bits) / self.n_predicted

    def __repr__(self) -> str:
        figure = (
            f"{self.bits_per_character:.4f} bits per character over {self.n_predicted:,} characters"
        )
        return f"{figure} (the first is not predicted)" if self.n_given else figure

    def _repr_html_(self) -> str:
        console = Console(record=True, file=io.StringIO(), width=10**6)
        console.print(self.coloured(), legend(), repr(self), sep="\n", highlight=False)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    def surprises(self) -> Iterator[tuple[str, float, int]]:
        """Yield each character, its surprise in bits and its index in the text.

        One made of several bytes has the sum of their surprises. The first byte or character has
        none if it was not predicted.
        """
        place = 0
        for piece, start, stop in characters(self.vocabulary, self.ids):
            log_probs = self.log_probs[max(0, start - self.n_given) : stop - self.n_given]
            bits = -log_probs.sum() / math.log(2)
            yield piece, float(bits), place
            place += len(piece)

    def coloured(self) -> Coloured:
        """Return the text, each character styled by its surprise."""
        text = Coloured()
        for piece, bits, place in self.surprises():
            colour = next(colour for least, colour in COLOURS if bits >= least)
            text.append(printable(piece), colour if place >= self.n_given else "")
        return text

    def most_surprising(self, most: int = 10) -> list[str]:
        """Return one line for each of the most surprising characters, most surprising first."""
        predicted = (found for found in self.surprises() if found[2] >= self.n_given)
        ranked = sorted(predicted, key=lambda surprise: -surprise[1])
        return [
            f"{bits:5.1f} bits: {piece!r} after {self.text[max(0, place - 20) : place]!r}"
            for piece, bits, place in ranked[:most]
        ]


def characters(vocabulary: Vocabulary, ids: np.ndarray) -> Iterator[tuple[str, int, int]]:
    """Yield (piece, start, stop): the characters of a text, each decoded from ids[start:stop].
    Bytes that do not form a character may come with the character that follows."""
    decode, start = vocabulary.decoder(), 0
    for stop, token in enumerate(ids, 1):
        if piece := decode([token]):
            yield piece, start, stop
            start = stop
    if piece := decode([], final=True):
        yield piece, start, len(ids)


def legend() -> Coloured:
    """Return the legend of the colours, in bits."""
    text = Coloured("bits: ")
    for (least, colour), (most, _) in pairwise([*COLOURS[::-1], (None, "")]):
        text.append(f"{least}-{most} " if most else f"{least} or more", colour)
    return text
