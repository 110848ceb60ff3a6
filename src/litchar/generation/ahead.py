"""Sampling on a GPU, several steps ahead of the CPU."""

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch

from litchar.generation.cached import CachedTransformer

GROUP = 16  # steps that are launched together
MOST_LOGITS = 2**24  # of a group; a larger vocabulary or batch has smaller groups


class Ahead:
    """Samples on the GPU, where a step need not wait until the CPU has chosen the previous id.

    While the GPU computes one group of steps, the CPU looks at the results of the group before. If
    it stops asking, up to two groups have been computed in vain.

    Args:
        reader: has read the prompt, and has a `fused` step; it now belongs to this object.
        ids: the ids that follow the prompt: (B,) int64
        temperature: 0 for the likeliest ids.
    """

    def __init__(self, reader: CachedTransformer, ids: np.ndarray, temperature: float) -> None:
        self.reader = reader
        self.device = reader.position.device
        self.idx = torch.tensor(ids[:, None], device=self.device)
        self.temperature = torch.tensor(temperature, dtype=torch.float64, device=self.device)
        B, V = len(ids), reader.model.head.out_features  # noqa: N806
        self.group = max(1, min(GROUP, MOST_LOGITS // (B * V)))
        # The step after which n ids have been read has entry n % N of these.
        N = 2 * self.group  # noqa: N806
        self.uniform = Mirrored((N, B), torch.float64, self.device)
        self.ids = Mirrored((N, B), torch.int64, self.device)
        self.logits = Mirrored((N, B, V), torch.float32, self.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def steps(
        self, n: int, draw: Callable[[int], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the ids, (B,) int64, and the logits, (B, V) float32, of each of the next n steps.

        Args:
            draw: returns uniform numbers in [0, 1) for that many steps: (n, B) float64
        """
        launched: deque[tuple[slice, torch.cuda.Event]] = deque()
        while n or launched:
            if n:
                first = (self.reader.n_read + 1) % (2 * self.group)
                count = min(n, self.group - first % self.group)
                entries = slice(first, first + count)
                launched.append((entries, self._launch(entries, draw(count))))
                n -= count
            if len(launched) == 2 or not n:
                entries, done = launched.popleft()
                done.synchronize()
                ids, logits = (m.here[entries].numpy().copy() for m in (self.ids, self.logits))
                yield from zip(ids, logits, strict=True)

    @torch.inference_mode()
    def _launch(self, entries: slice, uniform: np.ndarray) -> torch.cuda.Event:
        """Launch the steps with these entries; return the event of their results' arrival."""
        self.uniform.here[entries] = torch.from_numpy(uniform)
        self.uniform.send(entries)
        if self.graph is None:
            self.graph = self.reader.capture(self._step, self.idx)
        for _ in uniform:
            self.graph.replay()
        self.reader.n_read += len(uniform)
        self.ids.fetch(entries)
        self.logits.fetch(entries)
        arrival: torch.cuda.Event = torch.cuda.current_stream(self.device).record_event()
        return arrival

    def _step(self) -> None:
        """Read `idx` and replace it by the ids sampled next."""
        assert self.reader.fused is not None
        self.reader.fused.sample(
            self.reader.step(self.idx),
            self.uniform.there,
            self.temperature,
            self.reader.position,
            self.idx,
            self.ids.there,
            self.logits.there,
        )


class Mirrored:
    """A tensor on the GPU, `there`, and a copy of it in pinned CPU memory, `here`."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.here = torch.zeros(shape, dtype=dtype, pin_memory=True)
        self.there = torch.zeros(shape, dtype=dtype, device=device)

    def send(self, entries: slice) -> None:
        """Copy these entries to the GPU."""
        self.there[entries].copy_(self.here[entries], non_blocking=True)

    def fetch(self, entries: slice) -> None:
        """Copy these entries from the GPU."""
        self.here[entries].copy_(self.there[entries], non_blocking=True)
