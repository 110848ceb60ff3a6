"""Regularisation by randomness: dropout that draws few random numbers, and input noise."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al., 2014) with the faster masks of `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout to `x`, of any shape, in training; return it as it is otherwise."""
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element of `x` with probability p and scale the rest by 1 / (1 - p).

    `F.dropout` draws a random number per element, on a CPU one after the other, and spends most of
    its time there. Here one random word serves four elements, or all of them in a compiled model.
    """
    if not p:
        return x
    if torch.compiler.is_compiling():
        return _by_hash(x, p)
    return _by_sixteen_bits(x, p) if x.is_cpu else F.dropout(x, p)


def _by_sixteen_bits(x: Tensor, p: float) -> Tensor:
    """Apply dropout with 16 random bits per element, four elements per 64-bit word. This rounds p
    by at most 1 in 131,072; the scale is that of the rounded p."""
    choices = 1 << 16
    dropped = min(round(p * choices), choices - 1)
    if not dropped:
        return x
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform in [-32768, 32767]
    least = dropped - choices // 2
    kept = bits.clamp(least - 1, least).sub_(least - 1)  # 0 or 1, in fewer passes than >=
    return x * kept.to(x.dtype).mul_(choices / (choices - dropped))


def _by_hash(x: Tensor, p: float) -> Tensor:
    """Apply dropout with a mask hashed from each element's index and one random word. The compiler
    fuses these few integer operations into the kernel that reads `x`, and saves the mask for the
    backward pass or recomputes it."""
    word = torch.randint(1 << 31, (1,), dtype=torch.int32, device=x.device)[0]
    place = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
    kept = (mixed(place, word) & 0x7FFFFFFF) >= round(p * (1 << 31))
    return torch.where(kept, x * (1 / (1 - p)), 0.0)


def mixed(place: Tensor, word: Tensor) -> Tensor:
    """Return a pseudorandom hash of each place, seeded by `word`: int32, any shape.

    The hash is lowbias32 (Wellons, "Prospecting for hash functions", 2018). The place is first
    multiplied by the golden ratio, so that no two words give shifted copies of one sequence.
    """
    bits = place ^ (place >> 16)  # else the compiler mistakes the products for memory indices
    bits = (bits * (0x9E3779B9 - (1 << 32))) ^ word  # constants as signed 32-bit integers
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * (0x846CA68B - (1 << 32))
    return bits ^ (bits >> 16)


def noised(idx: Tensor, p: float, vocab_size: int) -> Tensor:
    """Replace each id by a uniformly random one with probability p: (B, T) int64.

    The model can then rely on no single input token, nor memorise the text (Xie et al., "Data
    noising as smoothing in neural network language models", 2017).
    """
    replaced = torch.rand(idx.shape, device=idx.device) < p
    return torch.where(replaced, torch.randint_like(idx, vocab_size), idx)
