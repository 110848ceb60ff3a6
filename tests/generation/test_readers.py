"""Readers: caching between ids does not change the next logits."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from litchar.generation import Sampling, generate, readers
from litchar.generation.cached import CachedTransformer
from litchar.generation.lean import LeanReader, LeanTransformer
from litchar.generation.readers import CropReader, Prepared, RecurrentReader, WindowReader
from litchar.models import Bigram, Recurrent, Transformer, transformer
from litchar.models.transformer import Block, Rotary

BLOCK = 10


def make(seed: int = 0, **changes) -> Transformer:
    torch.manual_seed(seed)
    small = {"vocab_size": 13, "block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = Transformer(**(small | {"init": "torch"} | changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:  # gains, shifts and biases that would be noticed
                p.add_(0.3 * torch.randn_like(p))
    return model


def some_ids(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(13, size=(batch, length))


@torch.inference_mode()
def one_by_one(reader, idx: np.ndarray, prompt: int) -> np.ndarray:
    """Return the logits after the prompt and after each later id: (B, T - prompt + 1, V)."""
    steps = [reader.read(idx[:, :prompt])]
    steps += [reader.read(idx[:, t : t + 1]) for t in range(prompt, idx.shape[1])]
    return np.stack(steps, axis=1)


READERS = {
    "torch": lambda model, max_ids: CachedTransformer(model, 1, max_ids),
    "numpy": lambda model, max_ids: LeanReader(LeanTransformer(model)),
}
OPTIONS = list(
    itertools.product(
        ("rotary", "learned"),
        ("rms", "layer"),
        ("swiglu", "gelu", "gelu_tanh", "relu", "relu2"),
        (False, True),
        (False, True),
        (None, 2.0),
    )
)


@pytest.mark.parametrize("kind", READERS)
def test_cached_logits_are_those_of_the_whole_context_for_every_option(kind):
    idx = some_ids(1, BLOCK)
    prompts = itertools.cycle((1, 4, BLOCK))
    for prompt, option in zip(prompts, OPTIONS, strict=False):
        position, norm, activation, bias, qk_norm, logit_cap = option
        model = make(
            position=position,
            norm=norm,
            activation=activation,
            bias=bias,
            qk_norm=qk_norm,
            logit_cap=logit_cap,
        )
        with torch.inference_mode():
            whole = model(torch.from_numpy(idx)).numpy()
        cached = one_by_one(READERS[kind](model, BLOCK), idx, prompt)
        np.testing.assert_allclose(cached, whole[:, prompt - 1 :], atol=1e-5, rtol=0)


@torch.inference_mode()
def windowed(model: Transformer, idx: np.ndarray) -> np.ndarray:
    """Return logits under sliding-window attention over the last `BLOCK` positions."""
    T = idx.shape[1]  # noqa: N806
    distance = torch.arange(T)[:, None] - torch.arange(T)
    seen = (distance >= 0) & (distance < BLOCK)
    attention = model.blocks[0].attention
    rotary = Rotary(attention.qkv.in_features // attention.n_head, T, model.rotary.theta)
    ids = torch.from_numpy(idx)
    x = model.token_embedding(ids) + sum(ngram(ids) for ngram in model.ngrams)
    for block in model.blocks:
        q, k, v = block.attention.project(block.attention_norm(x))
        q, k, v = (part.transpose(1, 2) for part in (rotary(q), rotary(k), v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + block.attention.output(y.transpose(1, 2).flatten(2))
        x = x + block.feed_forward(block.feed_forward_norm(x))
    return model.logits(x).numpy()


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("prompt", [1, 4])
@pytest.mark.parametrize(("n_layer", "ngrams"), [(1, []), (3, []), (2, [[2, 30, 4], [4, 99, 8]])])
def test_a_rolling_cache_is_attention_under_a_sliding_window(kind, n_layer, ngrams, prompt):
    model = make(n_layer=n_layer, ngrams=ngrams)
    idx = some_ids(1, 5 * BLOCK)
    expected = windowed(model, idx)[:, prompt - 1 :]
    rolled = one_by_one(READERS[kind](model, 5 * BLOCK), idx, prompt)
    np.testing.assert_allclose(rolled, expected, atol=1e-5, rtol=0)


def test_one_layer_rolls_as_if_the_context_were_read_again():
    """With one layer the two are equivalent: keys depend on their own id only."""
    model = make(n_layer=1)
    idx = some_ids(1, 4 * BLOCK)
    again = one_by_one(WindowReader(model), idx, prompt=4)
    np.testing.assert_allclose(
        one_by_one(LeanReader(LeanTransformer(model)), idx, 4), again, atol=1e-5
    )


@pytest.mark.parametrize("position", ["rotary", "learned"])
@pytest.mark.parametrize("prompt_length", [1, BLOCK, 3 * BLOCK])
def test_greedy_text_is_that_of_the_uncached_model(position, prompt_length):
    model = make(seed=3, n_layer=1, position=position)
    prompt = some_ids(2, prompt_length)
    idx = torch.from_numpy(prompt)
    with torch.no_grad():
        for _ in range(60):
            idx = torch.cat((idx, model(idx[:, -BLOCK:])[:, -1:].argmax(-1)), dim=1)
    steps = generate(model, prompt, 60, Sampling(temperature=0))
    drawn = np.stack([step.ids for step in steps], axis=1)
    assert drawn.tolist() == idx[:, prompt_length:].tolist()


def test_learned_positions_are_cached_until_full_then_cropped_as_the_teaching_script_does():
    model = make(position="learned")
    idx = some_ids(1, 3 * BLOCK)
    reader = Prepared(model).open(1, idx.shape[1])
    assert isinstance(reader, CropReader)
    cropped = one_by_one(WindowReader(model), idx, prompt=4)
    np.testing.assert_allclose(one_by_one(reader, idx, 4), cropped, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("prompt", [1, 3 * BLOCK])
def test_a_recurrent_models_state_is_carried_past_every_window(cell, prompt):
    torch.manual_seed(0)
    model = Recurrent(13, BLOCK, 2, 16, cell=cell).eval()
    nn.init.normal_(model.head.weight)
    idx = some_ids(2, 6 * BLOCK)
    with torch.no_grad():
        whole = model(torch.from_numpy(idx)).numpy()
    carried = one_by_one(Prepared(model).open(2, 0), idx, prompt)
    np.testing.assert_allclose(carried, whole[:, prompt - 1 :], atol=1e-5, rtol=0)


MODELS = {
    "rotary": lambda: make(),
    "learned": lambda: make(position="learned"),
    "gru": lambda: Recurrent(13, BLOCK, 2, 16).eval(),
    "bigram": lambda: Bigram(13, BLOCK).eval(),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_seed_gives_the_same_text_in_any_batch(kind):
    model = MODELS[kind]()
    prompt = some_ids(1, 3)
    sampling = Sampling(temperature=1.3, repetition_penalty=1.1)

    def texts(seeds):
        steps = list(generate(model, prompt.repeat(len(seeds), 0), 40, sampling, seeds))
        return {
            seed: (
                [int(step.ids[row]) for step in steps],
                [step.logits[row].tobytes() for step in steps],
            )
            for row, seed in enumerate(seeds)
        }

    together = texts(range(20))
    for seeds in ([7], [19, 7, 3], [3, 4, 5, 6, 7, 8, 9]):
        for seed, text in texts(seeds).items():
            assert text == together[seed]  # to the last bit of every logit
    assert len({tuple(ids) for ids, _ in together.values()}) > 15


def test_other_types_and_subclasses_are_read_by_what_fits_them():
    class Changed(Transformer):
        def forward(self, idx):
            return -super().forward(idx)

    assert isinstance(Prepared(make()).open(1, 9), LeanReader)
    assert isinstance(Prepared(make().double()).open(1, 9), CachedTransformer)
    changed = Changed(13, BLOCK, 1, 2, 16, init="torch").eval()
    assert isinstance(Prepared(changed).open(1, 9), WindowReader)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])  # in numpy, and in torch
def test_a_block_that_was_changed_is_read_as_it_is(monkeypatch, kind):
    def parallel(block, x, rotary):
        attended = block.attention(block.attention_norm(x), rotary)
        return x + attended + block.feed_forward(block.feed_forward_norm(x))

    monkeypatch.setattr(Block, "forward", parallel)
    read_as_it_is(make().to(kind))


def read_as_it_is(model):
    idx = some_ids(1, BLOCK)
    with torch.inference_mode():
        whole = model(torch.from_numpy(idx)).numpy()
    read = one_by_one(Prepared(model).open(1, BLOCK), idx, prompt=3)
    np.testing.assert_allclose(read, whole[:, 2:], atol=1e-5)


def test_attention_that_was_changed_far_back_alone_is_read_as_it_is(monkeypatch):
    def local(q, k, v, p):
        distance = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
        return F.scaled_dot_product_attention(q, k, v, (distance >= 0) & (distance < 7))

    monkeypatch.setattr(transformer, "attend", local)
    read_as_it_is(make())


@torch.inference_mode()
def test_a_state_is_carried_from_one_part_of_a_long_prompt_to_the_next(monkeypatch):
    torch.manual_seed(0)
    model = Recurrent(13, BLOCK, 1, 16).eval()
    whole, in_parts = (RecurrentReader(model) for _ in range(2))
    idx = some_ids(2, 23)
    expected = whole.read(idx)
    monkeypatch.setattr(readers, "MOST_AT_ONCE", 5)
    np.testing.assert_allclose(in_parts.read(idx), expected, atol=1e-6)
