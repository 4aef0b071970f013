"""The outermost layer of every request: its id, its log line, its metrics, the last handler of errors."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core.errors import DrainingError, RequestTooSlowError
from service.core.readiness import Readiness
from service.http_api.exchange import Exchange
from service.http_api.problems import CLIENT_CLOSED_CODE, problem
from service.spans import NO_TRACING, RequestSpan, Tracing, end_request, working_on
from service.telemetry import Metrics

_log = structlog.get_logger()

_ANSWERED = ("http", "websocket")
_STARTS = ("http.response.start", "websocket.http.response.start")

READY_PATHS = ("/readyz", "/healthz", "/health", "/ping")
"""Paths of readiness: the service's own name first; the others are defaults of load balancers."""

PROBE_PATHS = frozenset({"/livez", "/startupz", "/v2/health/live", "/v2/health/ready", *READY_PATHS})


class HttpEdge:
    """Wraps an ASGI application; plain ASGI, so that a client that leaves is seen by the handler.

    Args:
        app: what answers.
        lifecycle: while it drains, each answer ends its connection.
        metrics: counts the answers.
        tracing: decides which requests are traced; probes never are.
    """

    def __init__(
        self, app: ASGIApp, lifecycle: Readiness, metrics: Metrics, tracing: Tracing = NO_TRACING
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and log one line about it; a probe that succeeds is logged at debug level."""
        if scope["type"] not in _ANSWERED:
            await self._app(scope, receive, send)
            return
        method = scope.get("method", "GET")  # a WebSocket has none
        if method == "HEAD":  # the server drops the body; the copy keeps its own scope as it was
            scope = {**scope, "method": "GET"}
        exchange = Exchange.begin(scope, now_s=time.monotonic())
        if scope["path"] not in PROBE_PATHS:
            exchange.span = self._tracing.begin(Headers(scope=scope), exchange.started_s)
        with (
            structlog.contextvars.bound_contextvars(request_id=exchange.request_id),
            working_on(exchange.span),
        ):
            with self._counted(scope), exchange.held:
                status = await self._answer(scope, receive, send, exchange)
            try:
                # uvloop sends at the end of a turn of the loop: the client does not wait for the log.
                await asyncio.sleep(0)
            finally:
                self._take_note(scope, exchange, method=method, status=status)

    def _counted(self, scope: Scope) -> AbstractContextManager[None]:
        """Count a request as in flight; a WebSocket is a stream, which counts itself."""
        return self._metrics.in_flight() if scope["type"] == "http" else nullcontext()

    def _take_note(self, scope: Scope, exchange: Exchange, *, method: str, status: int) -> None:
        route = exchange.route or _route(scope)
        duration_s = time.monotonic() - exchange.started_s
        self._metrics.request_done(
            protocol="http",
            route=route,
            code=exchange.code,
            duration_s=duration_s,
            served=exchange.served,
            trace_id=None if exchange.span is None else exchange.span.trace_id,
        )
        if exchange.span is not None:
            _end_span(exchange.span, exchange, method, route, status)
        self._metrics.stages_done(exchange.stages_s)
        if not exchange.received_s:
            self._count_unreceived(exchange.code)
        quiet = scope["path"] in PROBE_PATHS and exchange.code == "ok"
        (_log.debug if quiet else _log.info)(
            "request",
            method=method,
            route=route,
            status=status,
            code=exchange.code,
            duration_ms=round(1e3 * duration_s, 2),
            **exchange.notes,
        )

    def _count_unreceived(self, code: str) -> None:
        if code == RequestTooSlowError.code:
            self._metrics.expired("receive")
        elif code == CLIENT_CLOSED_CODE:
            self._metrics.cancelled("receive")

    async def _answer(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> int:
        status = 0

        async def send_labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "websocket.accept":
                status = HTTPStatus.SWITCHING_PROTOCOLS.value
                MutableHeaders(scope=message)["X-Request-Id"] = exchange.request_id
            elif message["type"] in _STARTS:
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = exchange.request_id
                if self._lifecycle.draining:
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_labelled)
        except asyncio.CancelledError:  # the process ends, and its grace is over
            if not status:
                refusal = DrainingError("the service stopped before it could answer")
                await problem(refusal, exchange)(scope, receive, send_labelled)
        except Exception:  # noqa: BLE001 - the outermost edge of a request; it was answered as `internal`
            _log.exception("request failed")
        return status


def _end_span(span: RequestSpan, exchange: Exchange, method: str, route: str, status: int) -> None:
    if exchange.received_s:
        span.stage("receive", exchange.started_s, exchange.started_s + exchange.received_s)
    end_request(
        span,
        f"{method} {route}",
        {"http.request.method": method, "http.route": route, "http.response.status_code": status},
        request_id=exchange.request_id,
        code=exchange.code,
        served=exchange.served,
        is_our_fault=status >= HTTPStatus.INTERNAL_SERVER_ERROR,
    )


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")
