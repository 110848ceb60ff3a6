"""How surprising a text is to a model, character by character."""

import math

import numpy as np
import torch
from rich.text import Text as Coloured
from torch import nn

from litchar.generation.readers import open_reader
from litchar.generation.sampling import log_softmax
from litchar.text.vocabulary import Vocabulary, printable

# Bits from which on a character has the colour; 1 bit is a probability of 1/2.
COLOURS = ((8, "bold red"), (4, "red"), (2, "yellow"), (1, "green"), (0, "dim"))


@torch.inference_mode()
def log_probs_of(model: nn.Module, ids: np.ndarray) -> np.ndarray:
    """Return the log-probability of each id given those before it, in nats: (N,) -> (N - 1,).

    The text is read as it would be written: id by id, with the same context.
    """
    reader = open_reader(model, 1, len(ids))
    steps = (
        log_softmax(reader.read(ids[None, t : t + 1])[0])[ids[t + 1]] for t in range(len(ids) - 1)
    )
    return np.fromiter(steps, np.float64, len(ids) - 1)


def coloured(vocabulary: Vocabulary, ids: np.ndarray, log_probs: np.ndarray) -> Coloured:
    """Return the text of `ids`, each character in the colour of its surprise.

    Args:
        log_probs: of all ids but the first, in nats; where bytes make up a character, it has the
            surprise of them all.
    """
    text, decode, bits = Coloured(), vocabulary.decoder(), 0.0
    text.append(printable(decode(ids[:1])))
    for token, log_prob in zip(ids[1:], log_probs, strict=True):
        bits -= log_prob / math.log(2)
        if piece := decode([token]):
            text.append(printable(piece), next(c for least, c in COLOURS if bits >= least))
            bits = 0.0
    text.append(printable(decode([], final=True)))
    return text


def legend() -> Coloured:
    """Return what the colours mean, in bits."""
    text = Coloured("bits: ")
    for (least, colour), (most, _) in zip(
        COLOURS[::-1], [*COLOURS[-2::-1], (None, "")], strict=True
    ):
        text.append(f"{least}-{most} " if most else f"{least} or more", colour)
    return text
