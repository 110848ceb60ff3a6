"""Signals that ask a run to end: it finishes the step and saves its state first."""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

from litchar.errors import Interrupted

# Sent by users, terminals that close, batch systems and cloud machines.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STDOUT, STDERR = 1, 2

_state = {"deferred": False, "received": 0}


def install() -> None:
    """Handle `SIGNALS`, but not SIGHUP under `nohup`. Outside of training the first one ends the
    program at once."""
    for signum in SIGNALS:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _handle)


def leave_to_parent(worker: int) -> None:
    """Ignore `SIGNALS` in a data loader's worker: a batch system sends them to all processes, and
    the step in progress may need its batch. Workers end with the loader or the parent."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def reset() -> None:
    """Forget any signal that was received, and stop deferring."""
    _state.update(deferred=False, received=0)


def defer(deferred: bool) -> None:
    """Set whether a first signal is kept for `received`; a second ends the program at once."""
    _state["deferred"] = deferred


def received() -> int:
    """Return the pending signal, or 0."""
    return _state["received"]


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], list[int]]]:
    """Note signals as they arrive, even while the main thread is in C code, such as a collective,
    where Python handles none. Gives a function that returns those noted since its last call."""
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)

    def new() -> list[int]:
        try:
            return [signum for signum in here.recv(64) if signum in SIGNALS]
        except OSError:  # none, or no longer noted
            return []

    before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    try:
        yield new
    finally:
        signal.set_wakeup_fd(before)
        here.close()
        there.close()


def is_unread(stream: int) -> bool:
    """Return whether the pipe or terminal that a file descriptor writes to has no reader left."""
    poll = select.poll()
    poll.register(stream, select.POLLOUT)  # macOS tells nothing to who asks for nothing
    gone = select.POLLERR | select.POLLHUP  # of a pipe, Linux sets the first, macOS the second
    return any(event & gone for _, event in poll.poll(0))


def discard(stream: int) -> None:
    """Discard whatever is written to a file descriptor from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _handle(signum: int, frame: FrameType | None) -> None:
    if signum == signal.SIGHUP:
        for stream in filter(is_unread, (STDOUT, STDERR)):  # where printing would fail
            discard(stream)
    if _state["deferred"] and not _state["received"]:
        _state["received"] = signum
    else:
        raise Interrupted(signum)
