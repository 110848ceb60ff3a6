"""How surprised a model is by each token of a text, and which passages surprise it most."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litchar.analysis.evaluate import batches_of
from litchar.data.windows import IGNORED


@dataclass(frozen=True)
class Surprise:
    """A model's predictions of a text: for each token but the first, given those before it.

    Attributes:
        ids: of the text, including the first token: (N,)
        nats: -ln of the probability that the model gave the token: (N - 1,) float64
        guesses: the most likely token by the model: (N - 1,) int64
        confidence: the probability of that guess: (N - 1,) float32
    """

    ids: np.ndarray
    nats: np.ndarray
    guesses: np.ndarray
    confidence: np.ndarray


@torch.inference_mode()
def surprise(
    model: nn.Module, tokens: Tensor, batch_size: int, device: torch.device, stride: int | None
) -> Surprise:
    """Return how surprised `model` is by `tokens`: (N,) ids.

    The mean of `nats` equals the loss per token by `exact_loss`.

    Args:
        stride: as in `exact_loss`; less than the block size gives tokens more context.
    """
    nats, guesses, confidence = [], [], []
    for idx, targets in batches_of(model, tokens, batch_size, device, stride):
        counted = targets != IGNORED
        logits = model(idx)[counted].float()  # (N of this batch, V)
        nats.append(F.cross_entropy(logits, targets[counted], reduction="none").cpu())
        highest, guess = logits.max(-1)
        guesses.append(guess.cpu())
        confidence.append((highest - logits.logsumexp(-1)).exp().cpu())
    return Surprise(
        tokens.numpy(),
        torch.cat(nats).double().numpy(),
        torch.cat(guesses).numpy(),
        torch.cat(confidence).numpy(),
    )


def most_surprising(nats: np.ndarray, length: int, most: int) -> list[int]:
    """Return where the `most` passages of `length` tokens with the highest sums of `nats` begin,
    the highest first; no two overlap.

    Args:
        nats: (N,)
    """
    length = min(length, len(nats))
    sums = np.cumsum(np.concatenate(([0.0], nats)))
    totals = sums[length:] - sums[:-length]
    found: list[int] = []
    for _ in range(most):
        place = int(totals.argmax())
        if totals[place] == -np.inf:
            break
        found.append(place)
        totals[max(0, place - length + 1) : place + length] = -np.inf
    return found
