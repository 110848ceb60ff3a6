"""The teaching script's transformer, head by head: a reference for benchmarks and tests."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """One head of causal attention."""

    def __init__(self, n_embd: int, head_size: int, block_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.tril: Tensor
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))
        self.head_size = head_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, head size)"""
        T = x.shape[1]  # noqa: N806
        k, q, v = self.key(x), self.query(x), self.value(x)
        weights = q @ k.transpose(-2, -1) * self.head_size**-0.5
        weights = weights.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        gathered: Tensor = F.softmax(weights, dim=-1) @ v
        return gathered


class TeachingBlock(nn.Module):
    """Attention and feed-forward, each preceded by a LayerNorm."""

    def __init__(self, n_embd: int, n_head: int, block_size: int) -> None:
        super().__init__()
        head_size = n_embd // n_head
        self.heads = nn.ModuleList(Head(n_embd, head_size, block_size) for _ in range(n_head))
        self.projection = nn.Linear(n_embd, n_embd)
        self.feed_forward = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd)
        )
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        normed = self.ln1(x)
        x = x + self.projection(torch.cat([head(normed) for head in self.heads], dim=-1))
        added: Tensor = self.feed_forward(self.ln2(x))
        return x + added


class TeachingModel(nn.Module):
    """The teaching script's model."""

    def __init__(
        self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, n_embd)
        self.positions = nn.Embedding(block_size, n_embd)
        self.blocks = nn.ModuleList(
            TeachingBlock(n_embd, n_head, block_size) for _ in range(n_layer)
        )
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx: Tensor) -> Tensor:
        """Return logits: (B, T) int64 -> (B, T, V)."""
        x = self.tokens(idx) + self.positions(torch.arange(idx.shape[1], device=idx.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        return logits
