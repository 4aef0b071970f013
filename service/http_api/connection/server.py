"""The listening socket and the uvicorn server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from service.http_api.connection.connection_limits import ConnectionLimits
from service.http_api.connection.handshakes import HANDSHAKE_S, stop_handshakes
from service.http_api.connection.protocol import GuardedConfig, GuardedProtocol
from service.telemetry import Metrics

_BACKLOG = 2048
_OTHER_FILES = 512
"""Models, workers, sockets of other frontends, logs: 60 are open at rest; and one for each picture."""
_NO_WEBSOCKET = "none"
_WEBSOCKET = "service.http_api.connection.websocket:GuardedWebSocket"
"""Imported by name: a service without WebSockets does not load it."""

_PING_INTERVAL_S = 10.0
_PING_TIMEOUT_S = 10.0
"""After which a client that does not read its answers, or is gone, is cut off."""

_LAST_WORDS_S = 1.0
"""For requests that are cut off to say so."""


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


def affordable_connections(wanted: int) -> int:
    """Return how many connections this process can have, and let it open as many files as it may.

    Accepting one more than there are file descriptors ends in a loop of failures, so that a few are kept for
    everything else.

    Args:
        wanted: at most so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - _OTHER_FILES))


class HttpServer(uvicorn.Server):
    """Serves an application on an open socket until it is told to stop.

    Signals are left to the caller: uvicorn would raise them again after its own end, and the process
    would die of SIGTERM instead of exiting with 0.

    Args:
        app: what answers.
        listener: from ``listen``; closed when the server stops.
        grace_s: how long requests may take to finish once it stops.
        limits: of connections.
        metrics: counts the connections that are refused.
        websocket_paths: those with a WebSocket.
        max_message_bytes: of a message of a WebSocket.

    Attributes:
        cut_off: requests were cut off in the end, by ``cut`` or because they took too long.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        grace_s: float,
        limits: ConnectionLimits,
        metrics: Metrics,
        websocket_paths: frozenset[str] = frozenset(),
        max_message_bytes: int = 20 * 1024 * 1024,
    ) -> None:
        super().__init__(
            GuardedConfig(
                app,
                limits=limits,
                metrics=metrics,
                websocket_paths=websocket_paths,
                ws=_WEBSOCKET if websocket_paths else _NO_WEBSOCKET,
                ws_max_size=max_message_bytes,
                ws_ping_interval=_PING_INTERVAL_S,
                ws_ping_timeout=_PING_TIMEOUT_S,
                ws_per_message_deflate=False,  # pictures and masks are compressed
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=grace_s,
            )
        )
        self.cut_off = False
        self._listener = listener

    async def answer(self) -> None:
        """Answer until ``stop`` is called and everything is answered, or its grace is over."""
        await self.serve(sockets=[self._listener.dup()])

    def stop(self) -> None:
        """Accept nothing more, and end with what has begun."""
        self.should_exit = True

    def cut(self) -> None:
        """Do not even wait for that: answer it as ``draining``."""
        self.should_exit = self.force_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, finish what was accepted, and cut off what does not end."""
        stop_handshakes(self._listener)
        await asyncio.sleep(HANDSHAKE_S)
        for server in self.servers:
            server.close()
        await self._take_in()
        await super().shutdown(sockets)
        if self.server_state.tasks:
            self.cut_off = True
            for task in self.server_state.tasks:
                task.cancel()
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_WORDS_S)

    async def _take_in(self) -> None:
        """Accept who has connected already: closing the socket would cut them off."""
        loop = asyncio.get_running_loop()
        with self._listener, contextlib.suppress(BlockingIOError):
            self._listener.setblocking(False)
            while True:
                connection, _ = self._listener.accept()
                await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> GuardedProtocol:
        config = self.config
        assert isinstance(config, GuardedConfig)
        return GuardedProtocol(config, self.server_state, self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
