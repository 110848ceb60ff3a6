"""Readers: incremental decoding behind one interface, for every kind of model.

`read(idx)` takes the ids that follow those already read, (B, T) int64, and returns the logits for
the next id, (B, V) float32, on the CPU. What a reader keeps between calls is up to it: the ids
themselves, a recurrent state, or a transformer's KV cache.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from litchar.errors import first_line
from litchar.generation.cached import CachedTransformer
from litchar.generation.lean import LeanReader, LeanTransformer
from litchar.models import Transformer, block_size_of

if TYPE_CHECKING:
    from litchar.generation.fused import FusedStep


class Reader(Protocol):
    """The interface that `generate` decodes with."""

    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits after reading the next ids: (B, T) int64 -> (B, V) float32."""


class Prepared:
    """A model prepared for decoding: what its readers share is computed once.

    Args:
        model: in evaluation mode, on the device to run on; its weights must not change afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        weight = next(model.parameters(), torch.empty(0))
        self.model = model
        self.on_cpu = weight.device.type == "cpu"
        self.lean: LeanTransformer | None = None
        self.fused: FusedStep | None = None
        self.cached = False  # whether to decode with a KV cache
        if type(model) is Transformer:
            if self.on_cpu and weight.dtype == torch.float32:
                self.lean = LeanTransformer(model)
            if weight.is_cuda and weight.dtype == torch.float32 and model.block_size > 1:
                self._try_fused(model)
            self.cached = self.fused is not None or self._agrees(model)

    def _try_fused(self, model: Transformer) -> None:
        """Have Triton compute the steps if it can."""
        try:
            from litchar.generation.fused import FusedStep

            self.fused = FusedStep(model.head.weight.device)
            if not self._agrees(model):
                self.fused = None
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # e.g. Triton is missing, or the C compiler that it needs
            self.fused = None
            warnings.warn(f"generating without Triton: {first_line(error)}", stacklevel=2)

    @torch.inference_mode()
    def _agrees(self, model: Transformer) -> bool:
        """Return whether the fast readers, which reimplement the forward pass, match the model's
        own: someone may have changed only `litchar.models.transformer`."""
        idx = np.arange(min(256, model.block_size))[None] % model.token_embedding.num_embeddings
        expected = model(to_device(idx, model))[:, -1].float().cpu().numpy()
        reader: Reader
        if self.lean is None:
            reader = CachedTransformer(model, 1, idx.shape[1], self.fused)
            # Room for the rounding of a GPU's matrix products, and of two-byte types.
            share = 0.01 if model.head.weight.element_size() > 2 else 0.03
        else:
            reader, share = LeanReader(self.lean), 1e-3
        found = reader.read(idx[:, : max(1, idx.shape[1] - 1)])  # the prompt
        found = reader.read(idx[:, -1:]) if idx.shape[1] > 1 else found  # a step
        error = np.abs(found - expected).max()
        return bool(error <= share * np.abs(expected).max() or not np.isfinite(expected).all())

    @classmethod
    def of(cls, model: "nn.Module | Prepared") -> "Prepared":
        """Return `model`, prepared unless it already is."""
        return model if isinstance(model, Prepared) else cls(model)

    def open(self, batch_size: int, max_ids: int) -> Reader:
        """Return the fastest reader for the model.

        On a CPU each row is read separately: no number that a text depends on is affected by the
        other rows, so that a seed gives the same text in any batch. Elsewhere all rows are read
        together.

        Args:
            max_ids: upper bound on the number of ids read, including the prompt's.
        """
        model = self.model
        if self.on_cpu and batch_size > 1:
            return BatchReader(self, [self.open(1, max_ids) for _ in range(batch_size)])
        if isinstance(model, Transformer) and self.cached:
            if self.lean is not None:
                reader: Reader = LeanReader(self.lean)
            else:
                reader = CachedTransformer(model, batch_size, max_ids, self.fused)
            return reader if model.position_embedding is None else CropReader(model, reader)
        return RecurrentReader(model) if hasattr(model, "step") else WindowReader(model)

    def read(self, readers: Sequence[Reader], ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the logits of several readers of this model, each after its next ids, (1, T).

        Bit for bit the same as calling each reader, but faster where the texts can share a step.
        """
        logits: dict[int, np.ndarray] = {}
        begun = {
            i: reader
            for i, reader in enumerate(readers)
            if isinstance(reader, LeanReader) and reader.position
        }
        if self.lean is not None and begun:
            read = self.lean.step([*begun.values()], [ids[i] for i in begun])
            logits.update(zip(begun, read, strict=True))
        return [
            logits[i] if i in logits else reader.read(idx)
            for i, (reader, idx) in enumerate(zip(readers, ids, strict=True))
        ]


class WindowReader:
    """Works for any model: rereads the last `block_size` ids for each new one."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.block_size = block_size_of(model)
        self.context: np.ndarray | None = None

    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits after reading the next ids: (B, T) int64 -> (B, V) float32."""
        logits: Tensor = self.model(to_device(self.remember(idx), self.model))
        last: np.ndarray = logits[:, -1].float().cpu().numpy()
        return last

    def remember(self, idx: np.ndarray) -> np.ndarray:
        """Append `idx` to the context, crop it to the last `block_size` ids and return it."""
        if self.context is not None:
            idx = np.concatenate((self.context, idx), axis=1)
        self.context = idx[:, -self.block_size :]
        return self.context


class CropReader(WindowReader):
    """A transformer with learned positions: uses the KV cache until the context is full.

    From then on each new id shifts every position, so the whole context is reread, as in the
    teaching script.
    """

    def __init__(self, model: Transformer, cached: Reader) -> None:
        super().__init__(model)
        self.cached = cached
        self.n_read = 0

    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits after reading the next ids: (B, T) int64 -> (B, V) float32."""
        self.n_read += idx.shape[1]
        if self.n_read > self.block_size:
            return super().read(idx)
        self.remember(idx)
        return self.cached.read(idx)


MOST_AT_ONCE = 1024  # ids per row and step; bounds the memory of gates and logits


class RecurrentReader:
    """A model with a `step`, such as a recurrent one: its state carries all that was read."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.step = cast(Callable[[Tensor, Any], tuple[Tensor, Any]], model.step)
        self.state: Any = None

    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits after reading the next ids: (B, T) int64 -> (B, V) float32."""
        for start in range(0, idx.shape[1], MOST_AT_ONCE):
            part = to_device(idx[:, start : start + MOST_AT_ONCE], self.model)
            logits, self.state = self.step(part, self.state)
        return logits[:, -1].float().cpu().numpy()


class BatchReader:
    """A batch whose rows are read independently, each by a reader of its own."""

    def __init__(self, prepared: Prepared, readers: list[Reader]) -> None:
        self.prepared = prepared
        self.readers = readers

    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits after reading the next ids: (B, T) int64 -> (B, V) float32."""
        return np.concatenate(self.prepared.read(self.readers, [row[None] for row in idx]))


def to_device(idx: np.ndarray, model: nn.Module) -> Tensor:
    """Return `idx` as a tensor on the device of `model`."""
    device = next(model.parameters(), torch.empty(0)).device
    return torch.from_numpy(np.ascontiguousarray(idx)).to(device)
