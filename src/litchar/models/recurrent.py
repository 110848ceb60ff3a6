"""Recurrent models: torch's GRU or LSTM between an embedding and a linear head."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from litchar.models.checks import check_choice, check_shares, check_sizes
from litchar.models.dropout import Dropout

State = Tensor | tuple[Tensor, Tensor]  # GRU: h; LSTM: (h, c); each (layers, B, C)


class Recurrent(nn.Module):
    """A character-level recurrent language model: a stack of GRU or LSTM layers.

    Training starts every window from a zero state. `step` carries the state from call to call, so
    that in generation the memory is not bounded by the block size.

    Args:
        vocab_size: V, the vocabulary size.
        block_size: T, the length of a training window; no weight depends on it.
        n_layer: number of stacked layers.
        n_embd: C, the width of embeddings and hidden states.
        dropout: probability, for the embeddings, between layers and before the head.
        cell: `gru` (Cho et al., 2014) or `lstm` (Hochreiter and Schmidhuber, 1997).

    Raises:
        ValueError: a setting is invalid; the message names it.
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
        between = dropout if n_layer > 1 else 0.0  # torch warns about dropout with one layer
        self.layers = layers(n_embd, n_embd, n_layer, dropout=between, batch_first=True)
        self.head = nn.Linear(n_embd, vocab_size)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise the weights.

        Input-to-gate weights are normal with variance 1 / C; state-to-gate weights are orthogonal,
        gate by gate (Saxe et al., 2014). Biases start at 0, an LSTM's forget gates at 1 (Jozefowicz
        et al., 2015). The head starts at 0, so that every token is equally likely.
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
        """Return logits, starting from a zero state: (B, T) int64 -> (B, T, V)."""
        return self.step(idx)[0]

    def step(self, idx: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the logits, (B, T, V), and the state after reading `idx`.

        Args:
            idx: (B, T) int64
            state: the state that `step` returned for the preceding ids, or None to start a text.
        """
        embedded = self.dropout(self.token_embedding(idx))
        # Under autocast, even to bfloat16, cuDNN would compute in float16, in which gradients
        # vanish unless the loss is scaled.
        as_they_are = torch.autocast("cuda", enabled=False) if idx.is_cuda else nullcontext()
        with as_they_are:
            hidden, state = self.layers(embedded, state)
        return self.head(self.dropout(hidden)), state
