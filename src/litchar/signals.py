"""Signals that ask a run to end: the step is finished and the state saved before it does."""

import signal
from types import FrameType

from litchar.errors import Interrupted

# What a person, a batch system and a cloud machine send.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_state = {"deferred": False, "received": 0}


def install() -> None:
    """Take over `SIGNALS`. Outside of training the first one ends the program at once."""
    for signum in SIGNALS:
        signal.signal(signum, _handle)


def leave_to_parent(worker: int) -> None:
    """Ignore `SIGNALS` in a loader's worker: a batch system sends them to all processes, and the
    step that is to be finished may need its batch. They end with the loader, or when the parent is
    gone."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def reset() -> None:
    """Forget a signal that was received."""
    _state.update(deferred=False, received=0)


def defer(deferred: bool) -> None:
    """While deferred, a first signal is kept for `received`; a second ends at once."""
    _state["deferred"] = deferred


def received() -> int:
    """Return the signal that is waiting, or 0."""
    return _state["received"]


def _handle(signum: int, frame: FrameType | None) -> None:
    if _state["deferred"] and not _state["received"]:
        _state["received"] = signum
    else:
        raise Interrupted(signum)
