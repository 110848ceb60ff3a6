"""The OpenAI completions protocol: what a request may say, and how it is refused."""

import re
from collections.abc import Sequence
from dataclasses import fields
from http import HTTPStatus
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from litchar.generation.sampling import Sampling
from litchar.serving.batching import ClosedError, FullError

MOST_LIKELIEST = 20  # upper limit on `logprobs`
MOST_SEED = 2**63 - 1


class StreamOptions(BaseModel):
    """What a stream contains besides the text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = False
    include_obfuscation: bool | None = None  # would pad events; ignored


class CompletionRequest(BaseModel):
    """A request, with OpenAI's field names, or this package's where OpenAI has none."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    prompt: str | list[str] | list[int] | list[list[int]] | None = ""
    max_tokens: int | None = Field(default=16, ge=0)
    n: int | None = Field(default=1, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = Field(default=None, ge=0, le=MOST_SEED)
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LIKELIEST)
    echo: bool | None = False
    user: str | None = None  # for the client's own records
    # Unsupported fields, accepted with values that change nothing.
    best_of: int | None = None
    frequency_penalty: float | None = 0
    presence_penalty: float | None = 0
    logit_bias: dict[str, float] | None = None
    suffix: str | None = None

    def sampling(self) -> Sampling:
        """Return the sampling settings; null means a setting's default.

        Raises:
            UserError: a setting is out of range.
        """
        names = {field.name for field in fields(Sampling)}
        return Sampling(**self.model_dump(include=names, exclude_none=True))

    def stops(self) -> list[str]:
        """Return the stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def prompts(self) -> Sequence[str | Sequence[int]]:
        """Return the prompts, as texts or as ids."""
        prompt = "" if self.prompt is None else self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [prompt]
        return cast(list[str] | list[list[int]], prompt)


class RefusedError(Exception):
    """A request was refused; the message says why."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


def refusal(
    message: str, status: int, param: str | None = None, code: str | None = None
) -> JSONResponse:
    """Return an error in the format that OpenAI's clients parse."""
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status)


def answer_errors(app: FastAPI) -> None:
    """Make `app` report errors in the format that OpenAI's clients parse."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return refusal(str(error), error.status, error.param, error.code)

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        kind = request.headers.get("content-type", "").partition(";")[0].lower()
        if not re.fullmatch(r"application/(.+\+)?json", kind.strip()):
            return refusal("send JSON, with Content-Type: application/json", HTTPStatus.BAD_REQUEST)
        if first["type"] == "json_invalid":
            return refusal(f"the body is not JSON: {first['ctx']['error']}", HTTPStatus.BAD_REQUEST)
        param = next(map(str, first["loc"][1:]), None)
        if first["type"] == "extra_forbidden":  # which may be within another
            param = ".".join(map(str, first["loc"][1:]))
        return refusal(f"{param or 'the body'}: {first['msg']}", HTTPStatus.BAD_REQUEST, param)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if error.__cause__:  # why FastAPI could not read the body
            return refusal(f"the body is not JSON: {error.__cause__}", error.status_code)
        if error.status_code == HTTPStatus.NOT_FOUND:  # such as /v1/chat/completions
            return refusal(
                f"{request.url.path} is not served here; a model of characters continues texts: "
                "POST /v1/completions",
                error.status_code,
            )
        return refusal(str(error.detail), error.status_code)

    @app.exception_handler(FullError)
    async def busy(_: Request, error: FullError) -> Response:
        return refusal(str(error), HTTPStatus.TOO_MANY_REQUESTS)

    @app.exception_handler(ClosedError)
    async def closed(_: Request, error: ClosedError) -> Response:
        return refusal(str(error), HTTPStatus.SERVICE_UNAVAILABLE)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return refusal("the server failed; see its log", HTTPStatus.INTERNAL_SERVER_ERROR)
