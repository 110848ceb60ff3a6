"""Which characters a model mistakes for which others."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from litchar.data.windows import IGNORED
from litchar.models import evaluating


@dataclass(frozen=True)
class Confusion:
    """A character, another that the model predicted in its place, and how often.

    Attributes:
        times: how often `predicted` was the most likely where `actual` stands; both are ids.
        share: `times` as a fraction of the occurrences of `actual`.
    """

    actual: int
    predicted: int
    times: int
    share: float


@torch.inference_mode()
def predictions(
    model: nn.Module, windows: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of the text and the model's most likely id at each of them: (N,) each.

    Args:
        windows: batches of inputs and targets, (B, T) int64 each; ignored targets are left out.
    """
    actual, predicted = [], []
    with evaluating(model):
        for idx, targets in windows:
            likeliest = model(idx.to(device)).argmax(-1).cpu()
            counted = targets.cpu() != IGNORED
            actual.append(targets.cpu()[counted].numpy())
            predicted.append(likeliest[counted].numpy())
    return np.concatenate(actual), np.concatenate(predicted)


def most_confused(actual: np.ndarray, predicted: np.ndarray, most: int) -> list[Confusion]:
    """Return the `most` pairs that are confused most often, the most frequent first.

    Args:
        actual: ids, like `predicted`: (N,) each
    """
    wrong = actual != predicted
    pairs, times = np.unique(
        np.stack((actual[wrong], predicted[wrong])), axis=1, return_counts=True
    )
    counts = np.bincount(actual)
    order = np.argsort(-times, kind="stable")[:most]
    return [
        Confusion(a, b, n, n / int(counts[a]))
        for (a, b), n in zip(pairs.T[order].tolist(), times[order].tolist(), strict=True)
    ]
