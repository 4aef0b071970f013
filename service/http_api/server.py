"""The listening socket and the uvicorn server behind it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from service.http_api.protocol import GuardedProtocol

_BACKLOG = 2048
_KEEP_ALIVE_S = 10


class BindError(Exception):
    """The address cannot be listened on; the message names it."""


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket before anything slow begins, so that a taken port is told at once.

    Args:
        host: a name or an address.
        port: 0 = one that is free.

    Raises:
        BindError: the port is taken or not allowed, or there is no such address here.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BindError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise BindError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address to type into a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer(uvicorn.Server):
    """Serves an application on an open socket until it is told to stop.

    Signals are left to the caller: uvicorn would raise them again after its own end, and the process
    would die of SIGTERM instead of exiting with 0.

    Args:
        app: what answers.
        grace_s: how long requests may take to finish once ``should_exit`` is set.
    """

    def __init__(self, app: ASGIApp, *, grace_s: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=GuardedProtocol,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=grace_s,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
