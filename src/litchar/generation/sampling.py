"""Sampling: the next character, and the next, and the next."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from litchar.errors import UserError

LEAST_TEMPERATURE = 1e-6


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse settings that no distribution can have.

    Raises:
        UserError: one is out of its range.
    """
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if value is not None and not isinstance(value, int | float):
            raise UserError(f"{name}={value}: must be a number")
    if temperature is None or not temperature >= 0:
        raise UserError(f"temperature={temperature}: must be 0 (the likeliest character) or more")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise UserError(f"top_k={top_k}: must be at least 1, a whole number, or null")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}: must lie in (0, 1], or be null")


def logits_to_probs(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Return the distribution to sample from: (B, V) -> (B, V).

    Args:
        temperature: divides the logits; 0 (or so little that logits over it are no numbers any
            more) puts all probability on the likeliest character.
        top_k: keep the k likeliest (Fan et al., 2018).
        top_p: keep the fewest that together have at least this probability, nucleus sampling
            (Holtzman et al., 2020).
    """
    if temperature < LEAST_TEMPERATURE:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probs = torch.softmax(logits / temperature, dim=-1)
    if top_k is not None and top_k < probs.shape[-1]:
        kept = probs.topk(top_k, dim=-1)
        probs = torch.zeros_like(probs).scatter_(-1, kept.indices, kept.values)
        probs = probs / probs.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True, stable=True)
        ranked[ranked.cumsum(-1) - ranked >= top_p] = 0
        probs = torch.zeros_like(probs).scatter_(-1, order, ranked)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


@torch.inference_mode()
def generate(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield `max_new_tokens` times the next id of each sequence, as it is sampled.

    The model reads the last `block_size` ids, so the text may grow past that.

    Args:
        model: in evaluation mode.
        idx: the prompts, at least one id each: (B, T) int64

    Yields:
        (B,) int64
    """
    for _ in range(max_new_tokens):
        context = idx[:, -model.block_size :]
        probs = logits_to_probs(model(context)[:, -1].float(), temperature, top_k, top_p)
        next_id = torch.multinomial(probs, 1, generator=generator)  # (B, 1)
        yield next_id[:, 0]
        idx = torch.cat((context, next_id), dim=1)
