"""Models that see what they are to predict are told from those that do not."""

import functools

import pytest
import torch
from torch import nn

from litchar.errors import UserError
from litchar.models import Bigram, Recurrent, Transformer
from litchar.models.causality import check_causal

V, C, B, T = 11, 8, 6, 16


class Model(nn.Module):
    """An embedding, what `mixed` makes of a (B, T, C) stream, and a head."""

    def __init__(self, mixed) -> None:
        super().__init__()
        self.embedding, self.mixed, self.head = nn.Embedding(V, C), mixed, nn.Linear(C, V)

    def forward(self, idx):
        mixed = self.mixed(self.embedding(idx))
        return self.head(mixed[0] if isinstance(mixed, tuple) else mixed)


class Attention(nn.MultiheadAttention):
    """Self-attention that may see `ahead` positions ahead, all if None."""

    def __init__(self, ahead: int | None, batch_first: bool = True) -> None:
        super().__init__(C, 2, batch_first=batch_first)
        self.ahead = ahead

    def forward(self, x):
        hidden = None
        if self.ahead is not None:
            hidden = torch.ones(T, T, dtype=torch.bool).triu(1 + self.ahead)
        return super().forward(x, x, x, attn_mask=hidden)


class Lambda(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.forward = function


def norm_over_positions(x):
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def in_chunks(x, size=4):
    return x + x.unflatten(1, (-1, size)).mean(2).repeat_interleave(size, 1)


class LongConvolution(nn.Module):
    """A causal convolution by FFT, which passes rounding errors to earlier positions too."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(T, C))

    def forward(self, x):
        x, weights = (torch.fft.rfft(part.float(), 2 * T, dim=-2) for part in (x, self.filter))
        return torch.fft.irfft(x * weights, 2 * T, dim=-2)[:, :T].to(self.filter.dtype)


def check(model: nn.Module, length: int = T) -> None:
    generator = torch.Generator().manual_seed(2)
    check_causal(model.eval(), torch.randint(V, (B, length), generator=generator))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "mixed",
    [
        lambda: Attention(None),
        lambda: Attention(1),
        lambda: Attention(None, batch_first=False),
        lambda: nn.GRU(C, C),
        lambda: nn.GRU(C, C // 2, batch_first=True, bidirectional=True),
        lambda: Lambda(norm_over_positions),
        lambda: Lambda(in_chunks),
        lambda: Lambda(lambda x: x + torch.rand_like(x)),
    ],
)
def test_a_model_that_sees_what_it_should_not_is_refused(mixed, autocast):
    torch.manual_seed(0)
    said = "what Model predicts depends on later characters"
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        pytest.raises(UserError, match=said),
    ):
        check(Model(mixed()))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Model(Attention(0)),
        lambda: Model(nn.GRU(C, C, batch_first=True)),
        lambda: Model(nn.LayerNorm(C)),
        lambda: Model(LongConvolution()),
        lambda: Bigram(V, T),
        lambda: Recurrent(V, T, n_layer=2, n_embd=C, cell="gru"),
        lambda: Transformer(V, T, 2, 2, C, init="torch", ngrams=[[2, 40, 4]]),
        lambda: Transformer(V, T, 2, 2, C, init="gpt2", position="learned", norm="layer"),
    ],
)
def test_a_causal_model_is_taken(make, dtype, autocast):
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        check(make().to(dtype))


def test_chunks_that_divide_a_window_are_seen():
    torch.manual_seed(0)
    with pytest.raises(UserError, match="depends on later characters"):
        check(Model(Lambda(functools.partial(in_chunks, size=16))), length=80)


@pytest.mark.parametrize("never", [-1e9, -torch.inf])
@pytest.mark.parametrize("ahead", [0, 1])
def test_an_id_that_is_never_predicted_hides_nothing(never, ahead):
    torch.manual_seed(0)
    model = Model(Attention(ahead))
    third = torch.arange(V) == 3
    model.head.register_forward_hook(lambda _, __, logits: logits.masked_fill(third, never))
    if ahead:
        with pytest.raises(UserError, match="depends on later characters"):
            check(model)
    else:
        check(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_logits_may_be_less_precise_than_their_type(dtype, autocast):
    """As the FFT's in float32 are in a model of float64, or in one of bfloat16 at its end."""
    torch.manual_seed(0)
    model = Model(LongConvolution()).to(dtype)
    at_least = torch.promote_types(dtype, torch.float32)
    model.head.register_forward_hook(lambda _, __, logits: logits.to(at_least))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        check(model)


def test_what_rounding_may_explain_is_taken():
    torch.manual_seed(0)
    model = Model(Lambda(lambda x: x + 0.01 * x.mean(1, keepdim=True)))
    model.head.register_forward_hook(lambda _, __, logits: logits.float())
    with torch.autocast("cpu", torch.bfloat16):
        check(model)
    with pytest.raises(UserError, match="depends on later characters"):
        check(model)


def test_it_shows_in_windows_of_a_single_character_too():
    torch.manual_seed(0)
    with pytest.raises(UserError, match="depends on later characters"):
        check_causal(Model(Attention(1)).eval(), torch.ones(B, T, dtype=torch.long))


def test_a_single_position_has_nothing_behind_it():
    check_causal(Bigram(V, 1), torch.zeros(3, 1, dtype=torch.long))
