"""Readers: each takes a model's text bit by bit and says what may come next.

`read(idx)` takes the ids that follow what was read before, (B, T) int64, and returns the logits of
the id after them, (B, V) float32, on the CPU. A reader decides what is kept between two calls: the
ids themselves, a state that the model carries, or the keys and values of a transformer.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from litchar.generation.cached import CachedTransformer
from litchar.generation.lean import LeanTransformer
from litchar.models import Transformer, block_size_of


class Reader(Protocol):
    """What `generate` needs of a model."""

    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits behind the next ids: (B, T) int64 -> (B, V) float32."""


def open_reader(model: nn.Module, batch_size: int, max_ids: int) -> Reader:
    """Return the fastest reader for `model`, which is in evaluation mode, where it lies.

    On a CPU each row is read by itself: no number that a text depends on is touched by the rows
    beside it, so that a seed's text is the same in any batch. Elsewhere all rows go together.

    Args:
        max_ids: how many ids will be read at most, the prompt's among them.
    """
    weight = next(model.parameters(), torch.empty(0))
    alone = weight.device.type == "cpu"
    if alone and batch_size > 1:
        return Rows([open_reader(model, 1, max_ids) for _ in range(batch_size)])
    if type(model) is Transformer:
        lean = alone and weight.dtype == torch.float32
        reader: Reader = (
            LeanTransformer(model) if lean else CachedTransformer(model, batch_size, max_ids)
        )
        return reader if model.position_embedding is None else Crop(model, reader)
    return Carried(model) if hasattr(model, "step") else Window(model)


class Window:
    """Any model: it reads the last `block_size` ids again for each new one."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.block_size = block_size_of(model)
        self.context: np.ndarray | None = None

    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits behind the next ids: (B, T) int64 -> (B, V) float32."""
        logits: Tensor = self.model(to_device(self.remember(idx), self.model))
        last: np.ndarray = logits[:, -1].float().cpu().numpy()
        return last

    def remember(self, idx: np.ndarray) -> np.ndarray:
        """Append to the context, let what is too old fall out, and return the rest."""
        if self.context is not None:
            idx = np.concatenate((self.context, idx), axis=1)
        self.context = idx[:, -self.block_size :]
        return self.context


class Crop(Window):
    """A transformer with learned positions: cached until its context is full.

    Then every position changes with each new id, and the context is read again, as the teaching
    script does.
    """

    def __init__(self, model: Transformer, cached: Reader) -> None:
        super().__init__(model)
        self.cached = cached
        self.n_read = 0

    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits behind the next ids: (B, T) int64 -> (B, V) float32."""
        self.n_read += idx.shape[1]
        if self.n_read > self.block_size:
            return super().read(idx)
        self.remember(idx)
        return self.cached.read(idx)


class Carried:
    """A model with a `step`, such as a recurrent one: its state holds all that was read."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.step = cast(Callable[[Tensor, Any], tuple[Tensor, Any]], model.step)
        self.state: Any = None

    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits behind the next ids: (B, T) int64 -> (B, V) float32."""
        logits, self.state = self.step(to_device(idx, self.model), self.state)
        return logits[:, -1].float().cpu().numpy()


class Rows:
    """A batch whose rows are read one by one."""

    def __init__(self, readers: list[Reader]) -> None:
        self.readers = readers

    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits behind the next ids: (B, T) int64 -> (B, V) float32."""
        rows = zip(self.readers, idx, strict=True)
        return np.concatenate([reader.read(row[None]) for reader, row in rows])


def to_device(idx: np.ndarray, model: nn.Module) -> Tensor:
    """Return `idx` where the weights of `model` lie."""
    device = next(model.parameters(), torch.empty(0)).device
    return torch.from_numpy(np.ascontiguousarray(idx)).to(device)
