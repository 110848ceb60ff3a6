"""A server of OpenAI's completions protocol: /v1/completions, /v1/models, /health."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence, Sized
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from omegaconf import DictConfig
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litchar.checkpoints import Checkpoint
from litchar.errors import UserError
from litchar.generation.readers import Prepared
from litchar.generation.sampling import Chooser, Sampling
from litchar.generation.writing import beginning
from litchar.serving.batching import Batcher, ClosedError, Order, Stream, given
from litchar.serving.pieces import Pieces, Token, Tokens, read, token_name
from litchar.serving.protocol import CompletionRequest, RefusedError, StreamOptions, answer_errors
from litchar.text.vocabulary import describe

MOST_STOPS, LONGEST_STOP = 16, 256  # each is searched for after every token
CLIENT_CLOSED_REQUEST = 499  # as in nginx's log
T = TypeVar("T")


class Completions:
    """A model and the batcher that answers requests for it.

    Args:
        limits: on each request and on all of them together, see `conf/serve.yaml`.
    """

    def __init__(
        self, checkpoint: Checkpoint, model: Prepared, name: str, limits: DictConfig
    ) -> None:
        self.vocabulary = checkpoint.vocabulary
        self.cleaned = checkpoint.cleaned
        self.model = model
        self.name = name
        self.limits = limits
        self.created = int(checkpoint.path.stat().st_mtime)
        self.batcher = Batcher(limits.at_once, limits.waiting)

    def card(self) -> dict[str, Any]:
        """Return the model's entry in /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "litchar",
        }

    def check(self, request: CompletionRequest) -> None:
        """Raise RefusedError if a field of a request is out of range or not supported."""
        self.check_model(request.model)
        limits = self.limits
        if request.max_tokens is not None and request.max_tokens > limits.max_tokens:
            raise RefusedError(
                f"max_tokens={request.max_tokens}: this server writes at most {limits.max_tokens}",
                "max_tokens",
            )
        if request.max_tokens == 0 and not request.echo:
            raise RefusedError("max_tokens=0: nothing to write; use it with echo", "max_tokens")
        stops = request.stops()
        if not all(stops):
            raise RefusedError("stop: a stop string needs at least one character", "stop")
        if len(stops) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in stops):
            raise RefusedError(
                f"stop: at most {MOST_STOPS} strings of at most {LONGEST_STOP} characters", "stop"
            )
        if request.best_of not in (None, request.n or 1):
            raise RefusedError("best_of is not supported; use n", "best_of")
        for name in ("frequency_penalty", "presence_penalty"):
            if getattr(request, name):
                raise RefusedError(f"{name} is not supported; use repetition_penalty", name)
        for name in ("logit_bias", "suffix"):
            if getattr(request, name):
                raise RefusedError(f"{name} is not supported", name)
        if request.stream_options is not None and not request.stream:
            raise RefusedError("stream_options needs stream", "stream_options")
        if not request.prompts():
            raise RefusedError("prompt: the list is empty", "prompt")
        n_texts = len(request.prompts()) * (request.n or 1)
        most = limits.at_once + limits.waiting
        if n_texts > most:
            raise RefusedError(
                f"prompt, n: a request may have 1 to {most} texts, not {n_texts}", "n"
            )

    def check_model(self, name: str) -> None:
        """Raise RefusedError unless `name` is that of the served model."""
        if name != self.name:
            raise RefusedError(
                f"model {name!r} is not served here; use {self.name!r}",
                "model",
                "model_not_found",
                HTTPStatus.NOT_FOUND,
            )

    def encode(self, prompt: str | Sequence[int]) -> np.ndarray:
        """Return the ids of a prompt: (T,).

        Raises:
            RefusedError: it is too long, or has characters or ids that the model does not know.
        """
        size = len(self.vocabulary)
        self._check_length(prompt)  # cleaning may take quadratic time
        if isinstance(prompt, str):
            text = self.cleaned(prompt)
            if unknown := self.vocabulary.unknown(text):
                raise RefusedError(f"prompt: the model never saw {describe(unknown)}", "prompt")
            try:
                ids = self.vocabulary.encode(text)
            except UserError as error:  # a lone surrogate
                raise RefusedError(f"prompt: {error}", "prompt") from None
        else:
            wrong = next((token for token in prompt if not 0 <= token < size), None)
            if wrong is not None:
                raise RefusedError(f"prompt: token {wrong} is not one of the {size}", "prompt")
            ids = np.array(prompt)
        self._check_length(ids)
        return ids.astype(np.int64)

    def _check_length(self, prompt: Sized) -> None:
        if len(prompt) > self.limits.max_prompt:
            raise RefusedError(
                f"prompt: {len(prompt)} tokens, but this server reads at most "
                f"{self.limits.max_prompt}",
                "prompt",
            )

    def begin(self, request: CompletionRequest) -> list["Choice"]:
        """Queue all choices of a request and return them.

        Raises:
            RefusedError: the request cannot be served.
            FullError: the queue has no room for it.
        """
        self.check(request)
        try:
            sampling = request.sampling()
        except UserError as error:
            raise RefusedError(str(error), str(error).partition("=")[0]) from None
        seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        prompts = [self.encode(prompt) for prompt in request.prompts()]
        choices = [
            Choice(self, request, prompt, sampling, seed + i, again=i > 0)
            for prompt in prompts
            for i in range(request.n or 1)
        ]
        orders = [order for choice in choices for order in choice.orders.values()]
        most = self.limits.at_once + self.limits.waiting
        if len(orders) > most:  # it would never fit
            raise RefusedError(
                f"prompt, n: a request may have 1 to {most} texts, not {len(orders)}; with echo "
                "and logprobs, a prompt counts too",
                "n",
            )
        streams = iter(self.batcher.write(orders))
        for choice in choices:
            choice.streams = {name: next(streams) for name in choice.orders}
        return choices


class Choice:
    """One text of a request, in the protocol's form.

    Attributes:
        orders: orders for the batcher: `prompt`, to score it, if its log-probabilities are
            requested, and `text`, to generate what follows, if anything.
        streams: the streams of the orders.
        n_read: number of prompt tokens, counted in the first choice of each prompt only.
        n_written: number of sampled tokens.
    """

    def __init__(
        self,
        served: Completions,
        request: CompletionRequest,
        prompt: np.ndarray,
        sampling: Sampling,
        seed: int,
        again: bool,
    ) -> None:
        vocabulary, model, n_likeliest = served.vocabulary, served.model, request.logprobs or 0
        self.vocabulary = vocabulary
        self.logprobs = request.logprobs is not None
        self.echo = vocabulary.decode(prompt) if request.echo else None
        self.orders: dict[str, Order] = {}
        self.streams: dict[str, Stream] = {}
        self.n_read = 0 if again else len(prompt)
        self.n_written = 0
        self.prompt_tokens: list[Token] = []  # at first only the one without context

        begun = beginning(vocabulary, prompt)
        if request.echo and self.logprobs:
            of_prompt = Tokens(vocabulary, n_likeliest)
            if len(begun) == len(prompt):
                self.prompt_tokens.append(of_prompt.first(int(prompt[0])))
            if len(begun) > 1:
                rest, follow = begun[1:], partial(read, tokens=of_prompt)
                self.orders["prompt"] = Order(model, begun[:1], len(rest), given(rest), follow)
        length = served.limits.max_tokens if request.max_tokens is None else request.max_tokens
        if length:
            stop = [served.cleaned(text) for text in request.stops()]
            offset = len(self.echo or "")
            tokens = Tokens(vocabulary, n_likeliest, offset) if self.logprobs else None
            pieces = Pieces(vocabulary, stop, tokens)
            chooser = Chooser(sampling, [seed], len(begun) - len(prompt))
            self.orders["text"] = Order(model, begun, length, chooser.choose, pieces.next)

    async def parts(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the text in parts, each an entry of the protocol's `choices`."""
        try:
            if "prompt" in self.streams:
                async for pieces in self.streams["prompt"]:
                    self.prompt_tokens += [token for piece in pieces for token in piece.tokens]
            if self.echo is not None:
                finish = None if "text" in self.streams else "length"
                yield self._part(self.echo, self.prompt_tokens, finish)
            if "text" in self.streams:
                async for pieces in self.streams["text"]:
                    self.n_written += len(pieces)
                    finish = pieces[-1].finish
                    yield self._part(
                        "".join(piece.text for piece in pieces),
                        [token for piece in pieces for token in piece.tokens],
                        "stop" if finish in ("stop", "end") else finish,
                    )
        finally:
            self.cancel()

    async def whole(self) -> dict[str, Any]:
        """Return the whole text as one part."""
        whole = self._part("", [], None)
        async for part in self.parts():
            whole["text"] += part["text"]
            whole["finish_reason"] = part["finish_reason"]
            for name, values in (part["logprobs"] or {}).items():
                whole["logprobs"][name] += values
        return whole

    def cancel(self) -> None:
        """Declare that nobody is waiting for the rest."""
        for stream in self.streams.values():
            stream.cancel()

    def _part(self, text: str, tokens: list[Token], finish: str | None) -> dict[str, Any]:
        logprobs = None
        if self.logprobs:
            logprobs = {
                "tokens": [token.text for token in tokens],
                "token_logprobs": [token.log_prob for token in tokens],
                "top_logprobs": [self._likeliest(token) for token in tokens],
                "text_offset": [token.offset for token in tokens],
            }
        return {"text": text, "logprobs": logprobs, "finish_reason": finish}

    def _likeliest(self, token: Token) -> dict[str, float] | None:
        if token.likeliest is None:
            return None
        return {token_name(self.vocabulary, i): log_prob for i, log_prob in token.likeliest}


def build(served: Completions) -> FastAPI:
    """Return the application that serves the model."""
    # FastAPI's generated documentation pages load scripts from other hosts.
    app = FastAPI(title="litchar", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, most=served.limits.body_bytes)
    answer_errors(app)

    @app.get("/")
    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> dict[str, Any]:
        batcher = served.batcher
        counts = {"writing": batcher.n_writing, "waiting": batcher.n_waiting}
        return {"status": "ok", "model": served.name} | counts

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [served.card()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        served.check_model(name)
        return served.card()

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        choices = served.begin(body)
        head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        if body.stream:
            options = body.stream_options or StreamOptions()
            return StreamingResponse(
                events(choices, head, bool(options.include_usage)), media_type="text/event-stream"
            )
        work = asyncio.gather(*(choice.whole() for choice in choices))
        try:
            wholes = await unless_gone(request, work)
        finally:  # if the client is gone, or one of the texts failed
            for choice in choices:
                choice.cancel()
        if wholes is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        answers = [{"index": i} | whole for i, whole in enumerate(wholes)]
        answer = head | {"choices": answers, "usage": usage(choices)}
        return Response(json.dumps(answer), media_type="application/json")  # lone surrogates too

    return app


class BodyLimit:
    """Middleware that limits the size of a request's body.

    FastAPI's own `max_body_size` answers in plain text, which OpenAI's clients cannot parse.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, and refuse it as soon as its body exceeds the limit."""
        n_read = 0

        async def receive_some() -> Message:
            nonlocal n_read
            message = await receive()
            n_read += len(message.get("body", b""))
            if n_read > self.most:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the body is longer than {self.most} bytes",
                )
            return message

        await self.app(scope, receive_some, send)


async def unless_gone(request: Request, work: asyncio.Future[T]) -> T | None:
    """Return the result of `work`; if the client disconnects first, cancel it and return None."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving: asyncio.Future[Any] = asyncio.create_task(gone())
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else None
    finally:
        work.cancel()
        leaving.cancel()
        await asyncio.gather(work, leaving, return_exceptions=True)  # or asyncio logs their errors


async def events(
    choices: list[Choice], head: dict[str, Any], include_usage: bool
) -> AsyncIterator[str]:
    """Yield the parts of all choices as server-sent events, as they arrive."""
    parts: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def pump(index: int, choice: Choice) -> None:
        async for part in choice.parts():
            parts.put_nowait({"index": index} | part)

    async def pump_all() -> None:
        try:
            await asyncio.gather(*(pump(index, choice) for index, choice in enumerate(choices)))
        finally:
            parts.put_nowait(None)

    pumping = asyncio.create_task(pump_all())
    try:
        while (part := await parts.get()) is not None:
            yield event(head | {"choices": [part]})
        await pumping
        if include_usage:
            yield event(head | {"choices": [], "usage": usage(choices)})
        yield "data: [DONE]\n\n"
    except Exception as error:
        closed = isinstance(error, ClosedError)
        message = str(error) if closed else "the server failed"
        yield event({"error": {"message": message, "type": "server_error"}})
        if not closed:
            raise
    finally:
        pumping.cancel()
        for choice in choices:
            choice.cancel()


def event(data: dict[str, Any]) -> str:
    """Return `data` as a server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


def usage(choices: list[Choice]) -> dict[str, int]:
    """Return the token counts of the prompts and of the texts generated."""
    n_read = sum(choice.n_read for choice in choices)
    n_written = sum(choice.n_written for choice in choices)
    return {
        "prompt_tokens": n_read,
        "completion_tokens": n_written,
        "total_tokens": n_read + n_written,
    }
