"""HTTP/1.1 of uvicorn and httptools, with limits on the parts that no application sees.

Source:
    https://github.com/encode/uvicorn/blob/0.54.0/uvicorn/protocols/http/httptools_impl.py: its internals.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import httptools
import structlog
import uvicorn
from starlette.responses import Response
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.core.errors import BusyError, InvalidArgumentError, RequestTooSlowError, ServiceError
from service.http_api.connection.connection_limits import ConnectionLimits, WriteWatch
from service.http_api.exchange import Exchange
from service.http_api.problems import HeadTooLargeError, TargetTooLongError, problem
from service.telemetry import Metrics

_log = structlog.get_logger()

MAX_HEAD_BYTES = 64 * 1024
"""Largest request line with its header fields; also the most bytes between two pieces of a body."""

MAX_TARGET_BYTES = 8 * 1024
"""Largest path with query; 64 KiB of parameters would block the event loop for 160 ms."""

MAX_HEADER_FIELDS = 100

MAX_BODY_PIECES = 65_536
"""Most chunks of a body, or reads of a body without chunks: 20 MiB are 15,000 packets of an Ethernet."""

MAX_UNWANTED_BYTES = 32 << 20
"""Most bytes of a body after its request was answered; then the connection is closed."""

MAX_PIPELINED = 16
"""Most requests that wait on a connection for earlier answers. Later ones are not read: the connection is
closed after these, and the client sends the others again (RFC 9112, 9.3.2)."""

MAX_BYTES_AHEAD = 64 * 1024
"""Most bytes of requests that wait on a connection; no more is received until their turn comes."""

_LINGER_S = 1.0
"""Time for a client to read the last answer, or to send a request that is on its way."""


class GuardedConfig(uvicorn.Config):
    """Configuration of uvicorn and of ``GuardedProtocol``.

    Args:
        app: answers the requests.
        limits: of each connection and of all together.
        metrics: counts the connections that are refused.
        websocket_paths: those with a WebSocket.
        options: uvicorn's own.

    Attributes:
        idle: idle connection -> time since which it is idle, on the clock of the event loop; the longest
            idle one is first.
    """

    def __init__(
        self,
        app: Any,
        *,
        limits: ConnectionLimits,
        metrics: Metrics,
        websocket_paths: frozenset[str] = frozenset(),
        **options: Any,
    ) -> None:
        super().__init__(app, http=GuardedProtocol, **options)
        self.websocket_paths = websocket_paths
        self.limits = limits
        self.metrics = metrics
        self.idle: dict[GuardedProtocol, float] = {}


class GuardedProtocol(HttpToolsProtocol):
    """Bounds heads, refuses malformed ones with the service's errors, and ignores most upgrades.

    A handshake of a path that has a WebSocket is handed to uvicorn's protocol for these.

    Without a bound, an endless head would be kept for ever. When a client asks to upgrade (Java's HTTP client
    asks for ``h2c`` by default), httptools takes the body for the next request; the request is therefore
    parsed again without its ``Upgrade``.
    """

    def __init__(self, config: GuardedConfig, *arguments: Any, **keywords: Any) -> None:
        super().__init__(config, *arguments, **keywords)
        self._limits = config.limits
        self._websocket_paths = config.websocket_paths
        self._idle = config.idle
        self._metrics = config.metrics
        self._head_timer: asyncio.TimerHandle | None = None
        self._writes: WriteWatch
        self._unaccounted_bytes = 0  # since the last end of a head, piece of a body, or end of a message
        self._head_bytes = 0
        self._header_fields = 0
        self._body_pieces = 0
        self._in_head = False
        self._in_body = False
        self._unwanted_bytes = 0
        self._is_upgrade = False
        self._is_refused = False
        self._answered: RequestResponseCycle | None = None  # being answered, or answered last
        self._bytes_ahead = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, unless there are too many connections."""
        super().connection_made(transport)
        self._writes = WriteWatch(transport, self._limits, self.loop.call_later, self._rest_of_answer)
        if len(self.connections) > self._limits.max_connections and not self._close_an_idle_one():
            self._metrics.rejected("too_many_connections")
            self._is_refused = True
            self._send(BusyError("there are too many connections"))
            transport.close()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the connection and tell the request that is being answered; others may wait behind it."""
        self._stop_awaiting_head()
        self._writes.stop()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes of the connection."""
        if self._is_refused or self.transport.is_closing():
            return
        self._unaccounted_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            refusal = error.__context__
            if not isinstance(refusal, InvalidArgumentError):
                refusal = InvalidArgumentError("this is no HTTP request")
            self._refuse(refusal)
        else:
            if self._unaccounted_bytes > MAX_HEAD_BYTES:
                self._refuse(_head_too_large())
        if self.pipeline:
            self._bytes_ahead += len(data)
        self._balance_reading()

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        # Not at any byte: empty lines, or the rest of a refused body, would extend the time.
        self._unset_keepalive_if_required()
        self._await_head()
        self._in_head = True
        self._is_upgrade = False
        self._head_bytes = self._header_fields = self._body_pieces = self._unwanted_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            raise TargetTooLongError(f"path and query together have at most {MAX_TARGET_BYTES} bytes")
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; fields after a body are skipped."""
        self._header_fields += 1
        self._count_head(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End a head: the request begins."""
        self._stop_awaiting_head()
        self._in_head = False
        self._unaccounted_bytes = 0
        self._is_upgrade = self.parser.should_upgrade()
        if self._is_upgrade:
            return
        if self.parser.get_http_version() == "1.1" and not any(name == b"host" for name, _ in self.headers):
            raise InvalidArgumentError("the header Host is missing")
        if len(self.pipeline) >= MAX_PIPELINED:
            raise InvalidArgumentError(f"more than {MAX_PIPELINED} requests wait on this connection")
        super().on_headers_complete()
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._unaccounted_bytes = 0
        self._body_pieces += 1
        if self._body_pieces > MAX_BODY_PIECES:
            raise InvalidArgumentError(f"the body comes in more than {MAX_BODY_PIECES} pieces")
        if self.cycle.response_complete:
            self._unwanted_bytes += len(body)
            if self._unwanted_bytes > MAX_UNWANTED_BYTES:
                raise InvalidArgumentError("the body does not end")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._unaccounted_bytes = 0
        self._in_body = False
        if not self._is_upgrade:
            super().on_message_complete()
        if self.timeout_keep_alive_task is not None:  # it was answered before
            self._await_next()

    def on_response_complete(self) -> None:
        """Wait for the next request, and for the client to take the answer."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self._await_next()
        self._balance_reading()
        self._writes.look()

    def pause_writing(self) -> None:
        """Note that the client takes its answer more slowly than it is made."""
        super().pause_writing()
        self._writes.look()

    def resume_writing(self) -> None:
        """Note that the client has caught up."""
        super().resume_writing()
        self._writes.look_again()

    def shutdown(self) -> None:
        """Close the connection after the current answer; without one, soon."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LINGER_S, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def _close_if_idle(self) -> None:
        if not self._in_head and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _balance_reading(self) -> None:
        """Read while requests wait, to notice that the client leaves, up to ``MAX_BYTES_AHEAD``."""
        if not self.pipeline:
            self._bytes_ahead = 0
        elif self._bytes_ahead > MAX_BYTES_AHEAD:
            self.flow.pause_reading()
        elif len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _rest_of_answer(self) -> int:
        cycle = self._answered
        return 0 if cycle is None or cycle.response_complete else cycle.expected_content_length

    def _close_an_idle_one(self) -> bool:
        longest = next(iter(self._idle), None)
        if longest is None or self.loop.time() - self._idle[longest] < self._limits.idle_when_full_s:
            return False
        del self._idle[longest]
        longest.transport.close()
        return True

    def _unset_keepalive_if_required(self) -> None:
        super()._unset_keepalive_if_required()
        self._idle.pop(self, None)

    def _await_next(self) -> None:
        """Close the connection unless the rest of this request, then the next request, comes in time."""
        self._unset_keepalive_if_required()
        timeout_s = self._limits.rest_timeout_s
        if not self._in_body:
            timeout_s = self._limits.idle_timeout_s
            self._idle[self] = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(timeout_s, self.timeout_keep_alive_handler)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._head_is_late)

    def _stop_awaiting_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.flow.read_paused:  # the client is not slow
            self._await_head()
        elif self._in_head or self._unaccounted_bytes:
            limit_s = self._limits.head_timeout_s
            self._refuse(
                RequestTooSlowError(
                    f"the head of the request was not here within {limit_s:g} s (limits.head_timeout_s)"
                )
            )
        else:
            self.transport.close()

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as pause:
                if self._is_websocket():
                    self._become_websocket(data[pause.args[0] :])
                    return
                data = self._head_without_upgrade() + data[pause.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            else:
                return

    def _is_websocket(self) -> bool:
        path = self.url.partition(b"?")[0].decode("latin-1")
        asks = any(name == b"upgrade" and value.lower() == b"websocket" for name, value in self.headers)
        is_free = self.cycle is None or self.cycle.response_complete
        return asks and path in self._websocket_paths and is_free and self.parser.get_method() == b"GET"

    def _become_websocket(self, rest: bytes) -> None:
        """Hand the connection over, from its handshake on."""
        self._stop_awaiting_head()
        self._unset_keepalive_if_required()
        self._writes.stop()
        self.connections.discard(self)
        protocol = self.config.ws_protocol_class(  # type: ignore[call-arg, misc]  # as uvicorn does
            self.config, self.server_state, self.app_state
        )
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(self._head(self.headers) + rest)

    def _head_without_upgrade(self) -> bytes:
        fields = [(name, value) for name, value in self.headers if name != b"upgrade"]
        if len(fields) == len(self.headers):
            raise httptools.HttpParserError  # CONNECT
        return self._head(fields)

    def _head(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b: %b\r\n" % field for field in fields]
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(lines))

    def _count_head(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > MAX_HEAD_BYTES or self._header_fields > MAX_HEADER_FIELDS:
            raise _head_too_large()

    def _refuse(self, refusal: ServiceError) -> None:
        """Answer an error and close the connection; if an answer is on its way, only that is sent."""
        if self._is_answering():
            self.cycle.keep_alive = False
            return
        if not (self._in_body and self.cycle.response_complete):  # the request has its answer already
            self._send(refusal)
            self._metrics.request_done(protocol="http", route="unmatched", code=refusal.code, duration_s=0.0)
        self._close_gently()

    def _send(self, refusal: ServiceError) -> None:
        exchange = Exchange(uuid.uuid4().hex, time.monotonic())
        response = problem(refusal, exchange)
        self.transport.write(_as_bytes(response, exchange.request_id))
        _log.info("request", status=response.status_code, code=exchange.code, request_id=exchange.request_id)

    def _close_gently(self) -> None:
        """Close after a pause: bytes that the client sends to a closed socket would delete its answer."""
        self._is_refused = True
        if self.cycle is not None:  # its application has no client any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_reading()
        if self.transport.can_write_eof():  # TLS cannot
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

    def _is_answering(self) -> bool:
        """Whether a whole request, or an answer that has begun, is on its way."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return cycle.response_started or not cycle.more_body or bool(self.pipeline)


def _head_too_large() -> HeadTooLargeError:
    return HeadTooLargeError(
        f"the head of a request has at most {MAX_HEADER_FIELDS} fields and {MAX_HEAD_BYTES} bytes"
    )


def _as_bytes(response: Response, request_id: str) -> bytes:
    fields = [*response.raw_headers, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
    head = b"".join(b"%b: %b\r\n" % field for field in fields)
    return b"%b%b\r\n%b" % (STATUS_LINE[response.status_code], head, bytes(response.body))
