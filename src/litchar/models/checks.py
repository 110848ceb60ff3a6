"""What models and optimisers ask of their settings: a ValueError names the unfit one."""


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
    """Refuse what is not a number above 0."""
    for name, number in numbers.items():
        if not isinstance(number, int | float) or not number > 0:
            raise ValueError(f"{name}={number} is not above 0")


def check_not_negative(**numbers: float) -> None:
    """Refuse what is not a number of at least 0."""
    for name, number in numbers.items():
        if not isinstance(number, int | float) or not number >= 0:
            raise ValueError(f"{name}={number} is not a number of at least 0")


def check_flags(**flags: bool) -> None:
    """Refuse what is neither true nor false."""
    for name, flag in flags.items():
        if flag not in (True, False):
            raise ValueError(f"{name}={flag} is neither true nor false")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value} is not one of {', '.join(choices)}")
