"""The table from error code to gRPC status code, and statuses with error details."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from service.core.errors import OverloadError, ServiceError, message_for_clients

ERROR_DOMAIN = "segmentation.v1"
"""Domain of the reasons in ``ErrorInfo``."""

DETAILS_KEY = "grpc-status-details-bin"
"""Key of the trailing metadata with a ``google.rpc.Status``."""

STATUS_OF_CODE: Mapping[str, grpc.StatusCode] = MappingProxyType(
    {
        "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
        "empty_body": grpc.StatusCode.INVALID_ARGUMENT,
        "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
        "forbidden": grpc.StatusCode.PERMISSION_DENIED,
        "model_not_found": grpc.StatusCode.NOT_FOUND,
        "version_not_found": grpc.StatusCode.NOT_FOUND,
        "not_found": grpc.StatusCode.NOT_FOUND,
        "not_acceptable": grpc.StatusCode.INVALID_ARGUMENT,
        "request_too_slow": grpc.StatusCode.DEADLINE_EXCEEDED,
        "conflict": grpc.StatusCode.ALREADY_EXISTS,
        "payload_too_large": grpc.StatusCode.INVALID_ARGUMENT,
        "too_many_pixels": grpc.StatusCode.INVALID_ARGUMENT,
        "unsupported_media": grpc.StatusCode.INVALID_ARGUMENT,
        "undecodable_image": grpc.StatusCode.INVALID_ARGUMENT,
        "queue_full": grpc.StatusCode.RESOURCE_EXHAUSTED,
        "rate_limited": grpc.StatusCode.RESOURCE_EXHAUSTED,
        "model_output_invalid": grpc.StatusCode.INTERNAL,
        "internal": grpc.StatusCode.INTERNAL,
        "loading": grpc.StatusCode.UNAVAILABLE,
        "draining": grpc.StatusCode.UNAVAILABLE,
        "no_worker": grpc.StatusCode.UNAVAILABLE,
        "busy": grpc.StatusCode.UNAVAILABLE,
        "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
        "storage_full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)

_OUR_FAULT = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
)

_MIN_RETRY_S = 0.001


def is_our_fault(code: str) -> bool:
    """Return whether the service is to blame for an outcome: ``ok``, or the code of an error."""
    return STATUS_OF_CODE.get(code) in _OUR_FAULT


def status_number(code: str) -> int:
    """Return the number of the status code for an error code."""
    value: tuple[int, str] = STATUS_OF_CODE[code].value
    return value[0]


def status_of(error: ServiceError, request_id: str) -> Status:
    """Return the status of a failed call, with the error code, the request id and the time to wait.

    Args:
        error: of an ``InternalError`` clients learn no details.
        request_id: of the call, as in its log line.
    """
    status = Status(code=status_number(error.code), message=message_for_clients(error))
    status.details.add().Pack(ErrorInfo(reason=error.code.upper(), domain=ERROR_DOMAIN))
    status.details.add().Pack(RequestInfo(request_id=request_id))
    if isinstance(error, OverloadError):
        delay = Duration()
        delay.FromMilliseconds(round(1e3 * max(_MIN_RETRY_S, error.retry_after_s)))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return status
