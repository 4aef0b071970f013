"""The listening socket and the uvicorn server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from service.http_api.connection.connection_limits import ConnectionLimits
from service.http_api.connection.handshakes import HANDSHAKE_S, stop_handshakes
from service.http_api.connection.protocol import GuardedConfig, GuardedProtocol
from service.telemetry import Metrics

_BACKLOG = 2048
_OTHER_FILES = 512
"""Files for models, workers, other frontends and logs: 60 are open at rest, and one for each picture."""
_NO_WEBSOCKET = "none"
_WEBSOCKET = "service.http_api.connection.websocket:GuardedWebSocket"
"""Imported by name: a service without WebSockets does not load it."""

_PING_INTERVAL_S = 10.0
_PING_TIMEOUT_S = 10.0
"""After which a client that does not read its answers, or is gone, is cut off."""

_LAST_WORDS_S = 1.0
"""Time in which requests that are cut off send their answer."""


class BindError(Exception):
    """The service cannot listen on the address; the message names it."""


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket. Call it before anything slow, so that a used port is reported at once.

    Args:
        host: a name or an address.
        port: 0 = any free port.

    Raises:
        BindError: the port is used or not allowed, or this machine has no such address.
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


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def affordable_connections(wanted: int) -> int:
    """Raise the limit of open files of this process and return the connections that it allows.

    Accepting more connections than there are file descriptors ends in a loop of failures, so some
    descriptors stay reserved for other files.

    Args:
        wanted: most connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - _OTHER_FILES))


class HttpServer(uvicorn.Server):
    """Serves an application on an open socket until it is told to stop.

    The caller handles signals: uvicorn would raise them again after its own end, and the process would die of
    SIGTERM instead of exiting with 0.

    Args:
        app: answers the requests.
        listener: from ``listen``; closed when the server stops.
        grace_s: time in which requests may finish after ``stop``, in seconds.
        limits: of connections.
        metrics: counts the connections that are refused.
        tls: what connections are encrypted with; None = they are not.
        websocket_paths: those with a WebSocket.
        max_message_bytes: of a message of a WebSocket.

    Attributes:
        cut_off: whether requests were cut off, by ``cut`` or at the end of ``grace_s``.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        grace_s: float,
        limits: ConnectionLimits,
        metrics: Metrics,
        tls: ssl.SSLContext | None = None,
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
        self._tls = tls
        # A handshake costs a file descriptor before the connection counts as one.
        self._handshake_s = None if tls is None else limits.head_timeout_s

    async def answer(self) -> None:
        """Answer requests until ``stop`` is called and all are answered or ``grace_s`` is over."""
        await self.serve(sockets=[self._listener.dup()])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections; uvicorn's own way has no limit for handshakes but a minute."""
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                self._protocol,
                sock=listener,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_s,
                backlog=_BACKLOG,
            )
            for listener in sockets or ()
        ]
        self.started = True

    def stop(self) -> None:
        """Accept no more connections and finish the requests that have begun."""
        self.should_exit = True

    def cut(self) -> None:
        """Answer the requests that have begun with ``draining``, without waiting for them."""
        self.should_exit = self.force_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, finish the accepted requests, and cut off those that do not end."""
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
        """Accept the clients that have connected: closing the socket would cut them off."""
        loop = asyncio.get_running_loop()
        taken = []
        with self._listener, contextlib.suppress(BlockingIOError):
            self._listener.setblocking(False)
            while True:
                connection, _ = self._listener.accept()
                taken.append(
                    loop.connect_accepted_socket(
                        self._protocol,
                        connection,
                        ssl=self._tls,
                        ssl_handshake_timeout=self._handshake_s,
                    )
                )
        await asyncio.gather(*taken, return_exceptions=True)  # a handshake may fail

    def _protocol(self) -> GuardedProtocol:
        config = self.config
        assert isinstance(config, GuardedConfig)
        return GuardedProtocol(config, self.server_state, self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
