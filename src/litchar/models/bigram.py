"""The bigram model: the next token depends only on the current one."""

from torch import Tensor, nn


class Bigram(nn.Module):
    """A V x V table whose row c holds the logits of the token after token c.

    Args:
        vocab_size: V, the vocabulary size.
        block_size: T, the context length; no logit depends on it.
    """

    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.block_size = block_size
        self.next_logits = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx: Tensor) -> Tensor:
        """Return logits: (B, T) int64 -> (B, T, V)."""
        logits: Tensor = self.next_logits(idx)
        return logits
