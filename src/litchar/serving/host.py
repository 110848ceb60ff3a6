"""A web application at a port of this machine, until a signal ends it."""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from litchar.errors import UserError, check_integer

SECONDS_TO_CLOSE = 5  # for what is left after a text was ended


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that nobody else listens at; port 0 is any free one.

    Raises:
        UserError: there is no such place, or it is taken.
    """
    if not isinstance(host, str) or not host:
        raise UserError(f"host={host}: must be an address of this machine, such as 127.0.0.1")
    check_integer("port", port, 0, 65535)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (socket.gaierror, UnicodeError):
        raise UserError(f"host={host}: this machine has no such address") from None
    except OSError as error:
        raise UserError(
            f"port={port}: cannot be had at {host} ({error.strerror}); "
            "try another one, or port=0 for any that is free"
        ) from None


def address(listening: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listening: socket.socket) -> bool:
    """Return whether only this machine reaches a socket."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


class Server(uvicorn.Server):
    """Answers requests until SIGINT or SIGTERM comes, which then goes its usual way.

    Args:
        said: on the terminal, once requests are taken.
        shutdown_seconds: that texts under way have to end, before
        close: ends them.
    """

    def __init__(
        self,
        app: FastAPI,
        listening: socket.socket,
        said: str,
        shutdown_seconds: int,
        close: Callable[[], None],
    ) -> None:
        self.said = said + open_to(app, listening)
        config = uvicorn.Config(
            app,
            log_level="warning",
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=shutdown_seconds + SECONDS_TO_CLOSE,
        )
        super().__init__(config)
        # What is cut off as it ends is no error, and has nobody to be told to.
        logging.getLogger("uvicorn.error").addFilter(lambda record: not self.should_exit)
        self.listening = listening
        self.shutdown_seconds = shutdown_seconds
        self.close = close

    def serve_until_signal(self) -> None:
        """Answer requests; close whatever ends that."""
        try:
            print(self.said, flush=True)  # the socket listens: who is early waits for an answer
            self.run(sockets=[self.listening])
        finally:
            self.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and wait for those under way."""
        asyncio.get_running_loop().call_later(self.shutdown_seconds, self.close)
        await super().shutdown(sockets)


def open_to(app: FastAPI, listening: socket.socket) -> str:
    """Let `app` answer those whom `listening` is meant for; return what to say of that."""
    if is_loopback(listening):
        # A page from elsewhere may have its own name lead here; it is not answered by that name.
        names = ["localhost", "127.0.0.1", "[::1]", "::1", listening.getsockname()[0]]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
        return ""
    return "\nWhoever reaches this address may use it: there are no passwords."
