"""Errors that end a program for a known reason: wrong input, a failed run, or a signal."""

import contextlib
import errno
from collections.abc import Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import TypeGuard

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException


class UserError(Exception):
    """The user's input was wrong. The message is one line: what, where, and how to fix it."""


def is_disk_full(error: OSError) -> bool:
    """Return whether the disk is full, or a quota or the limit on file size is reached."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# Of a CPU, and of an Apple GPU: of all its memory, and of more than one buffer may have.
OUT_OF_MEMORY = ("can't allocate memory", "MPS backend out of memory", "Invalid buffer size")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether memory ran out. torch, which takes seconds to import and so is not imported
    here, has an exception of its own for the memory of CUDA GPUs only."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in str(error) for words in OUT_OF_MEMORY)
    )


@contextlib.contextmanager
def extra(name: str, needed_for: str) -> Iterator[None]:
    """Wrap the import of a package that the extra `name` of this package installs.

    Raises:
        UserError: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f'{needed_for} needs the package {error.name}: pip install -e ".[{name}]"'
        ) from None


class BusyError(UserError):
    """Another process is training in the run directory."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(
            f"{run_dir}: another process is training here; wait for it or name another run_dir"
        )


class DivergedError(Exception):
    """The loss or a weight is no longer a finite number. The message says since when."""


class JobsFailedError(Exception):
    """Some jobs of a sweep failed; the others were run. The message says how many."""


class RankError(Exception):
    """Another process of the run ended, and the run with it. The message says which and why."""


class Interrupted(SystemExit):
    """A signal ended the run, after its state was saved; the exit code is 128 + the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a number; booleans are not, although they are `int` in Python."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise UserError unless a value is an integer from `least` to `most` (None: no limit)."""
    is_true_or_false = isinstance(value, bool)  # which Python counts as an integer
    number = int(value) if isinstance(value, Integral) and not is_true_or_false else None
    if number is None or number < least or (most is not None and number > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name}={value}: must be a whole number {allowed}")


def check_flag(name: str, value: object) -> None:
    """Raise UserError unless a value is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{name}={value}: must be true or false")


def is_users(error: BaseException) -> bool:
    """Return whether the user's input, and not the program, is at fault."""
    if isinstance(error, InstantiationException) and not isinstance(error.__cause__, UserError):
        # A constructor refused its arguments; anything else that it raises is our bug.
        return type(error.__cause__).__name__ in (
            "ValueError",
            "TypeError",
            "MisconfigurationException",
            "ImportError",  # of a `_target_`
            "ModuleNotFoundError",  # of an extra, by name
            "NoneType",  # no cause: not the configuration of an object
        )
    # Lightning's own exception, by name: it would take seconds to import here.
    misconfigured = type(error).__name__ == "MisconfigurationException"
    return misconfigured or isinstance(error, UserError | HydraException | OmegaConfBaseException)


def reason(error: BaseException) -> str:
    """Return the message of the `UserError` behind `error`, or else of its root cause."""
    chain = list(causes(error))
    return str(next((cause for cause in chain if isinstance(cause, UserError)), chain[-1]))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error` and its chain of causes, the root cause last."""
    while error is not None:
        yield error
        error = error.__cause__
