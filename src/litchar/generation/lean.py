"""Fast decoding on a CPU: a transformer's single-token step in numpy.

At these sizes a step in torch is mostly overhead: each of its hundred operations costs some
microseconds before it begins. In numpy that is a third, so this module repeats the step in numpy,
with weights prepared once: norm gains and shifts are folded into the matrices that follow,
matrices are laid out so that row @ matrix is a single call, and the dimensions that rotate together
are adjacent, which makes a rotation one complex multiplication.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litchar.generation.cached import CachedTransformer
from litchar.models.transformer import Block, NGramEmbedding, Norm, Transformer


class LeanTransformer:
    """A transformer's weights, prepared once and shared by any number of texts.

    Args:
        model: in evaluation mode, in float32 on the CPU.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.logit_cap = model.logit_cap
        self.embedding = array(model.token_embedding.weight)
        self.position_embedding: np.ndarray | None = None
        self.frequencies: np.ndarray | None = None
        if model.position_embedding is not None:
            self.position_embedding = array(model.position_embedding.weight)
        if model.rotary is not None:
            self.frequencies = 1j * model.rotary.frequencies().numpy()  # (D / 2,)
        ngrams = cast(list[NGramEmbedding], list(model.ngrams))
        blocks = cast(list[Block], list(model.blocks))
        self.ngrams = [(n.rows, array(n.projection(n.table.weight))) for n in ngrams]
        self.blocks = [LeanBlock(block, model.rotary is not None) for block in blocks]
        self.norm = LeanNorm(model.norm)
        self.head = LeanLinear(model.head, after=model.norm)

    @torch.inference_mode()
    def step(self, readers: Sequence["LeanReader"], ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the logits after the next id of each text: (1, 1) int64 -> (1, V) float32.

        All texts go through a block before the next block, so that its weights are read from memory
        once and from the CPU's cache for the other texts. The arithmetic of each text is exactly
        that of a text on its own.
        """
        rows = [reader.begin(idx) for reader, idx in zip(readers, ids, strict=True)]
        for i, block in enumerate(self.blocks):
            for row, reader in zip(rows, readers, strict=True):
                row.x = block(row, *reader.cache[i])
        all_logits = []
        for row, reader in zip(rows, readers, strict=True):
            logits = self.head(self.norm(row.x))
            if self.logit_cap is not None:
                logits = self.logit_cap * np.tanh(logits / self.logit_cap)
            reader.position += 1
            all_logits.append(logits[None])
        return all_logits


class LeanReader:
    """Reads one text: the prompt with a `CachedTransformer`, the ids after it in numpy."""

    def __init__(self, lean: LeanTransformer) -> None:
        self.lean = lean
        self.position = 0
        self.cache: list[tuple[np.ndarray, np.ndarray]] = []  # keys and values of each block
        self.before = torch.empty(0)  # the last ids, for n-grams

    @torch.inference_mode()
    def read(self, idx: np.ndarray) -> np.ndarray:
        """Return the logits after reading the next ids: (1, T) int64 -> (1, V) float32."""
        lean = self.lean
        block_size = lean.model.block_size
        if self.position == 0:
            cached = CachedTransformer(lean.model, batch_size=1, max_ids=block_size)
            logits = cached.read(idx)
            layers = zip(lean.blocks, cached.keys, cached.values, strict=True)
            self.cache = [block.take_over(k[0], v[0]) for block, k, v in layers]
            self.position, self.before = int(cached.position), cached.before
            return logits

        return lean.step([self], [idx])[0]

    def begin(self, idx: np.ndarray) -> "Row":
        """Return the input of the first block for the next id: (1, 1) int64."""
        lean, block_size = self.lean, self.lean.model.block_size
        slot = self.position % block_size
        x: np.ndarray = lean.embedding[idx[0, 0]]  # (C,)
        if lean.ngrams:
            next_id, before = torch.from_numpy(idx), self.before
            for rows, table in lean.ngrams:
                x = x + table[rows(next_id, before)[0, 0]]
            self.before = torch.cat((before, next_id), dim=1)[:, 1:]
        rotation = None
        if lean.position_embedding is not None:
            x = x + lean.position_embedding[slot]
        if lean.frequencies is not None:
            rotation = np.exp(self.position * lean.frequencies).astype(np.complex64)
        return Row(x, rotation, slot, n_seen=min(self.position + 1, block_size))


@dataclass
class Row:
    """The newest position of a text on its way through the blocks.

    Attributes:
        x: the residual stream: (C,)
        rotation: cos + i sin of its rotary angles: (D / 2,) complex64, or None
        slot: the cache slot that it is written to.
        n_seen: how many positions it attends to.
    """

    x: np.ndarray
    rotation: np.ndarray | None
    slot: int
    n_seen: int


class LeanBlock:
    """A block of the transformer, for one position."""

    def __init__(self, block: Block, rotary: bool) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self.n_head = attention.n_head
        head_size = attention.qkv.in_features // self.n_head
        self.scale = head_size**-0.5
        # Dimensions i and i + D / 2 rotate together: make them adjacent in queries and keys. The
        # scores are dot products and do not depend on the order of dimensions.
        order = torch.arange(head_size)
        if rotary:
            order = order.view(2, -1).T.flatten()
        self.order = order
        rows = torch.arange(3 * attention.qkv.in_features).view(3, self.n_head, head_size)
        rows = torch.cat((rows[:2, :, order], rows[2:])).flatten()

        self.attention_norm = LeanNorm(block.attention_norm)
        self.qkv = LeanLinear(attention.qkv, after=block.attention_norm, rows=rows)
        self.qk_norm: LeanNorm | None = None
        self.shift: np.ndarray | None = None
        if attention.q_norm is not None and attention.k_norm is not None:
            norms = (attention.q_norm, attention.k_norm)
            self.qk_norm = LeanNorm(attention.q_norm)
            self.gain = array(torch.stack([norm.weight[order] for norm in norms])[:, None])
            shifts: list[Any] = [getattr(norm, "bias", None) for norm in norms]
            if shifts[0] is not None:
                self.shift = array(torch.stack([shift[order] for shift in shifts])[:, None])
        self.output = LeanLinear(attention.output)
        self.feed_forward_norm = LeanNorm(block.feed_forward_norm)
        self.pointwise = feed_forward.pointwise
        self.feed_forward_input = LeanLinear(feed_forward.input, after=block.feed_forward_norm)
        self.feed_forward_output = LeanLinear(feed_forward.output)

    def take_over(self, keys: Tensor, values: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return this block's cache after the prompt, in its layout: (H, block size, D) each."""
        return array(keys[..., self.order]), array(values)

    def __call__(self, row: Row, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return the residual stream after the block: (C,).

        Args:
            keys: the text's cache, like `values`: (H, block size, D); the row's own are added.
        """
        x, slot, n_seen = row.x, row.slot, row.n_seen
        qkv = self.qkv(self.attention_norm(x)).reshape(3, self.n_head, -1)
        qk = qkv[:2]  # (2, H, D)
        if self.qk_norm is not None:
            qk = self.qk_norm.heads(qk) * self.gain
            if self.shift is not None:
                qk += self.shift
        if row.rotation is not None:
            qk = (qk.view(np.complex64) * row.rotation).view(np.float32)
        keys[:, slot] = qk[1]
        values[:, slot] = qkv[2]
        scores = (keys[:, :n_seen] @ (qk[0] * self.scale)[:, :, None])[:, None, :, 0]
        weights = np.exp(scores - scores.max(-1, keepdims=True))  # (H, 1, T)
        y = weights @ values[:, :n_seen] / weights.sum(-1, keepdims=True)
        x = x + self.output(y.reshape(-1))

        hidden: np.ndarray = self.feed_forward_input(self.feed_forward_norm(x))
        if self.pointwise is None:
            gate, linear = hidden[: hidden.size // 2], hidden[hidden.size // 2 :]
            hidden = F.silu(torch.from_numpy(gate)).numpy() * linear
        else:
            hidden = self.pointwise(torch.from_numpy(hidden)).numpy()
        after: np.ndarray = x + self.feed_forward_output(hidden)
        return after


class LeanLinear:
    """A linear layer for one row, with the gain and shift of the preceding norm folded in."""

    def __init__(
        self,
        layer: nn.Linear,
        after: Norm | None = None,
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
        """Apply the layer: (in,) -> (out,)."""
        y: np.ndarray = x @ self.weight
        return y if self.bias is None else y + self.bias


class LeanNorm:
    """RMSNorm or LayerNorm without gain and shift, which `LeanLinear` takes over."""

    def __init__(self, norm: Norm) -> None:
        self.eps = norm.eps
        self.centred = isinstance(norm, nn.LayerNorm)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Normalise one row: (C,) -> (C,)."""
        if self.centred:
            x = x - x.mean()
        return x * (1 / math.sqrt(x.dot(x) / x.size + self.eps))

    def heads(self, x: np.ndarray) -> np.ndarray:
        """Normalise each row separately: (..., D) -> (..., D)."""
        if self.centred:
            x = x - x.mean(-1, keepdims=True)
        mean_square = np.einsum("...d,...d->...", x, x)[..., None] / x.shape[-1]
        normed: np.ndarray = x / np.sqrt(mean_square + self.eps)
        return normed


def array(tensor: Tensor) -> np.ndarray:
    """Return a contiguous copy of `tensor` in memory that torch allocated, 64-byte aligned."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).numpy()
