"""The routes that take pictures, of all protocols, before the framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.errors import InternalError, ServiceError
from service.http_api.exchange import Exchange
from service.http_api.problems import disconnected_response, problem
from service.http_api.segment.routes import SegmentTarget, target_of


class PictureEndpoint(Protocol):
    """Answers the requests of one protocol."""

    async def answer(self, request: Request, exchange: Exchange, target: SegmentTarget) -> Response:
        """Answer a request; raises what is answered instead."""
        ...


class PictureRoutes:
    """Answers the requests that carry pictures, and hands all others on.

    It stands before the framework, whose layers would add 0.13 ms to each picture.

    Args:
        app: answers all other requests.
        endpoints: by each route of the table.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, PictureEndpoint]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        target = target_of(scope["path"]) if scope["type"] == "http" else None
        if target is None:
            await self._app(scope, receive, send)
            return
        exchange = Exchange.of(scope)
        exchange.route = target.route
        try:
            request = Request(scope, receive)
            response = await self._endpoints[target.route].answer(request, exchange, target)
        except ServiceError as error:
            response = problem(error, exchange)
        except ClientDisconnect:
            response = disconnected_response(exchange)
        except Exception:
            await problem(InternalError("unexpected"), exchange)(scope, receive, send)
            raise
        await response(scope, receive, send)
