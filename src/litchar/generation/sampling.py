"""Sampling: from logits to the next token, over and over."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from litchar.errors import UserError, is_number
from litchar.generation.ahead import Ahead
from litchar.generation.cached import CachedTransformer
from litchar.generation.readers import Prepared

LEAST_TEMPERATURE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is sampled.

    Attributes:
        temperature: divides the logits; 0, or anything below `LEAST_TEMPERATURE`, is greedy: all
            probability goes to the likeliest token.
        top_k: keep the k likeliest tokens (Fan et al., 2018).
        top_p: keep the fewest tokens whose probabilities sum to at least this: nucleus sampling
            (Holtzman et al., 2020).
        min_p: keep tokens at least this fraction as likely as the likeliest (Nguyen et al., 2024).
        repetition_penalty: divides the positive logits of tokens that are already in the text,
            prompt included, and multiplies the negative ones (CTRL; Keskar et al., 2019).

    Raises:
        UserError: a setting is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if value is not None and not is_number(value):
                raise UserError(f"{name}={value}: must be a number")
            try:
                float(value or 0)
            except OverflowError:
                raise UserError(f"{name}: is too large for a floating-point number") from None
        if self.temperature is None or not self.temperature >= 0:
            raise UserError(
                f"temperature={self.temperature}: must be 0 (the likeliest character) or more"
            )
        k = self.top_k
        if k is not None and (not isinstance(k, Integral) or isinstance(k, bool) or k < 1):
            raise UserError(f"top_k={k}: must be a whole number of at least 1, or null")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: must lie in (0, 1], or be null")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p}: must lie in [0, 1], or be null")
        penalty = self.repetition_penalty
        if penalty is None or not 0.01 <= penalty <= 100:
            raise UserError(
                f"repetition_penalty={penalty}: must lie in [0.01, 100]; 1 changes nothing"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether all probability goes to the likeliest token."""
        return self.temperature < LEAST_TEMPERATURE

    @property
    def scales_only(self) -> bool:
        """Whether the temperature alone changes the distribution."""
        cuts = (self.top_k, self.top_p, self.min_p)
        return cuts == (None, None, None) and self.repetition_penalty == 1


def logits_to_probs(
    logits: np.ndarray, sampling: Sampling = Sampling(), seen: np.ndarray | None = None
) -> np.ndarray:
    """Return the distribution to sample from: (B, V) -> (B, V) float64.

    The repetition penalty comes first, then the temperature, then `top_k`, `top_p` and `min_p`,
    each applied to the renormalised distribution that the previous one left.

    Args:
        seen: which ids are already in the text: (B, V) bool
    """
    logits = logits.astype(np.float64)
    if seen is not None and sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        logits = np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.is_greedy:
        likeliest = logits.argmax(-1, keepdims=True)
        chosen: np.ndarray = np.arange(logits.shape[-1]) == likeliest
        return chosen.astype(np.float64)
    probs = softmax(logits / sampling.temperature)
    if sampling.top_k is not None and sampling.top_k < probs.shape[-1]:
        order = (-probs).argsort(axis=-1, kind="stable")
        np.put_along_axis(probs, order[:, sampling.top_k :], 0, axis=-1)
        probs /= probs.sum(-1, keepdims=True)
    if sampling.top_p is not None and sampling.top_p < 1:
        order = (-probs).argsort(axis=-1, kind="stable")
        ranked = np.take_along_axis(probs, order, axis=-1)
        ranked[ranked.cumsum(-1) - ranked >= sampling.top_p] = 0
        np.put_along_axis(probs, order, ranked, axis=-1)
        probs /= probs.sum(-1, keepdims=True)
    if sampling.min_p is not None:
        probs[probs < sampling.min_p * probs.max(-1, keepdims=True)] = 0
        probs /= probs.sum(-1, keepdims=True)
    return probs


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities: (..., V) -> (..., V)."""
    probs: np.ndarray = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    return probs


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities in nats: (..., V) -> (..., V) float64."""
    shifted: np.ndarray = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def choose(probs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Return the ids that uniform numbers in [0, 1) select: (B, V), (B,) -> (B,) int64."""
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding could lift the product to the total, and so select an id of probability 0.
    target = np.minimum(uniform[:, None] * total, np.nextafter(total, 0))
    ids: np.ndarray = (cumulative <= target).sum(-1)
    return ids


class Step(NamedTuple):
    """A step of `generate`: the ids sampled, (B,) int64, and their logits, (B, V) float32."""

    ids: np.ndarray
    logits: np.ndarray

    def log_probs(self) -> np.ndarray:
        """Return the model's log-probability of each id, in nats: (B,) float64."""
        return np.take_along_axis(log_softmax(self.logits), self.ids[:, None], axis=-1)[:, 0]


class Chooser:
    """Samples the next id of each text, with a random generator and repetition penalty per text.

    Args:
        seeds: one per text; its generator draws one uniform number per id.
        n_before: how many leading ids are not part of any text, see `writing.beginning`: the
            repetition penalty does not count them.
    """

    def __init__(self, sampling: Sampling, seeds: Iterable[int], n_before: int = 0) -> None:
        self.sampling = sampling
        self.n_before = n_before
        self.generators = [np.random.default_rng(seed) for seed in seeds]
        self.seen: np.ndarray | None = None

    def choose(self, idx: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Return the next ids: (B,) int64.

        Args:
            idx: the ids since the last call: (B, T) int64
            logits: the logits that follow them: (B, V)
        """
        if self.sampling.repetition_penalty != 1:
            if self.seen is None:
                self.seen = np.zeros(logits.shape, dtype=bool)
                idx = idx[:, self.n_before :]
            np.put_along_axis(self.seen, idx, True, axis=-1)
        probs = logits_to_probs(logits, self.sampling, self.seen)
        return choose(probs, np.array([generator.random() for generator in self.generators]))

    def draw(self, n: int) -> np.ndarray:
        """Return the uniform numbers of the next n ids of each text: (n, B) float64."""
        return np.stack([generator.random(n) for generator in self.generators], axis=1)


def generate(
    model: nn.Module | Prepared,
    idx: np.ndarray,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    seeds: Sequence[int] | None = None,
    n_before: int = 0,
) -> Generator[Step, None, None]:
    """Sample `max_new_tokens` ids for each text, yielding one `Step` at a time.

    On a CPU in float32 a text depends only on its prompt, its seed and the settings, not on the
    other texts of the batch. On a GPU ids are sampled ahead of those yielded where `Ahead` can.

    Args:
        model: in evaluation mode; to generate repeatedly, pass a `Prepared` one.
        idx: the prompts, at least one id each: (B, T), integers
        seeds: one per text, see `Chooser`; by default 0, 1, 2, ...
        n_before: see `Chooser`.
    """
    B = len(idx)  # noqa: N806
    idx = idx.astype(np.int64)
    chooser = Chooser(sampling, range(B) if seeds is None else seeds, n_before)
    with torch.inference_mode():
        reader = Prepared.of(model).open(B, idx.shape[1] + max_new_tokens)
    for n_left in range(max_new_tokens - 1, -1, -1):
        with torch.inference_mode():
            logits = reader.read(idx)
        ids = chooser.choose(idx, logits)
        yield Step(ids, logits)
        if (
            n_left
            and sampling.scales_only
            and isinstance(reader, CachedTransformer)
            and reader.fused
        ):
            ahead = Ahead(reader, ids, 0.0 if sampling.is_greedy else sampling.temperature)
            yield from map(Step._make, ahead.steps(n_left, chooser.draw))
            return
        idx = ids[:, None]
