"""Incremental decoding of a transformer with a KV cache, on any device."""

from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litchar.device import capture
from litchar.models.transformer import Block, NGramEmbedding, Norm, Transformer


class CachedTransformer:
    """Reads a prompt, then one id at a time, attending to the cached keys and values.

    The cache is allocated once, for `block_size` positions. With rotary positions it is a ring
    buffer: when it is full, the newest position overwrites the oldest. Each position then attends
    to the last `block_size` positions, as they were computed when they were read: sliding-window
    attention (Beltagy et al., 2020). Scores depend only on relative positions, so keys are stored
    already rotated and never change. With learned positions the cache cannot roll: `CropReader`
    takes over when the context is full.

    On an NVIDIA GPU the single-id step is captured as a CUDA graph and replayed, and captured once
    more when the cache is full and attention needs no mask. Its cost is the number of operations,
    a few microseconds each, and hardly their arithmetic; hence queries and keys are normalised and
    rotated together.

    Args:
        model: in evaluation mode.
        batch_size: B.
        max_ids: upper bound on the number of ids read.
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
            self.cos, self.sin = (table.to(weight)[:, None] for table in tables)  # (N, 1, 1, D)
        self.norms = [HeadNorms.of(block) for block in self.blocks]
        self.n_read = 0
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}  # by whether the cache is full

    @torch.inference_mode()
    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits after reading the next ids: (B, T) int64 -> (B, V) float32.

        The first call reads the prompt, or its last `block_size` ids if it is longer; every later
        call reads one id.
        """
        ids = torch.from_numpy(idx[:, -self.model.block_size :])
        full = self.n_read >= self.model.block_size  # every slot holds a visible position
        if self.n_read and self.position.is_cuda:
            logits = self._replay(ids, full)
        else:
            logits = self._read(ids.to(self.position.device), full).float().cpu().numpy()
        self.n_read += ids.shape[1]
        return logits

    def _read(self, idx: Tensor, full: bool) -> Tensor:
        """Return the logits after `idx` and cache its keys and values: (B, T) -> (B, V).

        Apart from `full`, the position enters only through the contents of tensors, as capturing
        a CUDA graph requires.
        """
        model = self.model
        B, T = idx.shape  # noqa: N806
        positions = self.position + self.slots[:T]
        slots = positions % model.block_size
        mask = None
        if not full:
            seen = self.slots <= positions[:, None]  # (T, block size)
            mask = torch.where(seen, 0.0, -torch.inf).to(model.head.weight)
        cos_sin = None
        if model.rotary is not None:
            cos_sin = self.cos[positions], self.sin[positions]  # (T, 1, 1, D)

        x = model.token_embedding(idx)  # (B, T, C)
        if model.position_embedding is not None:
            x = x + model.position_embedding.weight[slots]
        for ngram in self.ngrams:
            x = x + ngram(idx, self.before)
        for block, norms, keys, values in zip(
            self.blocks, self.norms, self.keys, self.values, strict=True
        ):
            qkv = block.attention.qkv(block.attention_norm(x))
            qkv = qkv.view(B, T, 3, block.attention.n_head, -1)
            qk, v = qkv[:, :, :2], qkv[:, :, 2]  # (B, T, 2, H, D), (B, T, H, D)
            if norms is not None:
                qk = norms(qk)
            if cos_sin is not None:  # the same as `rotate`
                cos, sin = cos_sin
                qk = torch.addcmul(qk * cos, qk.roll(qk.shape[-1] // 2, dims=-1), sin)
            q, k = qk[:, :, 0], qk[:, :, 1]
            keys.index_copy_(2, slots, k.transpose(1, 2))
            values.index_copy_(2, slots, v.transpose(1, 2))
            y = attend(q.transpose(1, 2), keys, values, mask)
            x = x + block.attention.output(y.transpose(1, 2).reshape(B, T, -1))
            x = x + block.feed_forward(block.feed_forward_norm(x))

        self.position += T
        self.before.copy_(torch.cat((self.before, idx), dim=1)[:, T:])
        return model.logits(x[:, -1])

    def _replay(self, idx: Tensor, full: bool) -> np.ndarray:
        """Do what `_read` does for one id, by a CUDA graph that is captured on first use."""
        if not self.graphs:
            V = self.model.head.out_features  # noqa: N806
            self.idx = torch.empty_like(idx, pin_memory=True)
            self.logits = torch.empty(len(idx), V, dtype=torch.float32, pin_memory=True)
        self.idx.copy_(idx)
        if full not in self.graphs:
            self.graphs[full] = self._capture(full)
        self.graphs[full].replay()
        torch.cuda.current_stream(self.position.device).synchronize()
        return self.logits.numpy().copy()

    def _capture(self, full: bool) -> torch.cuda.CUDAGraph:
        """Capture `_read` from `self.idx` to `self.logits`, both in pinned CPU memory."""
        changed = (self.position, self.before)
        saved = [tensor.clone() for tensor in changed]
        device = self.position.device

        def step() -> None:
            logits = self._read(self.idx.to(device, non_blocking=True), full)
            self.logits.copy_(logits, non_blocking=True)

        # Keys and values need no undo: each warm-up run writes the slot that the replay writes.
        return capture(step, device, undo=lambda: torch._foreach_copy_(changed, saved))


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention output at each position: (B, H, T, D).

    torch's fused kernels parallelise over blocks of query positions; a single one takes explicit
    products instead.

    Args:
        mask: added to the scores: (T, block size); None if all positions are visible.
    """
    B, H, T, D = q.shape  # noqa: N806
    if T > 1:
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    q, k, v = (x.flatten(0, 1) for x in (q, keys, values))  # (B H, T, D)
    added, beta = (q[..., :1], 0) if mask is None else (mask, 1)  # beta=0: not even read
    scores = torch.baddbmm(added, q, k.mT, beta=beta, alpha=D**-0.5)  # (B H, 1, block size)
    return torch.bmm(F.softmax(scores, dim=-1), v).view(B, H, T, D)


class HeadNorms:
    """The query and key norms of a block, applied in one call."""

    def __init__(self, q_norm: Norm, k_norm: Norm) -> None:
        norm: Any = F.layer_norm if isinstance(q_norm, nn.LayerNorm) else F.rms_norm
        self.norm = partial(norm, normalized_shape=q_norm.normalized_shape, eps=q_norm.eps)
        self.gain = torch.stack((q_norm.weight, k_norm.weight))[:, None]  # (2, 1, D)
        shifts = [
            shift for n in (q_norm, k_norm) if (shift := getattr(n, "bias", None)) is not None
        ]
        self.shift = torch.stack(shifts)[:, None] if shifts else None

    @classmethod
    def of(cls, block: Block) -> "HeadNorms | None":
        """Return the norms of `block`, or None if it has none."""
        q_norm, k_norm = block.attention.q_norm, block.attention.k_norm
        return None if q_norm is None or k_norm is None else cls(q_norm, k_norm)

    def __call__(self, qk: Tensor) -> Tensor:
        """Normalise each head separately: (B, T, 2, H, D)."""
        normed: Tensor = self.norm(qk) * self.gain
        return normed if self.shift is None else normed + self.shift
