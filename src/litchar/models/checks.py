"""What models and optimisers ask of their settings: a ValueError names the unfit one."""

import math
from collections.abc import Sequence


def check_sizes(**sizes: int) -> None:
    """Refuse what is not a whole number of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size} is not a whole number of at least 1")


def check_shares(**shares: float) -> None:
    """Refuse what does not lie in [0, 1)."""
    for name, share in shares.items():
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"{name}={share} does not lie in [0, 1)")


def check_positive(**numbers: float) -> None:
    """Refuse what is not a finite number above 0."""
    for name, number in numbers.items():
        if not isinstance(number, int | float) or not 0 < number < math.inf:
            raise ValueError(f"{name}={number} is not a finite number above 0")


def check_not_negative(**numbers: float) -> None:
    """Refuse what is not a number of at least 0."""
    for name, number in numbers.items():
        if not isinstance(number, int | float) or not number >= 0:
            raise ValueError(f"{name}={number} is not a number of at least 0")


def check_betas(betas: Sequence[float]) -> None:
    """Refuse what is not two shares, of the means of gradients and of squares."""
    shares = list(betas) if isinstance(betas, Sequence) else []
    if len(shares) != 2 or not all(isinstance(b, int | float) and 0 <= b < 1 for b in shares):
        raise ValueError(f"betas={betas} are not two numbers in [0, 1)")


def check_flags(**flags: bool) -> None:
    """Refuse what is neither true nor false."""
    for name, flag in flags.items():
        if flag not in (True, False):
            raise ValueError(f"{name}={flag} is neither true nor false")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value} is not one of {', '.join(choices)}")
