"""Pages of other origins that may use the service from a browser."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.http_api.segment.parameters import TIMEOUT_HEADER

_REQUEST_HEADERS = ("Authorization", "Content-Type", "X-Request-Id", TIMEOUT_HEADER)
_ANSWER_HEADERS = (
    "Retry-After",
    "Server-Timing",
    "X-Image-Height",
    "X-Image-Width",
    "X-Inference-Size",
    "X-Model-Name",
    "X-Model-Version",
    "X-Request-Id",
)
"""Headers of answers that a script can read only if they are named."""

_PREFLIGHT_S = 600


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Return the application with CORS: preflights need no key, and every answer names its origin.

    Args:
        app: answers the requests; its errors get the headers of CORS too, so that scripts can read them.
        origins: such as ``https://app.example.org``; ``*`` = any; none = the application itself.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=_REQUEST_HEADERS,
        expose_headers=_ANSWER_HEADERS,
        max_age=_PREFLIGHT_S,
    )
