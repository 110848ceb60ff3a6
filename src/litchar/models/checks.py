"""Validation of model and optimiser settings; each ValueError names the offending setting."""

import math
from collections.abc import Sequence

MOST_BUFFER_BYTES = 1 << 30  # of what is computed when a model is built: rotary tables and the like


def check_sizes(**sizes: int) -> None:
    """Raise ValueError unless each is an integer of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size} is not a whole number of at least 1")


def check_shares(**shares: float) -> None:
    """Raise ValueError unless each lies in [0, 1)."""
    for name, share in shares.items():
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"{name}={share} does not lie in [0, 1)")


def check_positive(**numbers: float) -> None:
    """Raise ValueError unless each is a finite number above 0."""
    for name, number in numbers.items():
        if not isinstance(number, int | float) or not 0 < number < math.inf:
            raise ValueError(f"{name}={number} is not a finite number above 0")


def check_not_negative(**numbers: float) -> None:
    """Raise ValueError unless each is a number of at least 0."""
    for name, number in numbers.items():
        if not isinstance(number, int | float) or not number >= 0:
            raise ValueError(f"{name}={number} is not a number of at least 0")


def check_betas(betas: Sequence[float]) -> None:
    """Raise ValueError unless these are two numbers in [0, 1): the decay rates of the running
    means of gradients and of their squares."""
    shares = list(betas) if isinstance(betas, Sequence) else []
    if len(shares) != 2 or not all(isinstance(b, int | float) and 0 <= b < 1 for b in shares):
        raise ValueError(f"betas={betas} are not two numbers in [0, 1)")


def check_flags(**flags: bool) -> None:
    """Raise ValueError unless each is true or false."""
    for name, flag in flags.items():
        if flag not in (True, False):
            raise ValueError(f"{name}={flag} is neither true nor false")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value} is not one of {', '.join(choices)}")
