"""The transformer."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from litchar.benchmarks.teaching import TeachingModel
from litchar.models import Transformer
from litchar.models.transformer import NGramEmbedding, Rotary, attend

POSITIONS = ("rotary", "learned")
NORMS = ("rms", "layer")
ACTIVATIONS = ("swiglu", "gelu", "relu", "relu2")

TEACHING = {
    "position": "learned",
    "norm": "layer",
    "norm_eps": 1e-5,
    "qk_norm": False,
    "activation": "relu",
    "bias": True,
    "qkv_bias": False,
    "head_bias": True,
    "init": "torch",
}
NANOGPT = {
    "position": "learned",
    "norm": "layer",
    "norm_eps": 1e-5,
    "qk_norm": False,
    "activation": "gelu",
    "tie_head": True,
    "init": "gpt2",
}


def make(seed: int = 0, **changes) -> Transformer:
    """Return a small transformer whose logits all depend on its input."""
    torch.manual_seed(seed)
    small = {"vocab_size": 13, "block_size": 10, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return Transformer(**(small | {"init": "torch"} | changes)).eval()


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def some_ids(batch: int = 3, length: int = 10, vocab_size: int = 13) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocab_size, (batch, length), generator=generator)


# The teaching script's model, head by head


@torch.no_grad()
def copy_teaching(source: TeachingModel, target: Transformer) -> None:
    pairs = [
        (source.tokens, target.token_embedding),
        (source.positions, target.position_embedding),
        (source.ln_f, target.norm),
        (source.lm_head, target.head),
    ]
    for a, b in zip(source.blocks, target.blocks, strict=True):
        pairs += [
            (a.ln1, b.attention_norm),
            (a.projection, b.attention.output),
            (a.ln2, b.feed_forward_norm),
            (a.feed_forward[0], b.feed_forward.input),
            (a.feed_forward[2], b.feed_forward.output),
        ]
        rows = [getattr(head, name) for name in ("query", "key", "value") for head in a.heads]
        b.attention.qkv.weight.copy_(torch.cat([row.weight for row in rows]))
        assert b.attention.qkv.bias is None
    for a, b in pairs:
        b.load_state_dict(a.state_dict())  # strict: a bias that one lacks is an error


def test_the_teaching_model_agrees_with_its_per_head_form():
    sizes = {"vocab_size": 65, "block_size": 32, "n_layer": 4, "n_head": 4, "n_embd": 64}
    torch.manual_seed(1)
    reference = TeachingModel(**sizes)
    with torch.no_grad():  # gains, shifts and biases that would be noticed, and peaked attention
        for name, p in reference.named_parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
            elif "key" in name or "query" in name:
                p.mul_(3)
    model = Transformer(**sizes, **TEACHING)
    assert count(model) == count(reference)
    copy_teaching(reference, model)
    for length in (1, 31, 32):
        idx = some_ids(4, length, 65)
        torch.testing.assert_close(model(idx), reference(idx), atol=1e-5, rtol=1e-5)


def test_the_teaching_model_has_the_parameters_of_the_script():
    sizes = {"vocab_size": 65, "block_size": 32, "n_layer": 4, "n_head": 4, "n_embd": 64}
    assert count(Transformer(**sizes, **TEACHING)) == 209_729


# Qwen3's arithmetic, as `transformers` writes it


def rotate_half(x):
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary(x, theta):
    """Rotate x, (..., T, D), like `apply_rotary_pos_emb` in Llama and Qwen3."""
    T, D = x.shape[-2:]  # noqa: N806
    inv_freq = 1.0 / (theta ** (torch.arange(0, D, 2, dtype=torch.float64) / D))
    angles = torch.outer(torch.arange(T, dtype=torch.float64), inv_freq)
    emb = torch.cat((angles, angles), dim=-1).to(x.dtype)
    return x * emb.cos() + rotate_half(x) * emb.sin()


def rms_norm(x, gain, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain


@torch.no_grad()
def qwen3_logits(model: Transformer, idx, n_head, eps, theta):
    """Return the default model's logits, computed from its weights in double precision."""
    weights = {name: p.double() for name, p in model.state_dict().items()}
    x = weights["token_embedding.weight"][idx]
    B, T, C = x.shape  # noqa: N806
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    for i in range(model.n_layer):
        w = {k.split(".", 2)[2]: v for k, v in weights.items() if k.startswith(f"blocks.{i}.")}
        normed = rms_norm(x, w["attention_norm.weight"], eps)
        q, k, v = (
            (normed @ rows.T).view(B, T, n_head, C // n_head).transpose(1, 2)
            for rows in w["attention.qkv.weight"].chunk(3)
        )
        q = apply_rotary(rms_norm(q, w["attention.q_norm.weight"], eps), theta)
        k = apply_rotary(rms_norm(k, w["attention.k_norm.weight"], eps), theta)
        scores = (q @ k.transpose(-2, -1) / math.sqrt(C // n_head)).masked_fill(future, -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C)
        x = x + y @ w["attention.output.weight"].T
        normed = rms_norm(x, w["feed_forward_norm.weight"], eps)
        gate, up = w["feed_forward.input.weight"].chunk(2)
        hidden = F.silu(normed @ gate.T) * (normed @ up.T)
        x = x + hidden @ w["feed_forward.output.weight"].T
    return rms_norm(x, weights["norm.weight"], eps) @ weights["head.weight"].T


@pytest.mark.parametrize("theta", [100.0, 10_000.0])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_the_default_model_has_qwen3s_arithmetic(theta, eps):
    model = make(block_size=24, n_head=2, n_embd=32, rope_theta=theta, norm_eps=eps)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:  # the gains
                p.add_(torch.randn_like(p))
    idx = some_ids(2, 24)
    expected = qwen3_logits(model, idx, 2, eps, theta)
    torch.testing.assert_close(model(idx).double(), expected, atol=2e-5, rtol=1e-5)
    assert not any("bias" in name for name, _ in model.named_parameters())


def test_the_defaults_are_those_of_qwen3():
    sizes = {"vocab_size": 13, "block_size": 10, "n_layer": 2, "n_head": 2, "n_embd": 16}
    spelt_out = make(
        **sizes,
        position="rotary",
        rope_theta=10_000.0,
        norm="rms",
        norm_eps=1e-6,
        qk_norm=True,
        activation="swiglu",
        n_hidden=64,
        dropout=0.0,
        bias=False,
        qkv_bias=False,
        head_bias=False,
        tie_head=False,
        logit_cap=None,
        init="zero",
    )
    torch.manual_seed(0)
    default = Transformer(**sizes).train()
    assert default.state_dict().keys() == spelt_out.state_dict().keys()
    for name, weight in spelt_out.state_dict().items():
        assert torch.equal(default.state_dict()[name], weight)
    for model in (default, spelt_out):  # where a zero beginning would hide what a layer does
        generator = torch.Generator().manual_seed(0)
        for p in model.parameters():
            nn.init.normal_(p, generator=generator)
    assert torch.equal(default(some_ids()), spelt_out(some_ids()))


@pytest.mark.parametrize("theta", [10.0, 10_000.0, 1e6])
@pytest.mark.parametrize("head_size", [2, 6, 64])
def test_the_rotation_is_the_half_split_one_of_llama_and_qwen(head_size, theta):
    x = torch.randn(2, 40, 3, head_size, generator=torch.Generator().manual_seed(0))
    expected = apply_rotary(x.transpose(1, 2).double(), theta).transpose(1, 2)
    rotary = Rotary(head_size, 40, theta)
    torch.testing.assert_close(rotary(x).double(), expected, atol=1e-4, rtol=0)
    assert torch.equal(rotary(x)[:, :7], rotary(x[:, :7]))
    assert rotary(x.bfloat16()).dtype == torch.bfloat16


def test_rotary_scores_depend_on_the_relative_position_alone_and_do_depend_on_it():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    rotary = Rotary(16, 50, 10_000.0)
    turned_q = rotary(q.expand(1, 50, 1, 16))[0, :, 0]
    turned_k = rotary(k.expand(1, 50, 1, 16))[0, :, 0]
    scores = turned_q @ turned_k.T  # (query's position, key's position)
    for distance in range(50):
        same = scores.diagonal(-distance)
        torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-4, rtol=0)
    assert scores[:, 0].unique().numel() == 50
    torch.testing.assert_close(scores[0, 0], q @ k)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(50), atol=1e-5, rtol=0)


def test_rotary_tables_stay_out_of_the_checkpoint():
    assert not [name for name in make().state_dict() if "rotary" in name]


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_rms_norm_agrees_with_double_precision(eps, scale):
    norm = make(norm_eps=eps).norm
    x = scale * torch.randn(5, 7, 16, generator=torch.Generator().manual_seed(0))
    gain = torch.linspace(-2, 2, 16)
    with torch.no_grad():
        norm.weight.copy_(gain)
    expected = rms_norm(x.double(), gain.double(), eps)
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_agrees_with_double_precision(bias):
    norm = make(norm="layer", norm_eps=0.01, bias=bias).norm
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) + 3
    double = x.double()
    centred = double - double.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 0.01).sqrt()
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-6, rtol=1e-5)
    assert (norm.bias is not None) == bias


# Each activation by its formula


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_feed_forward_agrees_with_its_formula(activation):
    layer = make(activation=activation).blocks[0].feed_forward
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    hidden = x @ layer.input.weight.T
    if activation == "swiglu":
        gate, linear = hidden.chunk(2, -1)
        hidden = gate / (1 + torch.exp(-gate)) * linear
    elif activation == "gelu":
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    else:
        hidden = hidden.clamp(min=0) ** (2 if activation == "relu2" else 1)
    expected = hidden @ layer.output.weight.T
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("n_embd", [4, 12, 16, 64, 96, 100, 128, 384])
def test_swiglu_is_as_wide_as_the_multiple_of_32_at_or_next_above_8_thirds(n_embd):
    layer = make(n_embd=n_embd, n_head=1).blocks[0].feed_forward
    n_hidden = layer.output.in_features
    assert layer.input.out_features == 2 * n_hidden
    assert n_hidden % 32 == 0
    assert 0 <= 3 * n_hidden - 8 * n_embd < 3 * 32


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_n_hidden_is_the_width_of_the_feed_forward(activation):
    layer = make(activation=activation, n_hidden=24).blocks[0].feed_forward
    assert layer.output.in_features == 24
    assert layer.input.out_features == (48 if activation == "swiglu" else 24)
    if activation != "swiglu":
        assert make(activation=activation).blocks[0].feed_forward.output.in_features == 64


# Causality


@pytest.mark.parametrize(
    ("position", "norm", "activation"), list(itertools.product(POSITIONS, NORMS, ACTIVATIONS))
)
def test_logits_depend_on_the_ids_so_far_and_on_nothing_later(position, norm, activation):
    model = make(position=position, norm=norm, activation=activation)
    idx = some_ids(1)
    logits = model(idx)
    for t in range(1, idx.shape[1]):
        changed = idx.clone()
        changed[0, t:] = (changed[0, t:] + 1) % 13
        differences = (model(changed) - logits).abs()[0].amax(-1)
        assert differences[:t].max() < 1e-6
        assert differences[t:].min() > 1e-4
        torch.testing.assert_close(model(idx[:, :t]), logits[:, :t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_logits_depend_on_the_order_of_what_came_before(position):
    model = make(position=position)
    logits = model(torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]]))
    assert (logits[0, -1] - logits[1, -1]).abs().max() > 1e-3


@pytest.mark.parametrize(("n", "rows"), [(1, 7), (2, 49), (3, 343), (3, 1000)])
def test_each_ngram_has_a_row_of_its_own_where_there_are_enough(n, rows):
    torch.manual_seed(0)
    embedding = NGramEmbedding(n, rows, 4, vocab_size=7, n_embd=8)
    grams = torch.cartesian_prod(*[torch.arange(7)] * n).view(-1, n)
    last = embedding.rows(grams)[:, -1]
    assert len(last.unique()) == 7**n
    assert (last >= 0).all()
    assert (last < rows).all()


@pytest.mark.parametrize("vocab_size", [13, 70_000])
def test_a_hashed_ngram_is_a_function_of_its_characters_and_rows_are_used_evenly(vocab_size):
    embedding = NGramEmbedding(4, 64, 4, vocab_size=vocab_size, n_embd=8)
    idx = some_ids(200, 50, vocab_size)
    rows = embedding.rows(idx)
    torch.testing.assert_close(embedding.rows(idx[:, 20:])[:, 3:], rows[:, 23:])
    counts = torch.bincount(rows.flatten(), minlength=64)  # 10,000 over 64: 156 each, sd 12.4
    assert len(counts) == 64
    assert (counts - counts.float().mean()).abs().max() < 6 * 12.4


def test_ngrams_give_logits_that_depend_on_what_came_before_but_not_after():
    model = make(ngrams=[[2, 169, 4], [3, 50, 4]])
    idx = some_ids()
    logits = model(idx)
    torch.testing.assert_close(model(idx[:, :4]), logits[:, :4])
    model.blocks = nn.ModuleList()  # what is left knows the last three characters
    changed = idx.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 13
    same = (model(changed) == model(idx)).all(-1)
    assert same[:, [0, 1, 2, *range(6, 10)]].all()
    assert not same[:, 3:6].any()


def test_rows_of_a_batch_do_not_mix():
    model, idx = make(), some_ids(4)
    for row in range(4):
        torch.testing.assert_close(model(idx)[row : row + 1], model(idx[row : row + 1]))


# Beginnings


def loss_of(model: nn.Module, vocab_size: int) -> float:
    idx = some_ids(8, 11, vocab_size)
    with torch.no_grad():
        return F.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten()).item()


@pytest.mark.parametrize("vocab_size", [2, 65, 1000])
@pytest.mark.parametrize("position", POSITIONS)
def test_an_untrained_model_knows_nothing(vocab_size, position):
    zero = make(vocab_size=vocab_size, position=position, init="zero")
    assert loss_of(zero, vocab_size) == pytest.approx(math.log(vocab_size), abs=1e-5)
    for tie_head in (False, True):
        gpt2 = make(vocab_size=vocab_size, position=position, init="gpt2", tie_head=tie_head)
        assert loss_of(gpt2, vocab_size) == pytest.approx(math.log(vocab_size), abs=0.02)


def wide(**changes) -> Transformer:
    """Return a model wide enough to measure the spread of its weights to 3 %."""
    return make(n_embd=128, n_head=2, n_layer=8, block_size=32, vocab_size=100, **changes)


def std(weight: torch.Tensor) -> float:
    return weight.detach().std().item()


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_gpt2_init_is_as_tabulated(activation):
    model = wide(init="gpt2", activation=activation, position="learned", bias=True, head_bias=True)
    residual = pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.03)
    for block in model.blocks:
        assert std(block.attention.output.weight) == residual
        assert std(block.feed_forward.output.weight) == residual
        assert std(block.attention.qkv.weight) == pytest.approx(0.02, rel=0.03)
        assert std(block.feed_forward.input.weight) == pytest.approx(0.02, rel=0.03)
    for weight in (
        model.head.weight,
        model.token_embedding.weight,
        model.position_embedding.weight,
    ):
        assert std(weight) == pytest.approx(0.02, rel=0.05)
        assert abs(weight.mean().item()) < 1e-3
    _biases_begin_at_0_and_gains_at_1(model)


def test_zero_init_is_as_tabulated():
    model = wide(init="zero", position="learned", bias=True, head_bias=True)
    for block in model.blocks:
        assert not block.attention.output.weight.any()
        assert not block.feed_forward.output.weight.any()
        for linear in (block.attention.qkv, block.feed_forward.input):
            bound = math.sqrt(3 / 128)
            assert 0.999 * bound < linear.weight.abs().max() <= bound
            assert std(linear.weight) == pytest.approx(128**-0.5, rel=0.03)
    assert not model.head.weight.any()
    for embedding in (model.token_embedding, model.position_embedding):
        assert std(embedding.weight) == pytest.approx(1, rel=0.03)
    _biases_begin_at_0_and_gains_at_1(model)


def _biases_begin_at_0_and_gains_at_1(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
        elif p.ndim == 1:
            assert (p == 1).all()


def test_torch_init_is_torchs_own():
    model = wide(init="torch", position="learned", bias=True, head_bias=True)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for p in (module.weight, module.bias):
                assert 0.9 * bound < p.abs().max() <= bound
            assert std(module.weight) == pytest.approx(bound / math.sqrt(3), rel=0.03)
        elif isinstance(module, nn.Embedding):
            assert std(module.weight) == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("n_layer", [1, 3])
def test_every_block_of_a_zero_init_begins_as_the_identity(n_layer):
    model = make(init="zero", n_layer=n_layer)
    assert len(model.blocks) == model.n_layer == n_layer
    x = torch.randn(2, 10, 16, generator=torch.Generator().manual_seed(0))
    for block in model.blocks:
        assert torch.equal(block(x, model.rotary), x)


# Sizes


@pytest.mark.parametrize(
    ("sizes", "reported"),
    [
        ({"block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384}, "10.65M"),
        ({"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}, "0.80M"),
    ],
)
def test_nanogpts_settings_have_the_parameters_that_it_reports(sizes, reported):
    """nanoGPT excludes position embeddings from its count."""
    model = Transformer(vocab_size=65, **sizes, **NANOGPT)
    n = count(model) - model.position_embedding.weight.numel()
    assert f"{n / 1e6:.2f}M" == reported
    C, L = sizes["n_embd"], sizes["n_layer"]  # noqa: N806
    assert n == 65 * C + L * (12 * C * C + 2 * C) + C


def test_swiglu_costs_as_many_parameters_as_a_4x_feed_forward():
    gated = make(n_embd=96, activation="swiglu")
    assert count(gated) == count(make(n_embd=96, activation="gelu"))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("qkv_bias", [None, False, True])
@pytest.mark.parametrize("head_bias", [False, True])
def test_biases_are_where_they_are_asked_for(bias, qkv_bias, head_bias):
    model = make(norm="layer", bias=bias, qkv_bias=qkv_bias, head_bias=head_bias)
    biased = {name.removesuffix(".bias") for name, _ in model.named_parameters() if "bias" in name}
    expected = {"head"} if head_bias else set()
    for i in range(2):
        if bias if qkv_bias is None else qkv_bias:
            expected.add(f"blocks.{i}.attention.qkv")
        if bias:
            expected |= {
                f"blocks.{i}.{name}"
                for name in (
                    "attention_norm",
                    "attention.output",
                    "attention.q_norm",
                    "attention.k_norm",
                    "feed_forward_norm",
                    "feed_forward.input",
                    "feed_forward.output",
                )
            }
    if bias:
        expected.add("norm")
    assert biased == expected


# The head


def test_a_tied_head_shares_the_embeddings_storage_and_an_untied_one_does_not():
    tied, untied = make(tie_head=True, init="gpt2"), make(tie_head=False, init="gpt2")
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.head.weight.data_ptr() != untied.token_embedding.weight.data_ptr()
    assert count(untied) - count(tied) == 13 * 16
    tied(some_ids()).sum().backward()
    assert tied.head.weight.grad is tied.token_embedding.weight.grad


@pytest.mark.parametrize("cap", [0.1, 15.0])
def test_capped_logits_stay_within_the_cap_and_keep_their_order(cap):
    free, capped = make(), make(logit_cap=cap)
    with torch.no_grad():
        for model in (free, capped):
            model.head.weight.mul_(0.3 * cap)
    raw, logits = free(some_ids()), capped(some_ids())
    torch.testing.assert_close(logits, cap * torch.tanh(raw / cap))
    assert raw.abs().max() > 0.2 * cap
    assert torch.equal(logits.argmax(-1), raw.argmax(-1))
    with torch.no_grad():
        capped.head.weight.mul_(1e4)
    assert capped(some_ids()).abs().max() <= cap


# Attention


@pytest.mark.parametrize("length", [1, 7, 33])
def test_attention_is_torchs_own_forward_and_backward(length):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, length, 6, requires_grad=True)  # (B, H, T, D) each
    direction = torch.randn(2, 4, length, 6)
    results = []
    for form in (attend, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)):
        y = form(q, k, v)
        results.append((y, *torch.autograd.grad((y * direction).sum(), (q, k, v))))
    torch.testing.assert_close(*results, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_attention_keeps_the_type(dtype):
    q = torch.ones(1, 1, 3, 2, dtype=dtype)
    assert attend(q, q, q).dtype == dtype


def test_a_model_of_long_windows_reads_a_short_one_as_a_model_of_short_ones_does():
    """They use different attention kernels."""
    short, long = make(block_size=256), make(block_size=257)
    idx = some_ids(2, 200)
    torch.testing.assert_close(short(idx), long(idx), atol=1e-5, rtol=1e-5)


def test_dropped_attention_is_unchanged_on_average():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 8, 4)
    whole = attend(q, k, v)
    dropped = attend(*(x.expand(4000, 8, 8, 4) for x in (q, k, v)), 0.2).flatten(0, 1)
    error = dropped.std(0) / math.sqrt(len(dropped))
    assert ((dropped.mean(0) - whole[0, 0]).abs() < 5 * error + 1e-6).all()


def test_weights_are_dropped_one_by_one():
    torch.manual_seed(0)
    q, v = torch.zeros(50, 1, 8, 4), torch.ones(50, 1, 8, 4)
    kept = attend(q, q, v, 0.5)[:, 0, :, 0] / 2 * torch.arange(1, 9)  # of t equal weights
    torch.testing.assert_close(kept, kept.round(), atol=1e-4, rtol=0)
    assert kept[:, -1].round().unique().numel() > 4


# Dropout


def test_dropout_acts_in_training_alone():
    plain, dropping = make(), make(dropout=0.5)
    idx = some_ids()
    assert torch.equal(dropping(idx), plain(idx))
    dropping.train()
    assert not torch.equal(dropping(idx), dropping(idx))
    plain.train()
    assert torch.equal(plain(idx), plain(idx))


def test_noise_enters_in_training_alone():
    plain, noisy = make(), make(noise=0.5)
    idx = some_ids()
    assert torch.equal(noisy(idx), plain(idx))
    noisy.train()
    assert not torch.equal(noisy(idx), noisy(idx))


def test_the_residual_stream_is_bfloat16_where_products_are():
    """Except with float16, whose range is too small for it."""
    seen = []
    model = make()
    model.blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].dtype))
    model(some_ids())
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            model(some_ids())
    assert seen == [torch.float32, torch.bfloat16, torch.float32]


def test_each_of_the_four_dropouts_is_there():
    """On embeddings, attention weights, and the outputs of attention and feed-forward."""
    model = make(dropout=0.5, n_layer=1).train()
    block = model.blocks[0]
    x = torch.ones(1, 10, 16)

    def some_are_zero(y: torch.Tensor) -> bool:
        return 0.2 < (y == 0).float().mean() < 0.8

    entering = []
    block.register_forward_pre_hook(lambda _, arguments: entering.append(arguments[0]))
    model(some_ids(1))
    assert some_are_zero(entering[0])
    assert some_are_zero(block.attention(x, model.rotary))
    assert some_are_zero(block.feed_forward(x))

    block.attention.output_dropout.p = 0.0
    first = block.attention(x, model.rotary)
    assert not torch.equal(first, block.attention(x, model.rotary))  # the attention weights'
    model.eval()
    assert torch.equal(block.attention(x, model.rotary), block.attention(x, model.rotary))


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": 15}, r"n_embd=15 is not divisible by n_head=2"),
        ({"n_embd": 6, "n_head": 2}, r"n_embd / n_head = 3 is odd, but position=rotary"),
        ({"dropout": -0.1}, r"dropout=-0\.1 does not lie in \[0, 1\)"),
        ({"dropout": 1.0}, r"dropout=1\.0 does not lie in \[0, 1\)"),
        ({"dropout": float("nan")}, r"dropout=nan does not lie"),
        ({"noise": 1}, r"noise=1 does not lie in \[0, 1\)"),
        ({"position": "alibi"}, r"position=alibi is not one of rotary, learned"),
        ({"norm": "batch"}, r"norm=batch is not one of rms, layer"),
        (
            {"activation": "tanh"},
            r"activation=tanh is not one of swiglu, gelu, gelu_tanh, relu, relu2",
        ),
        ({"ngrams": None}, r"ngrams=None: must be a list of \[n, table rows"),
        ({"ngrams": [2, 169, 4]}, r"ngrams=\[2, 169, 4\]: must be a list of \[n, table rows"),
        ({"logit_cap": "abc"}, r"logit_cap=abc is not a finite number above 0"),
        ({"logit_cap": float("nan")}, r"logit_cap=nan is not a finite number above 0"),
        ({"logit_cap": math.inf}, r"logit_cap=inf is not a finite number above 0"),
        ({"rope_theta": -1}, r"rope_theta=-1 is not a finite number above 0"),
        ({"norm_eps": -1}, r"norm_eps=-1 is not a number of at least 0"),
        ({"norm_eps": None}, r"norm_eps=None is not a number of at least 0"),
        *(
            ({name: "flase"}, rf"{name}=flase is neither true nor false")
            for name in ("bias", "qkv_bias", "head_bias", "qk_norm", "tie_head")
        ),
        ({"n_hidden": 0}, r"n_hidden=0 is not a whole number of at least 1"),
        ({"init": "xavier"}, r"init=xavier is not one of zero, gpt2, torch"),
        ({"tie_head": True, "init": "zero"}, r"tie_head=true needs init=gpt2 or torch"),
        *(
            ({name: size}, rf"{name}={size} is not a whole number of at least 1")
            for name in ("n_layer", "n_head", "n_embd", "block_size")
            for size in (0, -2, 1.5, None, True)
        ),
    ],
)
def test_an_unfit_setting_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_nothing_need_be_added_under_a_norms_root():
    assert make(norm_eps=0)(some_ids()).isfinite().all()


def test_an_odd_head_size_is_fit_where_positions_are_learned():
    assert make(n_embd=6, n_head=2, position="learned")(some_ids()).shape == (3, 10, 13)
