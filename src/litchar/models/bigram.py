"""The bigram model: the next character depends on the last one alone."""

from torch import Tensor, nn


class Bigram(nn.Module):
    """A table whose row c holds the logits of the character that follows c.

    Args:
        vocab_size: V, the number of distinct characters.
        block_size: T, the longest input; it changes no logit.
    """

    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.block_size = block_size
        self.next_logits = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx: Tensor) -> Tensor:
        """Return logits: (B, T) int64 -> (B, T, V)."""
        logits: Tensor = self.next_logits(idx)
        return logits
