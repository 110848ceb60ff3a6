"""Sampling."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from litchar.errors import UserError
from litchar.generation import Sampling, generate
from litchar.generation import logits_to_probs as distribution
from litchar.generation.sampling import choose
from litchar.generation.writing import Settings, write
from litchar.models import Bigram, Transformer
from litchar.text import Vocabulary

LOGITS = torch.tensor(
    [
        [0.0, 2.0, -1.0, 1.0, 0.5],
        [3.0, 3.0, 3.0, 3.0, 3.0],
        [-50.0, 0.0, 40.0, -3.0, 39.0],
        [1.0, 2.0, 2.0, 2.0, 0.0],
    ]
)
INFINITY = float("inf")


def logits_to_probs(logits: torch.Tensor, *settings, **named) -> torch.Tensor:
    """Return the distribution as a float32 tensor, like the expected values."""
    named |= dict(zip(("temperature", "top_k", "top_p"), settings, strict=False))
    return torch.from_numpy(distribution(logits.numpy(), Sampling(**named))).float()


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(x - max(row)) for x in row]
    return [e / sum(exponentials) for e in exponentials]


def close(probs: torch.Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(probs, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def kept(probs: torch.Tensor) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in probs]


# Distributions


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_temperature_divides_the_logits(temperature):
    expected = [softmax([x / temperature for x in row]) for row in LOGITS.tolist()]
    close(logits_to_probs(LOGITS, temperature), expected)


def test_temperature_0_puts_all_on_the_likeliest_and_one_of_several():
    probs = logits_to_probs(LOGITS, temperature=0)
    assert (probs.max(-1).values == 1).all()
    assert (probs.sum(-1) == 1).all()
    assert kept(probs)[0] == {1}
    assert kept(probs)[2] == {2}
    assert kept(probs)[3] < {1, 2, 3}


@pytest.mark.parametrize("temperature", [1e-3, 1e-9, 1e-30, 1e-40, 1e-300])
def test_as_temperature_falls_the_distribution_nears_that_of_temperature_0(temperature):
    logits = LOGITS[[0, 2]]
    torch.testing.assert_close(logits_to_probs(logits, temperature), logits_to_probs(logits, 0))


def test_as_temperature_grows_the_distribution_nears_the_uniform():
    assert (logits_to_probs(LOGITS, 1e6) - 0.2).abs().max() < 1e-4
    assert (logits_to_probs(LOGITS, INFINITY) == 0.2).all()


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5, 100])
def test_top_k_keeps_the_k_likeliest_in_their_proportions(top_k):
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    expected = []
    for row in logits.tolist():
        whole = softmax(row)
        best = sorted(range(5), key=lambda i: -whole[i])[:top_k]
        total = sum(whole[i] for i in best)
        expected.append([whole[i] / total if i in best else 0.0 for i in range(5)])
    close(logits_to_probs(logits, top_k=top_k), expected)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_top_k_keeps_k_of_those_that_are_equal_too(top_k):
    logits = LOGITS[[1, 3]]
    probs = logits_to_probs(logits, top_k=top_k)
    for row, ids in zip(logits.tolist(), kept(probs), strict=True):
        assert len(ids) == top_k
        assert min(row[i] for i in ids) >= max(row[i] for i in set(range(5)) - ids)
    assert (probs.sum(-1) - 1).abs().max() < 1e-6


def nucleus(probs: list[float], top_p: float) -> list[float]:
    ranked = sorted(range(len(probs)), key=lambda i: -probs[i])
    ids, total = [], 0.0
    for i in ranked:
        ids.append(i)
        total += probs[i]
        if total >= top_p:
            break
    return [p / total if i in ids else 0.0 for i, p in enumerate(probs)]


@pytest.mark.parametrize("top_p", [0.01, 0.2, 0.51, 0.7, 0.9, 0.99])
def test_top_p_keeps_the_fewest_that_reach_it_in_their_proportions(top_p):
    logits = 2 * torch.randn(8, 9, generator=torch.Generator().manual_seed(0))
    expected = [nucleus(softmax(row), top_p) for row in logits.tolist()]
    close(logits_to_probs(logits, top_p=top_p), expected)


@pytest.mark.parametrize(
    ("top_p", "n"), [(0.1, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.6, 3), (0.75, 3), (0.9, 4)]
)
def test_top_p_keeps_as_few_of_those_that_are_equal(top_p, n):
    probs = logits_to_probs(torch.zeros(2, 4), top_p=top_p)  # a quarter each: exact sums
    assert [len(ids) for ids in kept(probs)] == [n, n]
    assert (probs[probs > 0] == probs.max()).all()
    assert (probs.sum(-1) - 1).abs().max() < 1e-6


def test_top_p_1_keeps_everything_and_a_tiny_one_the_likeliest():
    assert torch.equal(logits_to_probs(LOGITS, top_p=1.0), logits_to_probs(LOGITS))
    assert torch.equal(logits_to_probs(LOGITS, top_k=5), logits_to_probs(LOGITS))
    tiny = logits_to_probs(LOGITS[[0, 2]], top_p=1e-9)
    assert torch.equal(tiny, logits_to_probs(LOGITS[[0, 2]], temperature=0))
    assert [len(ids) for ids in kept(logits_to_probs(LOGITS, top_p=1e-9))] == [1] * 4


def test_top_p_counts_within_what_top_k_kept():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    close(logits_to_probs(logits, top_k=2, top_p=0.55), [[1.0, 0, 0, 0]])  # 4/7 reaches it alone
    close(logits_to_probs(logits, top_k=2, top_p=0.6), [[4 / 7, 3 / 7, 0, 0]])


def test_temperature_comes_before_top_p():
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    assert kept(logits_to_probs(logits, temperature=0.25, top_p=0.9)) == [{0}]
    assert kept(logits_to_probs(logits, temperature=1.0, top_p=0.85)) == [{0, 1}]
    assert kept(logits_to_probs(logits, temperature=5.0, top_p=0.85)) == [{0, 1, 2}]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    list(itertools.product([0, 0.1, 1.0, 3.0], [None, 1, 3, 9], [None, 1e-6, 0.5, 0.999, 1.0])),
)
def test_every_setting_gives_a_distribution_that_keeps_the_likeliest(temperature, top_k, top_p):
    before = LOGITS.clone()
    probs = logits_to_probs(LOGITS, temperature, top_k, top_p)
    assert torch.equal(LOGITS, before)
    assert probs.shape == LOGITS.shape
    assert probs.min() >= 0
    assert (probs.sum(-1) - 1).abs().max() < 1e-6
    likeliest = LOGITS.eq(LOGITS.amax(-1, keepdim=True))
    assert ((probs > 0) & likeliest).any(-1).all()


# Generating


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(9, block_size=6, n_layer=2, n_head=2, n_embd=16, init="torch").eval()


def texts(model, idx, n, *, seed=0, **settings) -> torch.Tensor:
    seeds = range(seed, seed + len(idx))
    steps = generate(model, idx.numpy(), n, Sampling(**settings), seeds)
    return torch.from_numpy(np.stack([step.ids for step in steps], axis=1))  # (B, n)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_k": 3}, {"temperature": 0}])
@pytest.mark.parametrize("prompt_length", [1, 6, 15])
def test_each_id_is_drawn_given_the_last_block_size_ids(settings, prompt_length):
    """As in the teaching script, with learned positions and with any plain module."""
    torch.manual_seed(0)
    model = Transformer(9, 6, 2, 2, 16, position="learned", init="torch").eval()
    prompt = torch.randint(9, (3, prompt_length), generator=torch.Generator().manual_seed(1))
    generators = [np.random.default_rng(seed) for seed in (5, 6, 7)]
    idx = prompt
    with torch.no_grad():
        for _ in range(20):
            probs = logits_to_probs(model(idx[:, -6:])[:, -1], **settings).double()
            uniform = np.array([generator.random() for generator in generators])
            ids = (probs.cumsum(-1) <= torch.from_numpy(uniform)[:, None]).sum(-1)
            idx = torch.cat((idx, ids[:, None]), dim=1)
    assert torch.equal(texts(model, prompt, 20, seed=5, **settings), idx[:, prompt_length:])
    plain = nn.Sequential(model)  # read by the loop that any module is
    plain.block_size = 6
    assert torch.equal(texts(plain, prompt, 20, seed=5, **settings), idx[:, prompt_length:])


class Successor(nn.Module):
    """Predicts the next id as the last id + 1, with certainty, and records its contexts."""

    block_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.contexts = []

    def forward(self, idx):
        self.contexts.append(idx[0].tolist())
        return 1000.0 * nn.functional.one_hot((idx + 1) % 100, 100)


def test_generation_goes_on_past_the_block_size_with_a_sliding_context():
    model = Successor()
    assert texts(model, torch.tensor([[5, 6]]), 90).tolist() == [list(range(7, 97))]
    assert model.contexts[:4] == [[5, 6], [5, 6, 7], [5, 6, 7, 8], [6, 7, 8, 9]]
    assert model.contexts[-1] == [92, 93, 94, 95]


def test_ids_come_as_they_are_sampled_and_no_sooner():
    model = Successor()
    stream = generate(model, np.array([[0]]), 1000)
    assert model.contexts == []
    assert [next(stream).ids.tolist() for _ in range(3)] == [[1], [2], [3]]
    assert len(model.contexts) == 3


@pytest.mark.parametrize("n", [0, 1, 7])
def test_as_many_ids_come_as_were_asked_for(model, n):
    steps = list(generate(model, np.zeros((2, 1), dtype=np.int64), n))
    assert [step.ids.shape for step in steps] == [(2,)] * n
    assert all(step.ids.dtype == np.int64 for step in steps)


def test_a_seed_gives_one_text_and_another_seed_another(model):
    prompt = torch.zeros(1, 1, dtype=torch.int64)
    first = texts(model, prompt, 40, seed=1)
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(texts(model, prompt, 40, seed=1), first)
    assert not torch.equal(texts(model, prompt, 40, seed=2), first)


def test_temperature_0_and_top_k_1_give_the_likeliest_text_whatever_the_seed(model):
    prompt = torch.tensor([[3]])
    idx = prompt
    with torch.no_grad():
        for _ in range(6):
            idx = torch.cat((idx, model(idx)[:, -1:].argmax(-1)), dim=1)
    for seed, settings in enumerate([{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}]):
        assert torch.equal(texts(model, prompt, 6, seed=seed, **settings), idx[:, 1:])


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.8}, {"top_k": 3, "top_p": 0.7}]
)
def test_characters_come_as_often_as_their_probabilities_say(settings):
    torch.manual_seed(0)
    model = Bigram(5, block_size=1).eval()
    n = 3_000
    previous = torch.arange(5).repeat_interleave(n)[:, None]
    drawn = texts(model, previous, 1, seed=3, **settings).view(5, n)
    probs = logits_to_probs(model.next_logits.weight.detach(), **settings)
    for row, expected in zip(drawn, probs.double(), strict=True):
        frequencies = row.bincount(minlength=5) / n
        sigma = (expected * (1 - expected) / n).sqrt()
        assert ((frequencies - expected).abs() <= 5 * sigma).all()  # 0 stays 0


def test_half_precision_logits_are_sampled_in_single_precision():
    """These bfloat16 neighbours divided by 0.02 differ by 3.125; in bfloat16, by 4."""

    class Half(nn.Module):
        block_size = 1

        def forward(self, idx):
            return torch.tensor([8.0, 8.0625]).bfloat16().expand(len(idx), 1, 2)

    n = 5_000
    drawn = texts(Half(), torch.zeros(n, 1, dtype=torch.int64), 1, temperature=0.02)
    expected = 1 / (1 + math.exp(3.125))
    sigma = (expected * (1 - expected) / n) ** 0.5
    assert abs((drawn == 0).float().mean().item() - expected) < 5 * sigma


def test_generating_keeps_no_graph(model):
    class Watched(nn.Module):
        block_size = 6

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.graphs = []

        def forward(self, idx):
            logits = self.model(idx)
            self.graphs.append(logits.requires_grad)
            return logits

    watched = Watched()
    list(generate(watched, np.array([[0]]), 2))
    assert watched.graphs == [False, False]
    assert torch.is_grad_enabled()


# min-p, repetition, the choice, log-probabilities


def test_min_p_keeps_what_is_not_much_less_likely_than_the_likeliest():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    close(logits_to_probs(logits, min_p=0.25), [[0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]])
    assert kept(logits_to_probs(logits, min_p=1.0)) == [{0}]
    assert torch.equal(logits_to_probs(logits, min_p=0.0), logits_to_probs(logits))
    flatter = logits_to_probs(logits, temperature=10.0, min_p=0.5)  # after the temperature
    assert kept(flatter) == [{0, 1, 2, 3}]


def test_a_repetition_penalty_makes_what_was_seen_less_likely_whatever_the_sign():
    logits = np.array([[2.0, -2.0, 2.0, -2.0]])
    seen = np.array([[True, True, False, False]])
    probs = distribution(logits, Sampling(repetition_penalty=2.0), seen)
    np.testing.assert_allclose(probs[0], softmax([1.0, -4.0, 2.0, -2.0]))


@pytest.mark.parametrize("penalty", [1.0, 100.0])
def test_prompt_and_text_count_as_seen(penalty):
    torch.manual_seed(0)
    model = Bigram(9, block_size=1).eval()
    with torch.no_grad():
        model.next_logits.weight.abs_()
    prompt = torch.tensor([[0, 1, 2, 3]])
    drawn = texts(model, prompt, 5, temperature=0, repetition_penalty=penalty)[0].tolist()
    everything = sorted([0, 1, 2, 3, *drawn])
    assert (everything == list(range(9))) == (penalty > 1)


@pytest.mark.parametrize(
    ("vocabulary", "prompt"),
    [(Vocabulary("xyz", "line"), ""), (Vocabulary("xyz", "line"), "xy"), (Vocabulary("wxyz"), "")],
)
def test_what_a_text_begins_behind_is_not_repeated_when_it_comes(vocabulary, prompt):
    """A penalty does not make a document's end, or the first character, less likely."""
    model = Bigram(4, block_size=1).eval()
    with torch.no_grad():
        model.next_logits.weight.fill_(3.0)
    ids = vocabulary.encode(prompt)
    ends = [
        [
            next(write(model, vocabulary, ids, Settings(seed=s, **settings))).whole()[:1]
            for s in range(200)
        ]
        for settings in ({"max_new_tokens": 1}, {"max_new_tokens": 1, "repetition_penalty": 100.0})
    ]
    first = "" if vocabulary.document else "w"
    plain, penalised = (sum(text == first for text in texts) for texts in ends)
    assert penalised >= plain > 0


def test_a_choice_never_falls_on_an_id_without_probability():
    probs = np.array([[0.0, 0.3, 0.0, 0.7, 0.0]] * 5)
    almost_one = np.nextafter(1.0, 0)
    ids = choose(probs, np.array([0.0, np.nextafter(0.3, 0), 0.3, 0.5, almost_one]))
    assert ids.tolist() == [1, 1, 3, 3, 3]
    thirds = np.full((1, 3), 1 / 3) * (1 + 1e-9)  # a sum that is not 1
    assert choose(np.hstack((thirds, [[0.0]])), np.array([almost_one])).tolist() == [2]


def test_log_probabilities_are_those_of_the_model_before_any_setting(model):
    prompt = np.array([[1, 2, 3]])
    steps = list(generate(model, prompt, 3, Sampling(temperature=0.3, top_k=2), [4]))
    ids = np.concatenate([prompt[0], *[step.ids for step in steps]])
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).log_softmax(-1)[0]
    for t, step in enumerate(steps):
        want = expected[2 + t, step.ids[0]].item()
        assert step.log_probs()[0] == pytest.approx(want, abs=1e-5)


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature=-0\.1: must be 0 .* or more"),
        ({"temperature": float("nan")}, r"temperature=nan"),
        ({"top_k": 0}, r"top_k=0: must be a whole number of at least 1"),
        ({"top_k": -3}, r"top_k=-3: must be a whole number of at least 1"),
        ({"top_p": 0.0}, r"top_p=0\.0: must lie in \(0, 1\]"),
        ({"top_p": -0.5}, r"top_p=-0\.5"),
        ({"top_p": 1.01}, r"top_p=1\.01"),
        ({"top_p": float("nan")}, r"top_p=nan"),
        ({"top_k": 2.5}, r"top_k=2\.5"),
        ({"top_k": True}, r"top_k=True"),
        ({"min_p": -0.1}, r"min_p=-0\.1: must lie in \[0, 1\]"),
        ({"min_p": 1.5}, r"min_p=1\.5"),
        ({"repetition_penalty": 0}, r"repetition_penalty=0: must lie in"),
        ({"repetition_penalty": 1e-320}, r"repetition_penalty=1e-320: must lie in"),
        ({"repetition_penalty": None}, r"repetition_penalty=None"),
        ({"temperature": "hot"}, r"temperature=hot: must be a number"),
        ({"temperature": 10**400}, r"temperature: is too large"),
    ],
)
def test_a_setting_that_no_distribution_has_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9, 1.0, 100.0])
@pytest.mark.parametrize("top_k", [None, 1, 10**9])
@pytest.mark.parametrize("top_p", [None, 1e-9, 1, 1.0])
def test_settings_at_their_limits_are_fit(temperature, top_k, top_p):
    probs = logits_to_probs(LOGITS, temperature, top_k, top_p)
    assert (probs.sum(-1) - 1).abs().max() < 1e-6
