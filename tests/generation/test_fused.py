"""The step in Triton computes what the model does. Without a GPU, Triton interprets its kernels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_readers import BLOCK, make, one_by_one, some_ids, windowed

from litchar.generation.cached import CachedTransformer
from litchar.generation.sampling import Sampling, choose, logits_to_probs
from litchar.models.transformer import rotate

pytest.importorskip("triton", reason="needs Triton: pip install triton")
from litchar.generation import fused
from litchar.generation.fused import FusedStep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEP = FusedStep(torch.device(DEVICE))

OPTIONS = [
    {},
    {"norm": "layer", "bias": True, "activation": "gelu", "qk_norm": False},
    {"activation": "relu2", "logit_cap": 2.0, "n_head": 1, "n_embd": 24},
    {"activation": "gelu_tanh", "norm": "layer", "ngrams": [[2, 30, 4]]},
    {"activation": "relu", "head_bias": True, "n_hidden": 100},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_fused_steps_are_attention_under_a_sliding_window(options):
    compare_steps(options)


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_so_are_those_of_many_texts(monkeypatch, options):
    monkeypatch.setattr(fused, "MOST_ROWS", 1)
    compare_steps(options)


def compare_steps(options):
    model = make(n_layer=1, **options)
    idx = some_ids(2, BLOCK + 2)  # the last two roll the cache
    expected = windowed(model, idx)[:, BLOCK - 4 :]
    model.to(DEVICE)
    reader = CachedTransformer(model, 2, BLOCK + 2, STEP)
    np.testing.assert_allclose(one_by_one(reader, idx, BLOCK - 3), expected, atol=1e-5, rtol=0)


def test_learned_positions_are_added_before_a_fused_step():
    model = make(n_layer=2, position="learned")
    idx = some_ids(2, BLOCK)
    expected = model(torch.from_numpy(idx)).detach().numpy()[:, BLOCK - 3 :]
    model.to(DEVICE)
    reader = CachedTransformer(model, 2, BLOCK, STEP)
    np.testing.assert_allclose(one_by_one(reader, idx, BLOCK - 2), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", [0, 6, 29, 3 * 30 + 29])
def test_a_long_cache_is_attended_to_in_parts(monkeypatch, position):
    monkeypatch.setattr(fused, "TILE", 8)  # 4 slots of width 8 at a time, 16 of them unrolled
    torch.manual_seed(0)
    model = make(n_layer=1, qk_norm=False, block_size=30).to(DEVICE)
    cache = CachedTransformer(model, 2, 200)
    (keys,), (values,) = cache.keys, cache.values
    for new in (keys, values):
        new.normal_()
    cache.position.fill_(position)
    qkv = 3 * torch.randn(2, 48, device=DEVICE)
    y = STEP.attend(qkv, model.blocks[0].attention, keys, values, cache)
    q, k, v = qkv.view(2, 3, 2, 8).unbind(1)  # (B, H, D)
    q, k = (rotate(x, cache.cos[position], cache.sin[position]) for x in (q, k))
    torch.testing.assert_close(keys[:, :, position % 30], k)
    torch.testing.assert_close(values[:, :, position % 30], v)
    seen = (x[:, :, : position + 1] for x in (keys, values))
    expected = F.scaled_dot_product_attention(q[:, :, None], *seen).flatten(1)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value")  # of the interpreter
@pytest.mark.parametrize("V", [1, 64, 70])
@pytest.mark.parametrize("temperature", [np.inf, 1.0, 0.3, 1e-3, 0.0])
def test_a_gpu_chooses_what_the_cpu_would(temperature, V):  # noqa: N803
    """At 1e-3 most probabilities are 0, which no uniform number may select."""
    B, N = 40, 4  # noqa: N806
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(B, V)).astype(np.float32)
    logits[:, V // 2] = logits.max(-1)  # a tie: the first is taken
    logits[2] = np.nan if temperature == 0 else 0  # of a model that diverged
    uniform = generator.random((N, B))
    uniform[:, 0], uniform[:, 1] = 0, 1 - 2**-53
    on_device = [
        torch.from_numpy(np.asarray(x)).to(DEVICE)
        for x in (logits, uniform, np.float64(temperature), np.int64(3 * N + 2))
    ]
    idx = torch.full((B, 1), -1, device=DEVICE)
    ids = torch.full((N, B), -1, device=DEVICE)
    kept = torch.zeros(N, B, V, device=DEVICE)
    STEP.sample(*on_device, idx, ids, kept)
    expected = choose(logits_to_probs(logits, Sampling(temperature=temperature)), uniform[2])
    assert idx[:, 0].tolist() == ids[2].tolist() == expected.tolist()
    np.testing.assert_array_equal(kept[2].cpu().numpy(), logits)
    others = torch.arange(N) != 2
    assert (ids.cpu()[others] == -1).all()
    assert (kept.cpu()[others] == 0).all()
