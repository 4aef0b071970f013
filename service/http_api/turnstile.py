"""Refusals that cost little: under overload, by the head of a request, before the framework sees it."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.errors import QueueFullError, RateLimitedError, ServiceError
from service.core.host import ModelHost
from service.core.segmenter import Segmenter
from service.http_api.access import AccessPolicy
from service.http_api.exchange import Exchange
from service.http_api.parameters import TIMEOUT_HEADER, version_number
from service.http_api.problems import problem

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


class Turnstile:
    """Answers 429 to pictures that could not be answered in time; everything else is somebody else's.

    At ten times what a device can do refusals are nine of ten requests, and what they take is missing to
    those that were admitted.

    Args:
        app: what answers the rest.
        segmenter: knows what waits.
        host: knows the served models.
        default_timeout_s: how long a client waits that does not say so.
        access: knows who asks.
    """

    def __init__(
        self,
        app: ASGIApp,
        segmenter: Segmenter,
        host: ModelHost,
        default_timeout_s: float,
        access: AccessPolicy,
    ) -> None:
        self._app = app
        self._segmenter = segmenter
        self._host = host
        self._default_timeout_s = default_timeout_s
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        answer = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            Exchange.of(scope).source = self._access.source(scope)
            try:
                self._check(scope)
            except (QueueFullError, RateLimitedError) as refusal:
                answer = problem(refusal, Exchange.of(scope))
            except ServiceError:
                pass  # a wrong model: the route says it better
        await answer(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        matches = zip(ROUTES, (path.fullmatch(scope["path"]) for path in _PATHS), strict=True)
        route, match = next(((route, match) for route, match in matches if match), (None, None))
        timeout_s = _timeout_s(scope, self._default_timeout_s)
        if match is None or timeout_s is None:
            return
        wanted = match.groupdict()
        number = version_number(wanted["version"]) if "version" in wanted else None
        version = self._host.find(wanted.get("model"), number).version
        exchange = Exchange.of(scope)
        try:
            deadline_s = exchange.started_s + timeout_s
            self._segmenter.check(version, deadline_s=deadline_s, source=exchange.source)
        except (QueueFullError, RateLimitedError):
            exchange.route, exchange.served = route, (version.name, version.number)
            raise


def _timeout_s(scope: Scope, default_s: float) -> float | None:
    """Return how long the client waits; None if it is not clear, which the route has to say."""
    if b"timeout_ms" in scope["query_string"]:
        found = _TIMEOUT.findall(scope["query_string"])
        return int(found[0]) / 1e3 if len(found) == 1 else None
    values = [value for name, value in scope["headers"] if name == _TIMEOUT_HEADER]
    if not values:
        return default_s
    return int(values[0]) / 1e3 if _MILLISECONDS.fullmatch(values[0]) else None
