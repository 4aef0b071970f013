"""The outermost layer of every request: its id, its one log line, the last catch."""

from __future__ import annotations

import time

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http_api.exchange import Exchange

_log = structlog.get_logger()

PROBE_PATHS = frozenset({"/livez", "/readyz", "/startupz"})


class Edge:
    """Wraps an ASGI application; plain ASGI, so that a client that leaves is seen by the handler.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and log one line about it; a probe that succeeds is logged at debug level."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":  # the server drops the body; the copy keeps its own scope as it was
            scope = {**scope, "method": "GET"}
        exchange = Exchange.begin(scope, now_s=time.monotonic())
        with structlog.contextvars.bound_contextvars(request_id=exchange.request_id):
            status = await self._answer(scope, receive, send, exchange)
            quiet = scope["path"] in PROBE_PATHS and exchange.code == "ok"
            (_log.debug if quiet else _log.info)(
                "request",
                method=method,
                route=_route(scope),
                status=status,
                code=exchange.code,
                duration_ms=round(1e3 * (time.monotonic() - exchange.started_s), 2),
                **exchange.notes,
            )

    async def _answer(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> int:
        status = 0

        async def send_labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = exchange.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_labelled)
        except Exception:  # noqa: BLE001 - the outermost edge of a request; it was answered as `internal`
            _log.exception("request failed")
        return status


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")
