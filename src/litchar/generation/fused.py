"""Fast decoding on a GPU: a transformer's step for one position, mostly in Triton.

A block takes five kernels of `litchar.generation.kernels`; for many texts only attention is one of
them, and torch does the rest.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from triton import next_power_of_2

from litchar.generation import kernels
from litchar.models.transformer import CausalSelfAttention, FeedForward, Norm

if TYPE_CHECKING:
    from litchar.generation.cached import CachedTransformer

# Measured on an H200: the fastest of those tried for 10.7M parameters and 256 cached positions.
MOST_ROWS = 32  # cuBLAS multiplies more rows than that faster than `kernels.linear`
TILE = 4096  # weights that a program of `kernels.linear` loads; it goes for cached keys, too


class FusedStep:
    """A transformer's step for the next id of each text, given the cache of the ids before.

    Args:
        device: a GPU that Triton supports; the model's weights are float32.
    """

    def __init__(self, device: torch.device) -> None:
        nvidia = device.type == "cuda" and torch.version.hip is None
        overlap = nvidia and torch.cuda.get_device_capability(device) >= (9, 0)
        self.launch = {"PDL": True, "launch_pdl": True} if overlap else {"PDL": False}

    def __call__(self, x: Tensor, cache: "CachedTransformer") -> Tensor:
        """Return the logits for the next id, and cache this one's keys and values.

        Args:
            x: the embeddings: (B, C) -> (B, V)
        """
        for block, keys, values in zip(cache.blocks, cache.keys, cache.values, strict=True):
            attention, feed_forward = block.attention, block.feed_forward
            qkv = self.linear(x, attention.qkv, norm=block.attention_norm)
            y = self.attend(qkv, attention, keys, values, cache)
            x = self.linear(y, attention.output, added=x)
            hidden = self.linear(x, feed_forward.input, norm=block.feed_forward_norm)
            x = self.linear(hidden, feed_forward.output, activated_by=feed_forward, added=x)
        logits = self.linear(x, cache.model.head, norm=cache.model.norm)
        cap = cache.model.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def linear(
        self,
        x: Tensor,
        layer: nn.Linear,
        *,
        norm: Norm | None = None,
        activated_by: FeedForward | None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        """Return `layer(x) + added`, with x first normalised or activated: (B, in) -> (B, out)."""
        if len(x) > MOST_ROWS:
            x = x if norm is None else norm(x)
            y: Tensor = layer(x if activated_by is None else activated_by.activate(x))
            return y if added is None else added + y
        N, C = layer.weight.shape  # noqa: N806
        y = x.new_empty(len(x), N)
        width = next_power_of_2(C)
        rows = max(1, TILE // width)
        kernels.linear[(-(-N // rows), len(x))](
            x,
            *gain_and_shift(norm),
            layer.weight,
            layer.bias,
            added,
            y,
            0.0 if norm is None else norm.eps,
            C,
            N,
            NORM=kind(norm),
            ACTIVATION="none" if activated_by is None else activated_by.activation,
            BLOCK_N=rows,
            BLOCK_C=width,
            num_warps=4,
            **self.launch,
        )
        return y

    def attend(
        self,
        qkv: Tensor,
        attention: CausalSelfAttention,
        keys: Tensor,
        values: Tensor,
        cache: "CachedTransformer",
    ) -> Tensor:
        """Return the attention output, before its projection: (B, 3 C) -> (B, C)."""
        B, H, T, D = keys.shape  # noqa: N806
        norm = attention.q_norm
        y = qkv.new_empty(B, H * D)
        width = next_power_of_2(D)
        few = B <= MOST_ROWS  # then a program may take all of a multiprocessor
        part = min(next_power_of_2(T), max(1, (4 * TILE if few else TILE) // width))
        kernels.attention[(B, H)](
            qkv,
            *gain_and_shift(norm),
            *gain_and_shift(attention.k_norm),
            cache.cos,
            cache.sin,
            cache.position,
            keys,
            values,
            y,
            0.0 if norm is None else norm.eps,
            H,
            T,
            D,
            NORM=kind(norm),
            UNROLLED=min(T, 4 * part),
            BLOCK_T=part,
            BLOCK_D=width,
            num_warps=8 if few else 4,
            **self.launch,
        )
        return y

    def sample(
        self,
        logits: Tensor,
        uniform: Tensor,
        temperature: Tensor,
        position: Tensor,
        idx: Tensor,
        ids: Tensor,
        kept: Tensor,
    ) -> None:
        """Sample the next id of each text, see `kernels.sample`.

        Args:
            logits: (B, V)
            uniform: numbers in [0, 1): (N, B) float64
            temperature: () float64
            position: how many ids have been read: () int64
            idx: receives the ids: (B, 1) int64
            ids: its entry `position % N` receives the ids, too: (N, B) int64
            kept: likewise the logits: (N, B, V)
        """
        N, B, V = kept.shape  # noqa: N806
        width = next_power_of_2(V)
        kernels.sample[(B,)](
            logits,
            uniform,
            temperature,
            position,
            idx,
            ids,
            kept,
            B,
            N,
            V,
            BLOCK_V=width,
            num_warps=min(16, max(1, width // 128)),
            **self.launch,
        )


def kind(norm: Norm | None) -> str:
    """Return the name of a norm."""
    return "none" if norm is None else "rms" if isinstance(norm, nn.RMSNorm) else "layer"


def gain_and_shift(norm: Norm | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the parameters of a norm, as far as it has them."""
    return (None, None) if norm is None else (norm.weight, getattr(norm, "bias", None))
