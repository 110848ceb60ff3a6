"""A transformer on a CPU, one id of one text at a time, with as little between as can be.

At these sizes most of a step in torch is not arithmetic: each of its hundred operations costs some
microseconds before it begins. numpy's cost a third of that, so here the step is written in numpy
over the same weights, prepared once: gains and shifts of norms are folded into the matrices that
follow them, matrices lie so that a row times one is a single call, and the dimensions that rotate
together lie side by side, which makes a rotation one multiplication of complex numbers.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litchar.generation.cached import CachedTransformer
from litchar.models import transformer
from litchar.models.transformer import Block, Transformer


class LeanTransformer:
    """Reads as a `CachedTransformer` does: the prompt with one, and the ids after it in numpy.

    Args:
        model: in evaluation mode, in float32 on the CPU.
    """

    def __init__(self, model: Transformer) -> None:
        self.cached = CachedTransformer(model, batch_size=1, max_ids=model.block_size)
        self.position = 0
        self.block_size = model.block_size
        self.logit_cap = model.logit_cap
        self.embedding = array(model.token_embedding.weight)
        self.position_embedding: np.ndarray | None = None
        self.frequencies: np.ndarray | None = None
        if model.position_embedding is not None:
            self.position_embedding = array(model.position_embedding.weight)
        if model.rotary is not None:
            self.frequencies = 1j * model.rotary.frequencies().numpy()  # (D / 2,)
        self.ngrams = [(n.rows, array(n.projection(n.table.weight))) for n in self.cached.ngrams]
        self.blocks = [LeanBlock(block, model.rotary is not None) for block in self.cached.blocks]
        self.norm = Norm(model.norm)
        self.head = Linear(model.head, after=model.norm)

    @torch.inference_mode()
    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits behind the next ids: (1, T) int64 -> (1, V) float32."""
        if self.position == 0:
            logits = self.cached.read(idx)
            for block, keys, values in zip(
                self.blocks, self.cached.keys, self.cached.values, strict=True
            ):
                block.take_over(keys[0], values[0])
            self.position = int(self.cached.position)
            return logits

        slot = self.position % self.block_size
        n_seen = min(self.position + 1, self.block_size)
        x: np.ndarray = self.embedding[idx[0, 0]]  # (C,)
        if self.ngrams:
            next_id, before = torch.from_numpy(idx), self.cached.before
            for rows, table in self.ngrams:
                x = x + table[rows(next_id, before)[0, 0]]
            self.cached.before = torch.cat((before, next_id), dim=1)[:, 1:]
        rotation = None
        if self.position_embedding is not None:
            x = x + self.position_embedding[slot]
        if self.frequencies is not None:
            rotation = np.exp(self.position * self.frequencies).astype(np.complex64)
        for block in self.blocks:
            x = block(x, rotation, slot, n_seen)

        logits = self.head(self.norm(x))
        if self.logit_cap is not None:
            logits = self.logit_cap * np.tanh(logits / self.logit_cap)
        self.position += 1
        return logits[None]


class LeanBlock:
    """A block of the transformer, for one position."""

    def __init__(self, block: Block, rotary: bool) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self.n_head = attention.n_head
        head_size = attention.qkv.in_features // self.n_head
        self.scale = head_size**-0.5
        # Dimensions i and i + D / 2 rotate together: in queries and keys they become neighbours.
        # A score is a sum over dimensions and does not change with their order.
        order = torch.arange(head_size)
        if rotary:
            order = order.view(2, -1).T.flatten()
        self.order = order
        rows = torch.arange(3 * attention.qkv.in_features).view(3, self.n_head, head_size)
        rows = torch.cat((rows[:2, :, order], rows[2:])).flatten()

        self.attention_norm = Norm(block.attention_norm)
        self.qkv = Linear(attention.qkv, after=block.attention_norm, rows=rows)
        self.qk_norm: Norm | None = None
        self.shift: np.ndarray | None = None
        if attention.q_norm is not None and attention.k_norm is not None:
            norms = (attention.q_norm, attention.k_norm)
            self.qk_norm = Norm(attention.q_norm)
            self.gain = array(torch.stack([norm.weight[order] for norm in norms])[:, None])
            shifts: list[Any] = [getattr(norm, "bias", None) for norm in norms]
            if shifts[0] is not None:
                self.shift = array(torch.stack([shift[order] for shift in shifts])[:, None])
        self.output = Linear(attention.output)
        self.feed_forward_norm = Norm(block.feed_forward_norm)
        self.pointwise = feed_forward.pointwise
        self.feed_forward_input = Linear(feed_forward.input, after=block.feed_forward_norm)
        self.feed_forward_output = Linear(feed_forward.output)

    def take_over(self, keys: Tensor, values: Tensor) -> None:
        """Go on with what a prompt has left in the cache: (H, T, D) each."""
        self.keys, self.values = array(keys[..., self.order]), array(values)

    def __call__(
        self, x: np.ndarray, rotation: np.ndarray | None, slot: int, n_seen: int
    ) -> np.ndarray:
        """Return the residual stream after the block: (C,) -> (C,)."""
        qkv = self.qkv(self.attention_norm(x)).reshape(3, self.n_head, -1)
        qk = qkv[:2]  # (2, H, D)
        if self.qk_norm is not None:
            qk = self.qk_norm.heads(qk) * self.gain
            if self.shift is not None:
                qk += self.shift
        if rotation is not None:
            qk = (qk.view(np.complex64) * rotation).view(np.float32)
        self.keys[:, slot] = qk[1]
        self.values[:, slot] = qkv[2]
        scores = (self.keys[:, :n_seen] @ (qk[0] * self.scale)[:, :, None])[:, None, :, 0]
        weights = np.exp(scores - scores.max(-1, keepdims=True))  # (H, 1, T)
        y = weights @ self.values[:, :n_seen] / weights.sum(-1, keepdims=True)
        x = x + self.output(y.reshape(-1))

        hidden: np.ndarray = self.feed_forward_input(self.feed_forward_norm(x))
        if self.pointwise is None:
            gate, linear = hidden[: hidden.size // 2], hidden[hidden.size // 2 :]
            hidden = F.silu(torch.from_numpy(gate)).numpy() * linear
        else:
            hidden = self.pointwise(torch.from_numpy(hidden)).numpy()
        after: np.ndarray = x + self.feed_forward_output(hidden)
        return after


class Linear:
    """A linear layer for one row, which takes over the gain and shift of the norm before it."""

    def __init__(
        self,
        layer: nn.Linear,
        after: transformer.Norm | None = None,
        rows: Tensor | None = None,
    ) -> None:
        weight: Tensor = layer.weight
        bias: Tensor | None = layer.bias
        shift = getattr(after, "bias", None)
        if shift is not None:
            bias = weight @ shift + (0 if bias is None else bias)
        if after is not None:
            weight = weight * after.weight
        if rows is not None:
            weight, bias = weight[rows], None if bias is None else bias[rows]
        self.weight = array(weight.T)
        self.bias = None if bias is None else array(bias)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(in,) -> (out,)"""
        y: np.ndarray = x @ self.weight
        return y if self.bias is None else y + self.bias


class Norm:
    """RMSNorm or LayerNorm, without gain and shift."""

    def __init__(self, norm: transformer.Norm) -> None:
        self.eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
        self.centred = isinstance(norm, nn.LayerNorm)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(C,) -> (C,)"""
        if self.centred:
            x = x - x.mean()
        return x * (1 / math.sqrt(x.dot(x) / x.size + self.eps))

    def heads(self, x: np.ndarray) -> np.ndarray:
        """Norm each row by itself: (..., D) -> (..., D)."""
        if self.centred:
            x = x - x.mean(-1, keepdims=True)
        mean_square = np.einsum("...d,...d->...", x, x)[..., None] / x.shape[-1]
        normed: np.ndarray = x / np.sqrt(mean_square + self.eps)
        return normed


def array(tensor: Tensor) -> np.ndarray:
    """Return a contiguous copy of `tensor`, in 64-byte aligned memory as torch allots it."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).numpy()
