"""Dropout, for the cost of a quarter of the random numbers where a CPU draws them."""

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

    torch's own form draws a random number for each on a CPU, most of the time one after the other.
    Here one of 64 bits serves four: each is dropped by 16 of them, so that p is met within 1 in
    131,072. What is kept is scaled by the share that is really met.
    """
    if not x.is_cpu:
        return F.dropout(x, p)
    choices = 1 << 16
    dropped = min(round(p * choices), choices - 1)
    if not dropped:
        return x
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform from -32768 on
    kept = (bits >= dropped - choices // 2).to(x.dtype)
    return x * kept.mul_(choices / (choices - dropped))
