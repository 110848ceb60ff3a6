"""Recurrent models: torch's own layers between an embedding and a head."""

import torch
from torch import Tensor, nn

from litchar.models.checks import check_choice, check_shares, check_sizes
from litchar.models.dropout import Dropout

State = Tensor | tuple[Tensor, Tensor]  # (layers, B, C): a GRU's; an LSTM's, and its cells'


class Recurrent(nn.Module):
    """A gated recurrent unit or a long short-term memory, read character by character.

    Training starts each window from a state of zeros; `step` carries the state on, so that a text
    is written with a memory that no block size bounds.

    Args:
        vocab_size: V, the number of distinct characters.
        block_size: T, the length of a window in training; it changes no weight.
        n_layer: layers, one on top of the other.
        n_embd: C, the width of embeddings and states.
        dropout: of embeddings, of what passes from layer to layer, and of what the head reads.
        cell: `gru` (Cho et al., 2014) or `lstm` (Hochreiter and Schmidhuber, 1997).

    Raises:
        ValueError: a setting is unfit; the message names it.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int,
        n_embd: int,
        *,
        dropout: float = 0.0,
        cell: str = "gru",
    ) -> None:
        super().__init__()
        check_sizes(n_layer=n_layer, n_embd=n_embd)
        check_choice("cell", cell, ("gru", "lstm"))
        check_shares(dropout=dropout)
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.dropout = Dropout(dropout)
        layers = nn.GRU if cell == "gru" else nn.LSTM
        between = dropout if n_layer > 1 else 0.0  # torch warns where there is nothing between
        self.layers = layers(n_embd, n_embd, n_layer, dropout=between, batch_first=True)
        self.head = nn.Linear(n_embd, vocab_size)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the initial weights.

        Weights from input to gates have variance 1 / C, those from state to each gate are
        orthogonal (Saxe et al., 2014). Biases begin at 0, and at 1 for an LSTM's forget gates
        (Jozefowicz et al., 2015). The head begins at 0: every character is equally likely.
        """
        width = self.layers.hidden_size
        for name, p in self.layers.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.normal_(p, std=width**-0.5)
            elif name.startswith("weight_hh"):
                for gate in torch.split(p, width):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.zeros_(p)
                if isinstance(self.layers, nn.LSTM) and name.startswith("bias_ih"):
                    p[width : 2 * width] = 1.0
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, idx: Tensor) -> Tensor:
        """Return logits: (B, T) int64 -> (B, T, V)."""
        return self.step(idx)[0]

    def step(self, idx: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return logits and the state behind `idx`, given the state before it.

        Args:
            idx: (B, T) int64
            state: what `step` returned for the ids before, or None at the beginning of a text.
        """
        hidden, state = self.layers(self.dropout(self.token_embedding(idx)), state)
        return self.head(self.dropout(hidden)), state  # (B, T, V)
