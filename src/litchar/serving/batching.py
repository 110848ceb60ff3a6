"""Continuous batching: one thread generates many texts together, one token of each per turn.

Texts join between turns, and leave when they are finished or cancelled. The other texts in a batch
never change a text: on a CPU each is computed separately, though with rotary positions the weights
are fetched from memory once for all of them (`generation.lean`).
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from litchar.generation.readers import Prepared, Reader
from litchar.generation.sampling import Step
from litchar.serving.pieces import Piece


class FullError(Exception):
    """The queue of waiting texts is full."""

    def __init__(self) -> None:
        super().__init__("too many texts are waiting; try again")


class StoppedError(Exception):
    """The user stopped the text."""


class ClosedError(Exception):
    """The batcher was closed before the text was finished."""

    def __init__(self) -> None:
        super().__init__("the server is ending")


@dataclass(frozen=True)
class Order:
    """A text to generate.

    Attributes:
        model: the model to generate with.
        prompt: ids, at least one: (T,)
        length: maximum number of ids to generate.
        choose: takes the ids since its last call, (1, T), and the logits after them, (1, V), and
            returns the next id: (1,)
        follow: takes each step, and whether it is the last, and returns its piece.
    """

    model: Prepared
    prompt: np.ndarray
    length: int
    choose: Callable[[np.ndarray, np.ndarray], np.ndarray]
    follow: Callable[[Step, bool], Piece]


def given(ids: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a `choose` that returns `ids`, (T,), one after the other."""
    rest = iter(ids)
    return lambda idx, logits: np.array([next(rest)])


class Stream:
    """A text in progress, as seen from the event loop: an async iterator over its pieces."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def cancel(self) -> None:
        """Declare that nobody is waiting for the rest."""
        self.cancelled = True

    def stop(self) -> None:
        """End the iteration with StoppedError, after the pieces that have arrived so far."""
        self.cancel()
        self.put(StoppedError())

    def put(self, piece: Piece | Exception) -> None:
        """Pass a piece, or the error that ended the text, to the event loop from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is listening
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        """Yield the pieces that arrived since the last iteration, up to the final one.

        Raises:
            Exception: the error that ended the text.
        """
        try:
            finished = False
            while not finished:
                arrived = await self._pieces.get()
                pieces: list[Piece] = []
                while isinstance(arrived, Piece):
                    pieces.append(arrived)
                    if self._pieces.empty():
                        break
                    arrived = self._pieces.get_nowait()
                if pieces:
                    yield pieces
                if isinstance(arrived, Exception):
                    raise arrived
                finished = pieces[-1].finish is not None
        finally:
            self.cancel()


class Batcher:
    """Generates texts in a thread of its own.

    Args:
        most_at_once: how many texts are generated together; further ones are queued.
        most_waiting: how many texts may be queued.
    """

    def __init__(self, most_at_once: int, most_waiting: int) -> None:
        self.most_at_once = most_at_once
        self.most_waiting = most_waiting
        self._waiting: deque[Stream] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.n_writing = 0
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def write(self, orders: Sequence[Order]) -> list[Stream]:
        """Queue all of `orders` or none, and return their streams; called from an event loop.

        Raises:
            FullError: the queue has no room for all of them.
            ClosedError: the batcher is closed.
        """
        with self._changed:
            if self._closed:
                raise ClosedError
            self._waiting = deque(stream for stream in self._waiting if not stream.cancelled)
            free = self.most_at_once - self.n_writing + self.most_waiting
            if len(self._waiting) + len(orders) > free:
                raise FullError
            streams = [Stream(order) for order in orders]
            self._waiting.extend(streams)
            self._changed.notify()
        return streams

    @property
    def n_waiting(self) -> int:
        """Number of queued texts that have not been cancelled."""
        with self._changed:
            return sum(not stream.cancelled for stream in self._waiting)

    def close(self) -> None:
        """Stop the thread; unfinished texts end with ClosedError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        texts: list[_Text] = []
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self.n_writing)
                if self._closed:
                    break
                joining: list[Stream] = []
                while self._waiting and len(texts) + len(joining) < self.most_at_once:
                    joining.append(self._waiting.popleft())
                self.n_writing = len(texts) + len(joining)
            for stream in joining:
                texts.append(_Text(stream))
                with _ending(texts[-1:]):
                    texts[-1].open()
            texts = _staying(texts)
            self._turn(texts)
            texts = _staying(texts)
            with self._changed:
                self.n_writing = len(texts)
            time.sleep(0)  # lets the event loop send the new pieces
        for stream in [*self._waiting, *(text.stream for text in texts)]:
            stream.put(ClosedError())

    def _turn(self, texts: list["_Text"]) -> None:
        """Generate one token of each text."""
        for model in {text.order.model: None for text in texts}:
            own = [text for text in texts if text.order.model is model]
            with _ending(own):
                with torch.inference_mode():
                    all_logits = model.read([t.reader for t in own], [t.idx for t in own])
                for text, logits in zip(own, all_logits, strict=True):
                    with _ending([text]):
                        text.take(logits)


def _staying(texts: list["_Text"]) -> list["_Text"]:
    """Return the texts that continue."""
    return [text for text in texts if not (text.ended or text.stream.cancelled)]


@contextlib.contextmanager
def _ending(texts: list["_Text"]) -> Iterator[None]:
    """End `texts` with any exception raised inside, such as out of memory; the thread goes on."""
    try:
        yield
    except Exception as error:
        for text in texts:
            text.ended = True
            text.stream.put(error)


class _Text:
    """A text in progress, as seen from the thread."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.order = stream.order
        self.reader: Reader
        self.ended = False
        self.idx = self.order.prompt[None].astype(np.int64)
        self._n_left = self.order.length

    def open(self) -> None:
        """Open the reader."""
        with torch.inference_mode():
            self.reader = self.order.model.open(1, self.idx.shape[1] + self.order.length)

    def take(self, logits: np.ndarray) -> None:
        """Choose the next id, and pass on its piece."""
        ids = self.order.choose(self.idx, logits)
        self.idx = ids[:, None]
        self._n_left -= 1
        piece = self.order.follow(Step(ids, logits), self._n_left == 0)
        self.stream.put(piece)
        self.ended = piece.finish is not None
