"""A transformer that keeps keys and values, on any device."""

from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litchar.device import capture
from litchar.models.transformer import Block, NGramEmbedding, Norm, Transformer


class CachedTransformer:
    """Reads a prompt, then one id at a time, against the keys and values of what came before.

    The cache is allocated once, for `block_size` positions. With rotary positions it rolls: when
    it is full, the newest position takes the place of the oldest. A position then sees the
    `block_size` positions up to its own, each as it was computed when it was read, which is
    attention under a sliding window (Beltagy et al., 2020). Scores depend on relative positions
    alone, so that keys are stored rotated and need no further touch. Learned positions cannot
    roll: `CropReader` takes over when the context is full.

    On an NVIDIA GPU the step of one id is captured once as a CUDA graph and then replayed; and once
    more when the cache is full, as attention then needs no mask. What such a step takes is the
    number of its operations, which are some microseconds each, and hardly what they compute:
    queries and keys go through theirs together.

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
            self.cos, self.sin = (table.to(weight)[:, None] for table in tables)  # (N, 1, 1, D)
        self.norms = [HeadNorms.of(block) for block in self.blocks]
        self.n_read = 0
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}  # with the cache full, and before

    @torch.inference_mode()
    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits behind the next ids: (B, T) int64 -> (B, V) float32.

        Of a prompt longer than the context its last `block_size` ids are read; after it comes one
        id at a time.
        """
        ids = torch.from_numpy(idx[:, -self.model.block_size :])
        full = self.n_read >= self.model.block_size  # all slots are seen
        if self.n_read and self.position.is_cuda:
            logits = self._replay(ids, full)
        else:
            logits = self._read(ids.to(self.position.device), full).float().cpu().numpy()
        self.n_read += ids.shape[1]
        return logits

    def _read(self, idx: Tensor, full: bool) -> Tensor:
        """Return the logits behind `idx`, and keep its keys and values: (B, T) -> (B, V).

        But for `full`, nothing depends on where it stands but the content of tensors, as the
        capture of a graph asks for.
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
            if cos_sin is not None:  # as `rotate` does
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
        """Do as `_read` does for one id, captured the first time and replayed from then on."""
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
        """Capture `_read` of `self.idx` into `self.logits`, both in the CPU's memory."""
        changed = (self.position, self.before)
        saved = [tensor.clone() for tensor in changed]
        device = self.position.device

        def step() -> None:
            logits = self._read(self.idx.to(device, non_blocking=True), full)
            self.logits.copy_(logits, non_blocking=True)

        # What else it changes, keys and values, each turn writes where the replay will write.
        return capture(step, device, undo=lambda: torch._foreach_copy_(changed, saved))


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Return what each position gathers: (B, H, T, D).

    torch's kernels share out the work among blocks of positions. Where there is one, products do.

    Args:
        mask: added to the scores: (T, block size)
    """
    B, H, T, D = q.shape  # noqa: N806
    if T > 1:
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    q, k, v = (x.flatten(0, 1) for x in (q, keys, values))  # (B H, T, D)
    added, beta = (q[..., :1], 0) if mask is None else (mask, 1)  # by 0 it is not even read
    scores = torch.baddbmm(added, q, k.mT, beta=beta, alpha=D**-0.5)  # (B H, 1, block size)
    return torch.bmm(F.softmax(scores, dim=-1), v).view(B, H, T, D)


class HeadNorms:
    """The norms of a block's queries and keys, both at once."""

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
        """Return those of a block, if it has any."""
        q_norm, k_norm = block.attention.q_norm, block.attention.k_norm
        return None if q_norm is None or k_norm is None else cls(q_norm, k_norm)

    def __call__(self, qk: Tensor) -> Tensor:
        """Norm each head by itself: (B, T, 2, H, D)."""
        normed: Tensor = self.norm(qk) * self.gain
        return normed if self.shift is None else normed + self.shift
