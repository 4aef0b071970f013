"""Errors as ``application/problem+json`` (RFC 9457), and the one table from error code to HTTP status.

Below ``/v2`` an error is ``{"error": text, "code": ..., "request_id": ...}``, which clients of the Open
Inference Protocol read.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

from fastapi import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from service.core.errors import (
    BusyError,
    InternalError,
    InvalidArgumentError,
    LoadingError,
    NotFoundError,
    OverloadError,
    RequestTooSlowError,
    ServiceError,
    UnauthenticatedError,
    message_for_clients,
)
from service.http_api.exchange import Exchange

PROBLEM_TYPE = "application/problem+json"

PLAIN_ERROR_TYPE = "application/json"
"""Of errors of the Open Inference Protocol: KServe's client reads no other, not even one with a charset."""

STATUS_OF_CODE: Mapping[str, HTTPStatus] = MappingProxyType(
    {
        "invalid_argument": HTTPStatus.BAD_REQUEST,
        "empty_body": HTTPStatus.BAD_REQUEST,
        "unauthenticated": HTTPStatus.UNAUTHORIZED,
        "forbidden": HTTPStatus.FORBIDDEN,
        "model_not_found": HTTPStatus.NOT_FOUND,
        "version_not_found": HTTPStatus.NOT_FOUND,
        "not_found": HTTPStatus.NOT_FOUND,
        "not_acceptable": HTTPStatus.NOT_ACCEPTABLE,
        "request_too_slow": HTTPStatus.REQUEST_TIMEOUT,
        "conflict": HTTPStatus.CONFLICT,
        "payload_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "too_many_pixels": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "unsupported_media": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "undecodable_image": HTTPStatus.UNPROCESSABLE_ENTITY,
        "queue_full": HTTPStatus.TOO_MANY_REQUESTS,
        "rate_limited": HTTPStatus.TOO_MANY_REQUESTS,
        "model_output_invalid": HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
        "loading": HTTPStatus.SERVICE_UNAVAILABLE,
        "draining": HTTPStatus.SERVICE_UNAVAILABLE,
        "no_worker": HTTPStatus.SERVICE_UNAVAILABLE,
        "busy": HTTPStatus.SERVICE_UNAVAILABLE,
        "deadline_exceeded": HTTPStatus.GATEWAY_TIMEOUT,
        "storage_full": HTTPStatus.INSUFFICIENT_STORAGE,
    }
)

CLIENT_CLOSED_REQUEST = 499
"""Status in the log when the client left before the answer; never sent."""

CLIENT_CLOSED_CODE = "client_closed_request"

_SPREAD_S = 3

_HUGGING_FACE_PATHS = ("/hf/", "/models/")
"""Here errors also say what is wrong where Hugging Face's clients look for it."""


class MethodNotAllowedError(InvalidArgumentError):
    """The path exists, but not with this method: HTTP's own 405."""

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{method} is not allowed here, only {allowed}")
        self.allowed = allowed


class HeadTooLargeError(InvalidArgumentError):
    """The head of the request is too large: HTTP's own 431."""


class TargetTooLongError(InvalidArgumentError):
    """Path and query together are too long: HTTP's own 414."""


def problem(error: ServiceError, exchange: Exchange) -> Response:
    """Render an error; the details of a defect stay in the log.

    Args:
        error: its message is for the client, except that of ``InternalError``.
        exchange: of the failed request; notes the code.
    """
    exchange.code = error.code
    status = _status(error)
    if exchange.has_plain_errors:
        plain = {"error": message_for_clients(error), "code": error.code, "request_id": exchange.request_id}
        return Response(json.dumps(plain), status.value, _headers(error), PLAIN_ERROR_TYPE)
    body = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "code": error.code,
        "detail": message_for_clients(error),
        "request_id": exchange.request_id,
    }
    if exchange.path.startswith(_HUGGING_FACE_PATHS):
        body["error"] = body["detail"]
    return Response(json.dumps(body), status.value, _headers(error), PROBLEM_TYPE)


_STATUS_OF_HTTP_ERROR: Mapping[type[ServiceError], HTTPStatus] = MappingProxyType(
    {
        MethodNotAllowedError: HTTPStatus.METHOD_NOT_ALLOWED,
        HeadTooLargeError: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        TargetTooLongError: HTTPStatus.REQUEST_URI_TOO_LONG,
    }
)
"""Errors that only HTTP has; the code of all is ``invalid_argument``."""


def _status(error: ServiceError) -> HTTPStatus:
    return _STATUS_OF_HTTP_ERROR.get(type(error)) or STATUS_OF_CODE[error.code]


def _headers(error: ServiceError) -> dict[str, str]:
    match error:
        case BusyError() | LoadingError():
            # Clients that are refused together must not come back together.
            return {"Retry-After": str(_whole_s(error) + random.randrange(_SPREAD_S))}  # noqa: S311 - no secret
        case OverloadError():
            return {"Retry-After": str(_whole_s(error))}
        case RequestTooSlowError():
            return {"Connection": "close"}  # the rest of the body is still to come
        case UnauthenticatedError():
            return {"WWW-Authenticate": "Bearer"}
        case MethodNotAllowedError():
            return {"Allow": error.allowed}
    return {}


def _whole_s(error: OverloadError) -> int:
    return max(1, math.ceil(error.retry_after_s))


async def service_error_response(request: Request, error: ServiceError) -> Response:
    """Answer an error of the service."""
    return problem(error, Exchange.of(request.scope))


async def routing_error_response(request: Request, error: HTTPException) -> Response:
    """Answer an unknown path, or a method that a path does not have."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        refusal: ServiceError = MethodNotAllowedError(request.method, (error.headers or {}).get("Allow", ""))
    elif error.status_code == HTTPStatus.NOT_FOUND:
        refusal = NotFoundError("there is nothing at this path")
    else:
        refusal = InvalidArgumentError("the request is malformed")
    return problem(refusal, Exchange.of(request.scope))


async def unexpected_error_response(request: Request, _error: Exception) -> Response:
    """Answer a defect; the edge logs it."""
    return problem(InternalError("unexpected"), Exchange.of(request.scope))


def disconnected_response(exchange: Exchange) -> Response:
    """Note that the client left; this answer is never sent."""
    exchange.code = CLIENT_CLOSED_CODE
    return Response(status_code=CLIENT_CLOSED_REQUEST)
