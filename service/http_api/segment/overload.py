"""Where pictures leave the way of all other requests: refused by their head under overload, or segmented."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.errors import QueueFullError, RateLimitedError, ServiceError
from service.core.models.model_host import ModelHost
from service.core.pictures.segmenter import Segmenter
from service.http_api.access import AccessPolicy
from service.http_api.exchange import Exchange
from service.http_api.problems import problem
from service.http_api.segment.parameters import TIMEOUT_HEADER, wanted_model

ROUTES = (
    "/v1/segment",
    "/v1/models/{model}:segment",
    "/v1/models/{model}/versions/{version}:segment",
)
"""What segments pictures, the default model first."""

_PATHS = tuple(re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", route)) for route in ROUTES)
_TIMEOUT = re.compile(rb"(?:^|&)timeout_ms=([0-9]{1,6})(?=&|$)")
_TIMEOUT_HEADER = TIMEOUT_HEADER.lower().encode()
_MILLISECONDS = re.compile(rb"[0-9]{1,6}")


class OverloadCheck:
    """Answers 429 to pictures that could not be answered in time, and hands the others on past the framework.

    At ten times what a device can do refusals are nine of ten requests, and what they take is missing to
    those that were admitted. The layers of a framework add 0.13 ms to each picture, in which nothing happens.

    Args:
        app: what answers all that is no picture.
        segment: what answers pictures; finds ``model`` and ``version`` in the scope's ``path_params``.
        segmenter: knows what waits.
        host: knows the served models.
        default_timeout_s: how long a client waits that does not say so.
        access: knows who asks.
    """

    def __init__(
        self,
        app: ASGIApp,
        segment: ASGIApp,
        segmenter: Segmenter,
        host: ModelHost,
        *,
        default_timeout_s: float,
        access: AccessPolicy,
    ) -> None:
        self._app = app
        self._segment = segment
        self._segmenter = segmenter
        self._host = host
        self._default_timeout_s = default_timeout_s
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        answer = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            exchange = Exchange.of(scope)
            exchange.source = self._access.source(scope)
            if (found := _route(scope["path"])) is not None:
                exchange.route, scope["path_params"] = found
                answer = self._refusal(scope, exchange) or self._segment
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope, exchange: Exchange) -> ASGIApp | None:
        timeout_s = _timeout_s(scope, self._default_timeout_s)
        if timeout_s is None:
            return None
        try:
            version = self._host.find(*wanted_model(scope["path_params"])).version
            deadline_s = exchange.started_s + timeout_s
            self._segmenter.check(version, deadline_s=deadline_s, source=exchange.source)
        except (QueueFullError, RateLimitedError) as refusal:
            exchange.served = version.name, version.number
            return problem(refusal, exchange)
        except ServiceError:
            pass  # a wrong model: the route says it better
        return None


def _route(path: str) -> tuple[str, dict[str, str]] | None:
    """Return the route that segments pictures at a path, and what the path says; None = it is another's."""
    for route, pattern in zip(ROUTES, _PATHS, strict=True):
        if (match := pattern.fullmatch(path)) is not None:
            return route, match.groupdict()
    return None


def _timeout_s(scope: Scope, default_s: float) -> float | None:
    """Return how long the client waits; None if it is not clear, which the route has to say."""
    if b"timeout_ms" in scope["query_string"]:
        found = _TIMEOUT.findall(scope["query_string"])
        return int(found[0]) / 1e3 if len(found) == 1 else None
    values = [value for name, value in scope["headers"] if name == _TIMEOUT_HEADER]
    if not values:
        return default_s
    return int(values[0]) / 1e3 if _MILLISECONDS.fullmatch(values[0]) else None
