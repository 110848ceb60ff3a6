"""Hosting a web application on a port of this machine until a signal arrives."""

import asyncio
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from litchar.errors import UserError, check_integer

SECONDS_TO_CLOSE = 5  # for connections left open after their texts were ended


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 means any free port.

    Raises:
        UserError: the host or port is invalid, or the port cannot be bound.
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
            f"port={port}: is not available at {host} ({error.strerror}); "
            "try another one, or port=0 for any that is free"
        ) from None


def address(listening: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listening: socket.socket) -> bool:
    """Return whether the socket can be reached from this machine only."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


class Server(uvicorn.Server):
    """A server that runs until SIGINT or SIGTERM, which then takes its usual course.

    If only this machine can reach it, it answers to this machine's own names only.

    Args:
        said: message for the terminal once the server accepts requests.
        shutdown_seconds: grace period for texts in progress.
        close: ends those that are left after it.
    """

    def __init__(
        self,
        app: FastAPI,
        listening: socket.socket,
        said: str,
        shutdown_seconds: int,
        close: Callable[[], None],
    ) -> None:
        if is_loopback(listening):
            # Against DNS rebinding: a foreign page may point its own host name at this machine.
            names = ["localhost", "127.0.0.1", "[::1]", "::1", listening.getsockname()[0]]
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
        else:
            said += "\nAnyone who can reach this address can use it: there is no password."
        self.said = said
        config = uvicorn.Config(
            app,
            log_level="warning",
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=shutdown_seconds + SECONDS_TO_CLOSE,
        )
        super().__init__(config)
        # Requests cut off during shutdown are not errors worth logging.
        logging.getLogger("uvicorn.error").addFilter(lambda record: not self.should_exit)
        self.listening = listening
        self.shutdown_seconds = shutdown_seconds
        self.close = close

    def serve_until_signal(self) -> None:
        """Serve requests; call `close` however that ends."""
        handled = threading.current_thread() is threading.main_thread()
        if handled and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            # A closed terminal ends it like SIGTERM, of which uvicorn takes care.
            signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
        try:
            print(self.said, flush=True)  # the socket listens already, so early requests wait
            self.run(sockets=[self.listening])
        finally:
            self.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more requests, and wait for those in progress."""
        asyncio.get_running_loop().call_later(self.shutdown_seconds, self.close)
        await super().shutdown(sockets)
