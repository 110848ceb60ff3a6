"""Learning-rate schedules: the learning rate's multiplier as a function of the step."""

import inspect
import math
from collections.abc import Callable


def constant(step: int, total_steps: float, warmup_steps: int = 0) -> float:
    """Warm up linearly, then stay at 1.

    Args:
        warmup_steps: steps over which the learning rate rises.
    """
    return _warmup(step, warmup_steps)


def cosine(
    step: int, total_steps: float, warmup_steps: int = 100, final_factor: float = 0.1
) -> float:
    """Warm up linearly, decay along half a cosine to `final_factor` (Loshchilov and Hutter, 2017).

    Args:
        step: steps taken so far, from 0.
        total_steps: steps in all; infinite if not known.
        warmup_steps: steps over which the learning rate rises.
        final_factor: the multiplier after the last step.
    """
    _check(final_factor=final_factor)
    warmup = _warmup(step, warmup_steps)
    if step < warmup_steps:
        return warmup
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd(
    step: int,
    total_steps: float,
    warmup_steps: int | None = None,
    decay_fraction: float = 0.5,
    final_factor: float = 0.0,
) -> float:
    """Warm up linearly, stay at 1, decay linearly to `final_factor` (Hu et al., 2024).

    Args:
        total_steps: steps in all; infinite while they are not known: the decay is yet to come.
        warmup_steps: steps over which the learning rate rises; by default a twentieth of all, but
            at most 50; or 20 while it is not known of how many.
        decay_fraction: the fraction of all steps, at the end, over which it decays.
        final_factor: the multiplier after the last step.
    """
    _check(decay_fraction=decay_fraction, final_factor=final_factor)
    if total_steps == math.inf:
        return _warmup(step, 20 if warmup_steps is None else warmup_steps)
    if warmup_steps is None:
        warmup_steps = min(50, int(total_steps / 20))
    decay_steps = max(1, round(decay_fraction * total_steps))
    left = min(1.0, (total_steps - step) / decay_steps)
    return _warmup(step, warmup_steps) * (final_factor + (1 - final_factor) * max(0.0, left))


def share_without_total(schedule: Callable[[int, float], float]) -> float:
    """Return the share of a run's steps for which a schedule need not know how many there are: all
    if it never asks, those before the decay if it has a `decay_fraction`, as wsd, and else none."""
    try:
        if schedule(10**6, 10**6) == schedule(10**6, math.inf):
            return 1.0
        share: float = 1 - inspect.signature(schedule).parameters["decay_fraction"].default
        step = int(share * 10**6) - 1  # the last one before the decay
        return share if schedule(step, 10**6) == schedule(step, math.inf) else 0.0
    except (KeyError, OverflowError, ValueError):  # it may compute with the infinite total
        return 0.0


def _check(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share} does not lie in [0, 1]")


def _warmup(step: int, warmup_steps: int) -> float:
    if warmup_steps < 0 or warmup_steps % 1:
        raise ValueError(f"warmup_steps={warmup_steps} is not a whole number of at least 0")
    return min(1.0, (step + 1) / (warmup_steps + 1))
