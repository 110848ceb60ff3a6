"""The transformer: a causal, pre-norm decoder that ranges from the teaching script to Qwen3."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litchar.models.checks import (
    MOST_BUFFER_BYTES,
    check_choice,
    check_flags,
    check_not_negative,
    check_positive,
    check_shares,
    check_sizes,
)
from litchar.models.dropout import Dropout, dropout, noised

Norm = nn.RMSNorm | nn.LayerNorm


class Transformer(nn.Module):
    """A character-level transformer language model (Vaswani et al., 2017; pre-norm).

    The defaults follow Qwen3: RMSNorm, per-head RMSNorm of queries and keys before the rotary
    embedding, SwiGLU, no biases. Other options reproduce GPT-2 and the teaching script, or train
    faster.

    Args:
        vocab_size: V, the vocabulary size.
        block_size: T, the maximum context length.
        n_layer: number of blocks.
        n_head: number of attention heads per block.
        n_embd: C, the width of the residual stream; a multiple of `n_head`.
        dropout: probability, for embeddings, attention weights and the output of each sublayer.
        noise: probability that an input token is replaced in training, see `noised`.
        position: position embedding: `rotary` (Su et al., 2021) or `learned`.
        rope_theta: base of the rotary wavelengths.
        norm: `rms` (RMSNorm; Zhang and Sennrich, 2019) or `layer` (LayerNorm).
        norm_eps: added to the norm's variance (or mean square) before the square root.
        qk_norm: whether to normalise queries and keys, head by head (Henry et al., 2020).
        activation: of the feed-forward: `swiglu` (Shazeer, 2020), `gelu`, `gelu_tanh` (GPT-2's
            approximation of it), `relu`, or `relu2`, ReLU squared (So et al., 2021).
        n_hidden: hidden width of the feed-forward; by default 4 C, or for `swiglu` 8/3 C rounded
            up to a multiple of 32, for about as many parameters.
        bias: whether linear layers and LayerNorms have biases.
        qkv_bias: the same for the query, key and value projections; defaults to `bias`.
        head_bias: the same for the head.
        tie_head: whether the head shares the token embedding's weight.
        ngrams: n-gram embeddings added to the token's: [n, rows, size] each, see NGramEmbedding.
        logit_cap: c in `c tanh(logits / c)`, which bounds the logits (Gemma 2, 2024), or None.
        init: initialisation scheme, see `init_weights`.

    Raises:
        ValueError: a setting is invalid; the message names it.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        *,
        dropout: float = 0.0,
        noise: float = 0.0,
        position: str = "rotary",
        rope_theta: float = 10_000.0,
        norm: str = "rms",
        norm_eps: float = 1e-6,
        qk_norm: bool = True,
        activation: str = "swiglu",
        n_hidden: int | None = None,
        bias: bool = False,
        qkv_bias: bool | None = None,
        head_bias: bool = False,
        tie_head: bool = False,
        ngrams: Sequence[Sequence[int]] = (),
        logit_cap: float | None = None,
        init: str = "zero",
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, block_size=block_size)
        check_sizes(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
        if n_hidden is not None:
            check_sizes(n_hidden=n_hidden)
        if n_embd % n_head:
            raise ValueError(f"n_embd={n_embd} is not divisible by n_head={n_head}")
        check_choice("position", position, ("rotary", "learned"))
        if position == "rotary" and n_embd // n_head % 2:
            raise ValueError(
                f"n_embd / n_head = {n_embd // n_head} is odd, but position=rotary turns pairs"
            )
        check_choice("norm", norm, ("rms", "layer"))
        check_choice("activation", activation, ("swiglu", *_POINTWISE))
        check_choice("init", init, ("zero", "gpt2", "torch"))
        qkv_bias = bias if qkv_bias is None else qkv_bias
        check_flags(qk_norm=qk_norm, bias=bias, qkv_bias=qkv_bias)
        check_flags(head_bias=head_bias, tie_head=tie_head)
        if tie_head and init == "zero":
            raise ValueError(
                "tie_head=true needs init=gpt2 or torch: init=zero would zero the embedding"
            )
        check_shares(dropout=dropout, noise=noise)
        check_positive(rope_theta=rope_theta)
        if logit_cap is not None:
            check_positive(logit_cap=logit_cap)
        check_not_negative(norm_eps=norm_eps)
        _check_ngrams(ngrams)

        def make_norm(width: int) -> Norm:
            if norm == "rms":
                return nn.RMSNorm(width, eps=norm_eps)
            return nn.LayerNorm(width, eps=norm_eps, bias=bias)

        self.block_size = block_size
        self.n_layer = n_layer
        self.noise = noise
        self.logit_cap = logit_cap

        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = self.rotary = None
        if position == "learned":
            self.position_embedding = nn.Embedding(block_size, n_embd)
        else:
            self.rotary = Rotary(n_embd // n_head, block_size, rope_theta)
        self.ngrams = nn.ModuleList(
            NGramEmbedding(*sizes, vocab_size=vocab_size, n_embd=n_embd) for sizes in ngrams
        )
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                attention_norm=make_norm(n_embd),
                attention=CausalSelfAttention(
                    n_embd,
                    n_head,
                    block_size,
                    dropout=dropout,
                    bias=bias,
                    qkv_bias=qkv_bias,
                    q_norm=make_norm(n_embd // n_head) if qk_norm else None,
                    k_norm=make_norm(n_embd // n_head) if qk_norm else None,
                ),
                feed_forward_norm=make_norm(n_embd),
                feed_forward=FeedForward(
                    n_embd, n_hidden, activation=activation, bias=bias, dropout=dropout
                ),
            )
            for _ in range(n_layer)
        )
        self.norm = make_norm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=head_bias)
        if tie_head:
            self.head.weight = self.token_embedding.weight
        self.init_weights(init)

    @torch.no_grad()
    def init_weights(self, init: str) -> None:
        """Initialise the weights.

        ======= ====================== =========================== ========= ==========
        init    linear                 sublayer outputs            head      embeddings
        ======= ====================== =========================== ========= ==========
        `zero`  U(+-sqrt(3 / fan_in))  0                           0         N(0, 1)
        `gpt2`  N(0, 0.02)             N(0, 0.02 / sqrt(2 layers)) as linear N(0, 0.02)
        `torch` torch's own throughout
        ======= ====================== =========================== ========= ==========

        Sublayer outputs are the projections that write to the residual stream. With `zero` every
        block starts as the identity and every token equally likely. Biases start at 0 (except with
        `torch`), norm gains at 1.
        """
        if init == "torch":
            return
        for name, module in self.named_modules():
            writes_to_stream = name.endswith(("attention.output", "feed_forward.output"))
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=1.0 if init == "zero" else 0.02)
            elif isinstance(module, nn.Linear):
                if init == "gpt2":
                    std = 0.02 / math.sqrt(2 * self.n_layer) if writes_to_stream else 0.02
                    nn.init.normal_(module.weight, std=std)
                elif writes_to_stream or module is self.head:
                    nn.init.zeros_(module.weight)
                else:
                    bound = math.sqrt(3 / module.in_features)
                    nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, idx: Tensor) -> Tensor:
        """Return logits: (B, T) int64 -> (B, T, V), with T at most `block_size`.

        The logits at position t depend only on the ids up to and including t.
        """
        T = idx.shape[1]  # noqa: N806
        if self.training and self.noise:
            idx = noised(idx, self.noise, self.token_embedding.num_embeddings)
        x = self.token_embedding(idx)  # (B, T, C)
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[:T]
        for ngram in self.ngrams:
            x = x + ngram(idx)
        x = self.dropout(_in_bfloat16(x))

        for block in self.blocks:
            x = block(x, self.rotary)

        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits for the final residual stream: (..., C) -> (..., V)."""
        logits: Tensor = self.head(self.norm(x))
        if self.logit_cap is not None:
            logits = self.logit_cap * torch.tanh(logits / self.logit_cap)
        return logits


class NGramEmbedding(nn.Module):
    """Embeds the last n tokens jointly: a row of a hashed table, projected to the residual stream.

    It adds parameters but hardly any compute, and gives the first block what n-gram counts would
    (hash embeddings: Svenstrup et al., 2017; of byte n-grams: Pagnoni et al., 2024).

    Args:
        n: number of tokens in an n-gram.
        rows: rows of the table; if there are more possible n-grams, they are hashed and may share
            a row.
        size: width of a row.

    Raises:
        ValueError: `n`, `rows` or `size` is not an integer of at least 1.
    """

    def __init__(self, n: int, rows: int, size: int, *, vocab_size: int, n_embd: int) -> None:
        super().__init__()
        check_sizes(**{"ngrams: n": n, "ngrams: rows": rows, "ngrams: size": size})
        self.n = n
        self.vocab_size = vocab_size
        self.table = nn.Embedding(rows, size)
        self.projection = nn.Linear(size, n_embd, bias=False)

    def forward(self, idx: Tensor, before: Tensor | None = None) -> Tensor:
        """Return the embedding of the n-gram ending at each position: (B, T) int64 -> (B, T, C).

        Args:
            before: the preceding ids, at least n - 1 of them: (B, N) int64; by default all id 0.
        """
        added: Tensor = self.projection(self.table(self.rows(idx, before)))
        return added

    def rows(self, idx: Tensor, before: Tensor | None = None) -> Tensor:
        """Return the table row of the n-gram ending at each position: (B, T) int64 -> (B, T)."""
        T = idx.shape[1]  # noqa: N806
        zeros = idx.new_zeros(idx.shape[0], self.n - 1)
        ids = torch.cat((zeros if before is None else before, idx), dim=1)
        number = idx
        for back in range(1, self.n):
            start = ids.shape[1] - T - back
            number = number * self.vocab_size + ids[:, start : start + T]
        if self.vocab_size**self.n > self.table.num_embeddings:
            number = number * 0x9E3779B97F4A7C1 >> 32  # high product bits mix best
        return number % self.table.num_embeddings


class Block(nn.Module):
    """Attention, then feed-forward; each reads the normalised residual stream and adds to it."""

    def __init__(
        self,
        attention_norm: Norm,
        attention: "CausalSelfAttention",
        feed_forward_norm: Norm,
        feed_forward: "FeedForward",
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward

    def forward(self, x: Tensor, rotary: nn.Module | None) -> Tensor:
        """Return the residual stream after the block: (B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), rotary)
        added: Tensor = self.feed_forward(self.feed_forward_norm(x))
        return x + added


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which each position attends to itself and earlier ones.

    Scores are scaled by 1 / sqrt(D), where D = C / n_head is the head size.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        block_size: int,
        *,
        dropout: float,
        bias: bool,
        qkv_bias: bool,
        q_norm: Norm | None,
        k_norm: Norm | None,
    ) -> None:
        super().__init__()
        self.n_head = n_head
        self.block_size = block_size
        self.dropout = dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=qkv_bias)
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.output = nn.Linear(n_embd, n_embd, bias=bias)
        self.output_dropout = Dropout(dropout)

    def forward(self, x: Tensor, rotary: nn.Module | None) -> Tensor:
        """Return the attention output at each position: (B, T, C) -> (B, T, C)."""
        B, T, C = x.shape  # noqa: N806

        q, k, v = self.project(x)  # (B, T, H, D)
        if rotary is not None:
            q, k = rotary(q), rotary(k)

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
        p = self.dropout if self.training else 0.0
        if x.is_cpu and (p or self.block_size <= 256):
            y = attend(q, k, v, p)
        else:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)

        y = y.transpose(1, 2).reshape(B, T, C)
        gathered: Tensor = self.output_dropout(self.output(y))
        return gathered

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, before rotation: (B, T, C) -> (B, T, H, D) each."""
        B, T, C = x.shape  # noqa: N806
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Return causal `F.scaled_dot_product_attention`, by explicit products: (B, H, T, D).

    On a CPU this is faster for short windows or with dropout, but it materialises all B H T^2
    attention weights.
    """
    B, H, T, D = q.shape  # noqa: N806
    future = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (B H, T, D)
    weights = F.softmax(torch.baddbmm(future, q, k.mT, alpha=D**-0.5), dim=-1)  # (B H, T, T)
    return torch.bmm(dropout(weights, dropout_p), v).view(B, H, T, D)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., 2021): rotates pairs of dimensions by position.

    Dimension i is paired with i + D / 2, as in GPT-NeoX, Llama and Qwen.
    """

    cos: Tensor  # (T, 1, D); sin likewise
    sin: Tensor

    def __init__(self, head_size: int, block_size: int, theta: float) -> None:
        super().__init__()
        if 2 * 4 * block_size * head_size > MOST_BUFFER_BYTES:
            raise ValueError(
                f"block_size={block_size} and n_embd / n_head = {head_size}: rotary tables would "
                "take more than 1 GiB"
            )
        self.head_size = head_size
        self.theta = theta
        cos, sin = self.tables(block_size)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def frequencies(self) -> Tensor:
        """Return the angle per position of each pair, in radians: (D / 2,) float64, on the CPU:
        Apple's GPUs have no float64, and on the meta device torch would import its compiler."""
        exponents = -torch.arange(0, self.head_size, 2, device="cpu").double() / self.head_size
        return torch.pow(self.theta, exponents)

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Return `cos` and `sin` of `rotate` for positions below `length`: (length, 1, D) each, on
        the CPU."""
        positions = torch.arange(length, device="cpu").double()
        angles = torch.outer(positions, self.frequencies())[:, None]
        cos, sin = angles.cos().float(), angles.sin().float()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate queries or keys: (B, T, H, D) -> (B, T, H, D)."""
        return rotate(x, self.cos[: x.shape[1]].type_as(x), self.sin[: x.shape[1]].type_as(x))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (a, b) of dimensions to (a cos - b sin, b cos + a sin): (..., D) -> (..., D).

    Args:
        cos: cosine of each pair's angle, for a and again for b: (..., D)
        sin: its sine likewise, negated for a.
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin  # the roll swaps a and b


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


_POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": _relu2,
}


class FeedForward(nn.Module):
    """Two linear layers with a non-linearity in between, applied to each position separately."""

    def __init__(
        self, n_embd: int, n_hidden: int | None, *, activation: str, bias: bool, dropout: float
    ) -> None:
        super().__init__()
        gated = activation == "swiglu"
        if n_hidden is None:
            n_hidden = -(-8 * n_embd // (3 * 32)) * 32 if gated else 4 * n_embd
        self.activation = activation
        self.pointwise = None if gated else _POINTWISE[activation]
        # For SwiGLU one matrix computes both halves: first the gate, then the linear part.
        self.input = nn.Linear(n_embd, 2 * n_hidden if gated else n_hidden, bias=bias)
        self.output = nn.Linear(n_hidden, n_embd, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feed-forward output at each position: (B, T, C) -> (B, T, C)."""
        added: Tensor = self.dropout(self.output(self.activate(self.input(x))))
        return added

    def activate(self, hidden: Tensor) -> Tensor:
        """Apply the activation: (..., 2 n_hidden) for SwiGLU, else (..., n_hidden)."""
        if self.pointwise is None:
            gate, linear = hidden.chunk(2, dim=-1)
            return F.silu(gate) * linear
        return self.pointwise(hidden)


def _in_bfloat16(x: Tensor) -> Tensor:
    """Return the residual stream in bfloat16 if autocast computes products in bfloat16: it is read
    and written as often as they are, and half the bytes take half the time."""
    if not torch.is_autocast_enabled(x.device.type):
        return x
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype) if dtype == torch.bfloat16 else x


def _check_ngrams(ngrams: object) -> None:
    if not isinstance(ngrams, Sequence) or not all(
        isinstance(sizes, Sequence) and len(sizes) == 3 for sizes in ngrams
    ):
        raise ValueError(f"ngrams={ngrams}: must be a list of [n, table rows, row size]")
