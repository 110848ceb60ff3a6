"""`scripts/playground.py`: a web page for generating text with trained models.

The page is plain HTML. It has no scripts and forbids the browser to run any, so that text from a
model can only ever be displayed: it is a page of its own in a frame, streamed as it is sampled, and
each character's probability is in an attribute that CSS shows.
"""

import asyncio
import html
import math
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from jinja2 import Environment, FileSystemLoader
from omegaconf import DictConfig
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litchar.checkpoints import Checkpoint, find, trained
from litchar.device import choose_device
from litchar.errors import UserError, check_integer, first_line, is_out_of_memory
from litchar.generation.readers import Prepared
from litchar.generation.sampling import Chooser
from litchar.generation.scoring import COLOURS
from litchar.generation.writing import Settings, beginning, typed
from litchar.serving import host
from litchar.serving.batching import Batcher, ClosedError, FullError, Order, StoppedError, Stream
from litchar.serving.pieces import Piece, Pieces, Token, Tokens, token_name
from litchar.settings import read_json
from litchar.text import Vocabulary
from litchar.text.vocabulary import describe, printable

HERE = Path(__file__).parent
MOST_LOADED = 3  # models kept in memory
N_LIKELIEST = 5  # most likely characters shown for each one chosen
LEVELS = [least for least, _ in COLOURS[::-1]]  # of surprise, in bits
SIGNS = {"\n": "↵", " ": "␣", "\t": "⇥"}  # for invisible characters
BAR = 24  # width in characters of the bar for a probability of 1
ENDS = {
    "end": "The document ended.",
    "stop": "Stopped before the stop text.",
    "length": "The length limit was reached.",
    "stopped": "Stopped.",
}
NUMBERS = tuple(field.name for field in fields(Settings) if field.name not in ("stop", "unknown"))
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; frame-src 'self'; "
    "img-src data:; form-action 'self'; frame-ancestors 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Loaded:
    """A model in memory."""

    checkpoint: Checkpoint
    model: Prepared


@lru_cache(MOST_LOADED)
def load(path: Path, changed_ns: int, device: torch.device) -> Loaded:
    """Return the model of the checkpoint at `path`; `changed_ns` is part of the cache key."""
    checkpoint = Checkpoint.load(path)
    return Loaded(checkpoint, Prepared(checkpoint.build_model(device)))


@dataclass(frozen=True)
class Run:
    """A trained model that can be selected.

    Attributes:
        name: its run directory relative to outputs/, or the path of its file.
        path: its checkpoint.
    """

    name: str
    path: Path

    @property
    def label(self) -> str:
        """The label in the list: the validation loss, if known, and the name."""
        # The file need not be in a run directory, and its summary may contain anything.
        loss = read_json(self.path.parent.parent / "summary.json").get("best_val_loss")
        return f"loss {loss:.3f}: {self.name}" if isinstance(loss, float) else self.name


class Playground:
    """State shared by the page's requests.

    Args:
        chosen: the checkpoint selected when the page opens.
    """

    def __init__(self, config: DictConfig, chosen: Path) -> None:
        self.config = config
        self.device = choose_device(config.device)
        self.outputs = Path(config.outputs_dir).resolve()
        self.chosen = chosen.resolve()
        self.batcher = Batcher(config.at_once, config.waiting)
        self.under_way: dict[str, Stream] = {}  # by page id
        self._loading = asyncio.Lock()

    def runs(self) -> list[Run]:
        """Return the runs with a checkpoint, newest first, after `chosen` if that is no run."""
        paths = [path for path in trained(self.outputs) if str(path).isprintable()]  # for the form
        runs = [Run(str(path.parents[1].relative_to(self.outputs)), path) for path in paths]
        other = [] if self.chosen in paths else [Run(str(self.chosen), self.chosen)]
        return other + runs

    async def load(self, name: str) -> Loaded:
        """Return the model of a run.

        Raises:
            UserError: there is no such run, its checkpoint is invalid, or memory ran out.
        """
        async with self._loading:
            return await asyncio.to_thread(self._load, name)

    def _load(self, name: str) -> Loaded:
        path = next((run.path for run in self.runs() if run.name == name), None)
        if path is None:
            raise UserError(f"{name}: this run no longer exists; reload the page")
        try:
            return load(path, path.stat().st_mtime_ns, self.device)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(f"{name}: out of memory ({first_line(error)})") from None

    def order(self, loaded: Loaded, form: Mapping[str, str]) -> tuple[str, int, Order]:
        """Return a form's prompt, as the model reads it, the seed and the order for the batcher.

        Raises:
            UserError: a setting is invalid, or the prompt is too long or has unknown characters.
        """
        vocabulary, cleaned = loaded.checkpoint.vocabulary, loaded.checkpoint.cleaned
        numbers: dict[str, Any] = {name: number(form, name) for name in NUMBERS}
        if numbers["seed"] is None:
            numbers["seed"] = secrets.randbelow(2**32)
        settings = Settings(**numbers)
        if settings.max_new_tokens > self.config.limit:
            raise UserError(f"Length: at most {self.config.limit} characters")
        # Forms submit line ends as \r\n.
        prompt = form.get("prompt", "").replace("\r\n", "\n")
        if len(prompt) > self.config.max_prompt:  # cleaning may take quadratic time
            raise UserError(f"Prompt: at most {self.config.max_prompt} characters")
        prompt = cleaned(prompt)
        if unknown := vocabulary.unknown(prompt):
            raise UserError(f"The model never saw {describe(unknown)}.")
        stop = cleaned(typed(form.get("stop", "")))
        ids = vocabulary.encode(prompt)
        begun = beginning(vocabulary, ids)
        tokens = Tokens(vocabulary, N_LIKELIEST)
        follow = Pieces(vocabulary, [stop] if stop else [], tokens).next
        choose = Chooser(settings, [settings.seed], len(begun) - len(ids)).choose
        order = Order(loaded.model, begun, settings.max_new_tokens, choose, follow)
        return vocabulary.decode(ids), settings.seed, order


class Characters:
    """Renders a text as HTML as it arrives, and keeps count.

    Attributes:
        n: number of characters.
        bits: their total surprise.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.n = 0
        self.bits = 0.0

    def show(self, piece: Piece) -> str:
        """Return a piece as HTML: each character with its surprise level and its tooltip."""
        by_offset: dict[int, list[Token]] = {}
        for token in piece.tokens:
            by_offset.setdefault(token.offset, []).append(token)
        shown = []
        for character in piece.text:
            tokens = by_offset.get(self.n, [])
            self.n += 1
            bits = -sum(token.log_prob or 0.0 for token in tokens) / math.log(2)
            self.bits += bits
            level = sum(bits >= least for least in LEVELS) - 1
            classes = f"s{level}" + (" n" if character == "\n" else "")
            said = escaped(self._say(character, tokens, bits))
            shown.append(
                f'<span class="{classes}" data-p="{said}" tabindex="-1">{escaped(character)}</span>'
            )
        return "".join(shown)

    def _say(self, character: str, tokens: list[Token], bits: float) -> str:
        """Return the tooltip: how likely a character was, and the most likely alternatives.

        A character of several tokens (bytes), each conditioned on the one before, gets no
        alternatives.
        """
        lines = [f"{sign(character)} was {2**-bits:.1%} likely: {bits:.1f} bits of surprise"]
        if len(tokens) == 1:
            for token, log_prob in tokens[0].likeliest or ():
                p = math.exp(log_prob)
                bar = "█" * round(BAR * p) or "▏"
                chosen = " ◂" if token == tokens[0].id else ""
                name = sign(token_name(self.vocabulary, token))
                lines.append(f"{name}  {p:6.1%} {bar}{chosen}")
        return "\n".join(lines)

    def summary(self) -> str:
        """Return the number of characters and their mean surprise, as text."""
        if not self.n:
            return "No characters"
        return f"{self.n:,} characters, {self.bits / self.n:.2f} bits each"


def sign(character: str) -> str:
    """Return a visible form of a character."""
    return SIGNS.get(character) or (character if character.isprintable() else repr(character)[1:-1])


def escaped(text: str) -> str:
    """Return a text escaped for HTML."""
    return html.escape(printable(text))


class Guard:
    """Middleware that adds security headers and refuses forms posted from other sites."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request, and add `HEADERS` to the response."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app: ASGIApp = self.app
        site = Headers(scope=scope).get("sec-fetch-site", "same-origin")
        if scope["method"] == "POST" and site != "same-origin":
            app = PlainTextResponse("This form belongs to another page.", HTTPStatus.FORBIDDEN)
        await app(scope, receive, send_with_headers)


def number(form: Mapping[str, str], name: str) -> int | float | None:
    """Return a numeric field of a form; None if it is empty.

    Raises:
        UserError: the field is not a number.
    """
    said = form.get(name, "").strip()
    if not said:
        return None
    for kind in (int, float):
        try:
            return kind(said)
        except ValueError:
            pass
    raise UserError(f"{name}={said}: must be a number")


def run(config: DictConfig) -> None:
    """Serve the page until a signal arrives.

    Raises:
        UserError: the checkpoint, the address or a setting is invalid.
    """
    for name in ("limit", "max_prompt", "at_once", "waiting"):
        check_integer(name, config[name], least=0 if name == "waiting" else 1)
    if not isinstance(config.stop, str | None):
        raise UserError(f"stop={config.stop}: must be one text, for the page to show")
    given = {name: config[name] for name in (*NUMBERS, "stop")}
    Settings(**given | {"seed": 0 if config.seed is None else config.seed})
    with host.bind(config.host, config.port) as listening:
        chosen = find(config.checkpoint, Path(config.outputs_dir))
        playground = Playground(config, chosen)
        Checkpoint.load(chosen)  # fail now, while the user is looking at the terminal
        said = f"Playground at {host.address(listening)}, Ctrl-C ends"
        app, close = build(playground), playground.batcher.close
        host.Server(app, listening, said, 0, close).serve_until_signal()


def build(playground: Playground) -> FastAPI:
    """Return the application that serves the page."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, max_body_size=1 << 20)
    app.add_middleware(Guard)
    loader = FileSystemLoader(HERE)
    pages = Environment(loader=loader, autoescape=True, finalize=lambda x: "" if x is None else x)

    @app.get("/")
    def page() -> HTMLResponse:  # in a thread, since it reads all runs
        return HTMLResponse(
            pages.get_template("playground.html").render(
                page=secrets.token_hex(8),
                runs=playground.runs(),
                chosen=playground.chosen,
                config=playground.config,
            )
        )

    @app.get("/style.css")
    async def style() -> FileResponse:
        return FileResponse(HERE / "style.css")

    def head() -> str:
        levels = [f"{least} to {most}" for least, most in pairwise(LEVELS)]
        levels.append(f"{LEVELS[-1]} or more")
        return pages.get_template("text.html").render(levels=levels)

    @app.get("/text")
    async def nothing_yet() -> HTMLResponse:
        hint = "The text will appear here. Point at or click one of its characters to see how"
        hint += " likely it was, and what could have come instead."
        return HTMLResponse(f'{head()}<p class="hint">{hint}</p>')

    @app.post("/write")
    async def write(request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        try:
            loaded = await playground.load(form.get("run", ""))
            prompt, seed, order = playground.order(loaded, form)
            (stream,) = playground.batcher.write([order])
        except (UserError, FullError, ClosedError, OSError) as error:
            shown = f'<p class="error" role="alert">{escaped(str(error))}</p>'
            busy = isinstance(error, FullError)
            status = HTTPStatus.TOO_MANY_REQUESTS if busy else HTTPStatus.BAD_REQUEST
            return HTMLResponse(head() + shown, status)
        key = form.get("page", "") or secrets.token_hex(8)
        if key in playground.under_way:
            playground.under_way[key].stop()
        playground.under_way[key] = stream
        text = text_page(head(), loaded.checkpoint.vocabulary, prompt, seed, stream, key)
        return StreamingResponse(text, media_type="text/html")

    async def text_page(
        begin: str, vocabulary: Vocabulary, prompt: str, seed: int, stream: Stream, key: str
    ) -> AsyncIterator[str]:
        characters = Characters(vocabulary)
        try:
            yield f"{begin}<pre><b>{escaped(prompt)}</b>"
            said = ENDS["stopped"]
            try:
                async for pieces in stream:
                    yield "".join(map(characters.show, pieces))
                    if pieces[-1].finish:
                        said = ENDS[pieces[-1].finish]
            except (StoppedError, ClosedError):
                pass
            end = f"{characters.summary()}, seed {seed}. {said}"
            yield f'</pre><p class="end" role="status">{end}</p>'
        finally:
            stream.cancel()
            if playground.under_way.get(key) is stream:
                del playground.under_way[key]

    @app.post("/stop")
    async def stop(request: Request) -> Response:
        stream = playground.under_way.get(str((await request.form()).get("page", "")))
        if stream is not None:
            stream.stop()
        return Response(status_code=HTTPStatus.NO_CONTENT)  # the browser stays on the page

    return app
