"""How surprising a text is to a model, character by character."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from rich.console import Console
from rich.text import Text as Coloured
from torch import nn

from litchar.generation.readers import Prepared
from litchar.generation.sampling import log_softmax
from litchar.text.vocabulary import Vocabulary, printable

# Bits from which on a character has the style; 1 bit is a probability of 1/2. They differ without
# colour too: for those who do not see red and green apart, and with NO_COLOR.
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

    The text is read as it would be written: id by id, with the same context.
    """
    reader = Prepared.of(model).open(1, len(ids))
    steps = (
        log_softmax(reader.read(ids[None, t : t + 1])[0])[ids[t + 1]] for t in range(len(ids) - 1)
    )
    return np.fromiter(steps, np.float64, len(ids) - 1)


@dataclass(frozen=True)
class Score:
    """How surprising a text is. A notebook shows it in colours.

    Attributes:
        ids: of the text: (N,)
        log_probs: of all ids but the first, which begins the text, in nats: (N - 1,); of a
            document, which the boundary before it begins, of all: (N,)
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
        """How many ids at the beginning were not predicted: 1, or of a document 0."""
        return len(self.ids) - len(self.log_probs)

    @property
    def n_predicted(self) -> int:
        """How many characters were predicted."""
        return len(self.text) - self.n_given

    @property
    def bits_per_character(self) -> float:
        """The surprise of a predicted character in the mean, in bits."""
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
        """Yield the characters, the bits of each, and where it begins; 0 bits for what is given.

        Where bytes make up a character, it has the surprise of them all.
        """
        place = 0
        for piece, start, stop in characters(self.vocabulary, self.ids):
            log_probs = self.log_probs[max(0, start - self.n_given) : stop - self.n_given]
            bits = -log_probs.sum() / math.log(2)
            yield piece, float(bits), place
            place += len(piece)

    def coloured(self) -> Coloured:
        """Return the text, each character in the colour of its surprise."""
        text = Coloured()
        for piece, bits, place in self.surprises():
            colour = next(colour for least, colour in COLOURS if bits >= least)
            text.append(printable(piece), colour if place >= self.n_given else "")
        return text

    def most_surprising(self, most: int = 10) -> list[str]:
        """Return what the colours say in words, the most surprising characters first."""
        ranked = sorted(self.surprises(), key=lambda surprise: -surprise[1])
        return [
            f"{bits:5.1f} bits: {piece!r} after {self.text[max(0, place - 20) : place]!r}"
            for piece, bits, place in ranked[:most]
            if place >= self.n_given
        ]


def characters(vocabulary: Vocabulary, ids: np.ndarray) -> Iterator[tuple[str, int, int]]:
    """Yield the characters of a text, and which of its ids each is made of: from one to before
    another. Bytes that are no character may come with the character behind them."""
    decode, start = vocabulary.decoder(), 0
    for stop, token in enumerate(ids, 1):
        if piece := decode([token]):
            yield piece, start, stop
            start = stop
    if piece := decode([], final=True):
        yield piece, start, len(ids)


def legend() -> Coloured:
    """Return what the colours mean, in bits."""
    text = Coloured("bits: ")
    for (least, colour), (most, _) in zip(
        COLOURS[::-1], [*COLOURS[-2::-1], (None, "")], strict=True
    ):
        text.append(f"{least}-{most} " if most else f"{least} or more", colour)
    return text
