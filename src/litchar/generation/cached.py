"""Incremental decoding of a transformer with a KV cache, on any device."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from litchar.device import capture
from litchar.models.transformer import Block, NGramEmbedding, Transformer, rotate

if TYPE_CHECKING:
    from litchar.generation.fused import FusedStep


class CachedTransformer:
    """Reads a prompt, then one id at a time, attending to the cached keys and values.

    The cache is allocated once, for `block_size` positions. With rotary positions it is a ring
    buffer: when it is full, the newest position overwrites the oldest. Each position then attends
    to the last `block_size` positions, as they were computed when they were read: sliding-window
    attention (Beltagy et al., 2020). Scores depend only on relative positions, so keys are stored
    already rotated and never change. With learned positions the cache cannot roll: `CropReader`
    takes over when the context is full.

    On a GPU the single-id step is captured as a CUDA graph and replayed.

    Args:
        model: in evaluation mode.
        batch_size: B.
        max_ids: upper bound on the number of ids read.
        fused: computes the steps after the prompt, in place of torch.
    """

    def __init__(
        self, model: Transformer, batch_size: int, max_ids: int, fused: "FusedStep | None" = None
    ) -> None:
        self.model = model
        self.fused = fused
        self.blocks = cast(list[Block], list(model.blocks))
        self.ngrams = cast(list[NGramEmbedding], list(model.ngrams))
        weight = model.token_embedding.weight
        n_head = self.blocks[0].attention.n_head
        shape = (batch_size, n_head, model.block_size, weight.shape[1] // n_head)
        self.keys = [weight.new_zeros(shape) for _ in self.blocks]
        self.values = [weight.new_zeros(shape) for _ in self.blocks]
        self.slots = torch.arange(model.block_size, device=weight.device)
        self.position = torch.zeros((), dtype=torch.int64, device=weight.device)
        n_before = max((ngram.n - 1 for ngram in self.ngrams), default=0)
        self.before = self.position.new_zeros(batch_size, n_before)  # the last ids, for n-grams
        self.cos: Tensor | None = None
        self.sin: Tensor | None = None
        if model.rotary is not None:
            tables = model.rotary.tables(max(max_ids, model.block_size))
            self.cos, self.sin = (table.to(weight) for table in tables)  # (N, 1, D)
        self.n_read = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits after reading the next ids: (B, T) int64 -> (B, V) float32.

        The first call reads the prompt, or its last `block_size` ids if it is longer; every later
        call reads one id.
        """
        ids = torch.from_numpy(idx[:, -self.model.block_size :])
        if self.n_read and self.position.is_cuda:
            logits = self._replay(ids)
        else:
            logits = self.step(ids.to(self.position.device)).float().cpu().numpy()
        self.n_read += ids.shape[1]
        return logits

    def step(self, idx: Tensor) -> Tensor:
        """Return the logits after `idx` and cache its keys and values: (B, T) -> (B, V).

        The position enters only through the contents of tensors, as capturing a CUDA graph
        requires.
        """
        model, T = self.model, idx.shape[1]  # noqa: N806
        x = model.token_embedding(idx)  # (B, T, C)
        if model.position_embedding is not None:
            x = x + model.position_embedding.weight[self._positions(T) % model.block_size]
        for ngram in self.ngrams:
            x = x + ngram(idx, self.before)
        if self.fused is not None and self.n_read:
            logits = self.fused(x[:, 0], self)
        else:
            logits = model.logits(self._through_blocks(x)[:, -1])
        self.position += T
        if self.ngrams:
            self.before.copy_(torch.cat((self.before, idx), dim=1)[:, T:])
        return logits

    def _positions(self, T: int) -> Tensor:  # noqa: N803
        """Return the positions of the next T ids: (T,)."""
        return self.position + self.slots[:T]

    def _through_blocks(self, x: Tensor) -> Tensor:
        """Return the residual stream after the blocks: (B, T, C) -> (B, T, C)."""
        positions = self._positions(x.shape[1])
        slots = positions % self.model.block_size
        seen = self.slots <= positions[:, None]  # (T, block size)
        for block, keys, values in zip(self.blocks, self.keys, self.values, strict=True):
            q, k, v = block.attention.project(block.attention_norm(x))  # (B, T, H, D)
            if self.cos is not None and self.sin is not None:
                cos, sin = self.cos[positions], self.sin[positions]  # (T, 1, D)
                q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            keys.index_copy_(2, slots, k.transpose(1, 2))
            values.index_copy_(2, slots, v.transpose(1, 2))
            y = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=seen)
            x = x + block.attention.output(y.transpose(1, 2).flatten(2))
            x = x + block.feed_forward(block.feed_forward_norm(x))
        return x

    def _replay(self, idx: Tensor) -> np.ndarray:
        """Do what `step` does for one id, by a CUDA graph that is captured on first use."""
        if self.graph is None:
            V = self.model.head.out_features  # noqa: N806
            self.idx = torch.empty_like(idx, pin_memory=True)
            self.logits = torch.empty(len(idx), V, dtype=torch.float32, pin_memory=True)
            self.idx.copy_(idx)

            def pinned_to_pinned() -> None:
                logits = self.step(self.idx.to(self.position.device, non_blocking=True))
                self.logits.copy_(logits, non_blocking=True)

            self.graph = self.capture(pinned_to_pinned)
        self.idx.copy_(idx)
        self.graph.replay()
        torch.cuda.current_stream(self.position.device).synchronize()
        return self.logits.numpy().copy()

    def capture(self, work: Callable[[], None], *changed: Tensor) -> torch.cuda.CUDAGraph:
        """Capture `work`, which takes a step for one id.

        Args:
            changed: what `work` changes and reads, apart from the cache.
        """
        changed = (self.position, self.before, *changed)
        saved = [tensor.clone() for tensor in changed]
        # Keys and values need no undo: each warm-up run writes the slot that the replay writes.
        return capture(
            work, self.position.device, undo=lambda: torch._foreach_copy_(changed, saved)
        )
