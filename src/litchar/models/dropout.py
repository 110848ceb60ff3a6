"""What training takes away or spoils, for few random numbers: dropout, and noise in the input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """In training, sets a share p of what passes to 0 (Srivastava et al., 2014), see `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop some of `x`: any shape."""
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """Return `x` with a share p of its numbers at 0 and the others scaled up by 1 / (1 - p).

    torch's own form draws a random number for each, on a CPU one after the other, which is most of
    what it takes. Here one serves four, and in a compiled model, all.
    """
    if not p:
        return x
    if torch.compiler.is_compiling():
        return _by_hash(x, p)
    return _by_sixteen_bits(x, p) if x.is_cpu else F.dropout(x, p)


def _by_sixteen_bits(x: Tensor, p: float) -> Tensor:
    """Drop by random words of 64 bits, each of which serves four numbers: p is met within 1 in
    131,072. What is kept is scaled by the share that is really met."""
    choices = 1 << 16
    dropped = min(round(p * choices), choices - 1)
    if not dropped:
        return x
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform from -32768 on
    least = dropped - choices // 2
    kept = bits.clamp(least - 1, least).sub_(least - 1)  # 0 or 1, in fewer passes than by >=
    return x * kept.to(x.dtype).mul_(choices / (choices - dropped))


def _by_hash(x: Tensor, p: float) -> Tensor:
    """Drop by a hash of each number's place and one random word: a few integer operations, which
    the compiler puts into the kernel that reads `x`; for the backward pass it keeps what they say,
    or does them again."""
    word = torch.randint(1 << 31, (1,), dtype=torch.int32, device=x.device)[0]
    place = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
    kept = (mixed(place, word) & 0x7FFFFFFF) >= round(p * (1 << 31))
    return torch.where(kept, x * (1 / (1 - p)), 0.0)


def mixed(place: Tensor, word: Tensor) -> Tensor:
    """Return numbers that look drawn at random, for each place and word: int32, any shape.

    The hash is lowbias32 (Wellons, "Prospecting for hash functions", 2018), of the place times
    the golden ratio, so that no two words give the same sequence moved along.
    """
    bits = place ^ (place >> 16)  # or the compiler takes the products for an index of memory
    bits = (bits * (0x9E3779B9 - (1 << 32))) ^ word  # as numbers with a sign
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * (0x846CA68B - (1 << 32))
    return bits ^ (bits >> 16)


def noised(idx: Tensor, p: float, vocab_size: int) -> Tensor:
    """Return ids of which a share p is replaced by random ones: (B, T) int64.

    What is to come can then not be told from any one of them, and not be learnt by heart (Xie et
    al., "Data noising as smoothing in neural network language models", 2017).
    """
    replaced = torch.rand(idx.shape, device=idx.device) < p
    return torch.where(replaced, torch.randint_like(idx, vocab_size), idx)
