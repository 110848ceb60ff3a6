"""How a command ends that argparse reads: as those do that Hydra reads, see `litchar.cli`."""

import contextlib
from collections.abc import Iterator

from litchar import signals
from litchar.cli import exit_with
from litchar.errors import UserError


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Exit with 2 and one line if the user's input was wrong, and with 128 + the signal if one
    came. `@exit_codes()` makes a `main` end so."""
    signals.install()
    try:
        yield
    except UserError as error:
        exit_with(str(error))
    except PermissionError as error:
        exit_with(f"{error.filename}: {error.strerror}; change its rights, or name another place")
