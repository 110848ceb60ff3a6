"""A transformer that keeps keys and values, on any device."""

from functools import cache
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from litchar.models.transformer import Block, NGramEmbedding, Transformer, rotate


class CachedTransformer:
    """Reads a prompt, then one id at a time, against the keys and values of what came before.

    The cache is allocated once, for `block_size` positions. With rotary positions it rolls: when
    it is full, the newest position takes the place of the oldest. A position then sees the
    `block_size` positions up to its own, each as it was computed when it was read, which is
    attention under a sliding window (Beltagy et al., 2020). Scores depend on relative positions
    alone, so that keys are stored rotated and need no further touch. Learned positions cannot
    roll: `Crop` takes over when the context is full.

    On an NVIDIA GPU the step of one id is captured once as a CUDA graph and then replayed.

    Args:
        model: in evaluation mode.
        batch_size: B.
        max_ids: how many ids will be read at most.
    """

    def __init__(self, model: Transformer, batch_size: int, max_ids: int) -> None:
        self.model = model
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
        if model.rotary is not None:
            tables = model.rotary.tables(max(max_ids, model.block_size))
            self.cos, self.sin = (table.to(weight) for table in tables)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.begun = False

    @torch.inference_mode()
    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits behind the next ids: (B, T) int64 -> (B, V) float32.

        Of a prompt longer than the context its last `block_size` ids are read; after it comes one
        id at a time.
        """
        ids = torch.from_numpy(idx[:, -self.model.block_size :]).to(self.position.device)
        logits = self._replay(ids) if self.begun and ids.is_cuda else self._read(ids)
        self.begun = True
        return logits.float().cpu().numpy()

    def _read(self, idx: Tensor) -> Tensor:
        """Return the logits behind `idx`, and keep its keys and values: (B, T) -> (B, V).

        Of what it does nothing depends on where it stands but the content of tensors, as the
        capture of a graph asks for.
        """
        model = self.model
        B, T = idx.shape  # noqa: N806
        positions = self.position + self.slots[:T]
        slots = positions % model.block_size
        seen = self.slots <= positions[:, None]  # (T, block size); all, once the cache is full

        x = model.token_embedding(idx)  # (B, T, C)
        if model.position_embedding is not None:
            x = x + model.position_embedding.weight[slots]
        for ngram in self.ngrams:
            x = x + ngram(idx, self.before)
        for block, keys, values in zip(self.blocks, self.keys, self.values, strict=True):
            q, k, v = block.attention.project(block.attention_norm(x))  # (B, T, H, D)
            if model.rotary is not None:
                cos, sin = self.cos[positions], self.sin[positions]
                q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            keys.index_copy_(2, slots, k.transpose(1, 2))
            values.index_copy_(2, slots, v.transpose(1, 2))
            y = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=seen)
            x = x + block.attention.output(y.transpose(1, 2).reshape(B, T, -1))
            x = x + block.feed_forward(block.feed_forward_norm(x))

        self.position += T
        self.before.copy_(torch.cat((self.before, idx), dim=1)[:, T:])
        return model.logits(x[:, -1])

    def _replay(self, idx: Tensor) -> Tensor:
        """Do as `_read` does for one id, captured the first time and replayed from then on."""
        if self.graph is None:
            self.idx = idx.clone()
            self.graph = self._capture()
        self.idx.copy_(idx)
        self.graph.replay()
        return self.logits

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture `_read` of `self.idx` into `self.logits`.

        `torch.cuda.graph` would first give back all memory that is free: a training step behind a
        sample would have to ask the driver for it anew. And other threads may go on with theirs.
        """
        changed = (self.position, self.before)
        saved = [tensor.clone() for tensor in changed]
        device = self.idx.device
        graph, stream = torch.cuda.CUDAGraph(), _capturing_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # warm-up writes where the capture's own position will write
                self._read(self.idx)
                torch._foreach_copy_(changed, saved)
            torch.cuda.synchronize(device)
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.logits = self._read(self.idx)
            finally:
                graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)
        return graph


@cache
def _capturing_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all captures: cuBLAS keeps 32 MiB for each that it has ever met."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
