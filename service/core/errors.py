"""The errors of the service, as one tree.

Core errors carry a fixed ``code`` and no status: each adapter owns a table from code to status.

ServiceError                        anything the service refuses or fails to do
├── RequestError                    the request itself cannot be answered
│   ├── InvalidArgumentError        a parameter is unknown, malformed or out of range
│   ├── EmptyBodyError              there is no image in the request
│   ├── UnauthenticatedError        no credentials, or wrong ones
│   ├── ForbiddenError              the credentials do not allow this, or the host is not allowed
│   ├── ModelNotFoundError          no such model is served
│   ├── VersionNotFoundError        the model is served, but not in this version
│   ├── NotFoundError               no such path or resource
│   ├── NotAcceptableError          no offered representation satisfies the client
│   ├── RequestTooSlowError         the request was not received in time
│   ├── ConflictError               the resource is in another state
│   ├── PayloadTooLargeError        the body is larger than the limit
│   ├── TooManyPixelsError          the picture's header declares more pixels than the limit
│   ├── UnsupportedMediaError       the body is not a JPEG, PNG or WebP picture
│   └── UndecodableImageError       the body starts as a picture but does not decode
├── OverloadError                   the request is fine, the service is busy: try again later
│   ├── QueueFullError              the queue is full
│   ├── RateLimitedError            this client has filled its share of the queue
│   ├── LoadingError                the model is not ready yet
│   ├── DrainingError               the service is about to stop
│   ├── NoWorkerError               no worker runs
│   └── BusyError                   the memory for decoded pictures is taken
├── DeadlineExceededError           the answer would come too late
├── ModelOutputInvalidError         the model produced values that are no scores
├── StorageFullError                there is no room left to write
└── InternalError                   a defect of the service
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Anything the service refuses or fails to do; ``code`` is part of the public interface."""

    code: ClassVar[str] = "internal"


class RequestError(ServiceError):
    """The request itself cannot be answered."""


class InvalidArgumentError(RequestError):
    """A parameter is unknown, malformed or out of range."""

    code = "invalid_argument"


class EmptyBodyError(RequestError):
    """There is no image in the request."""

    code = "empty_body"


class UnauthenticatedError(RequestError):
    """There are no credentials, or wrong ones."""

    code = "unauthenticated"


class ForbiddenError(RequestError):
    """The credentials do not allow this, or the host is not allowed."""

    code = "forbidden"


class ModelNotFoundError(RequestError):
    """No such model is served."""

    code = "model_not_found"


class VersionNotFoundError(RequestError):
    """The model is served, but not in this version."""

    code = "version_not_found"


class NotFoundError(RequestError):
    """There is no such path or resource."""

    code = "not_found"


class NotAcceptableError(RequestError):
    """No offered representation satisfies the client."""

    code = "not_acceptable"


class RequestTooSlowError(RequestError):
    """The request was not received in time."""

    code = "request_too_slow"


class ConflictError(RequestError):
    """The resource is in a state that does not allow this."""

    code = "conflict"


class PayloadTooLargeError(RequestError):
    """The body is larger than the limit."""

    code = "payload_too_large"


class TooManyPixelsError(RequestError):
    """The picture's header declares more pixels, or a longer side, than the limits allow."""

    code = "too_many_pixels"


class UnsupportedMediaError(RequestError):
    """The body is not a JPEG, PNG or WebP picture."""

    code = "unsupported_media"


class UndecodableImageError(RequestError):
    """The body starts as a picture but does not decode."""

    code = "undecodable_image"


class OverloadError(ServiceError):
    """The service is busy; the same request may succeed later.

    Args:
        message: the scarce resource.
        retry_after_s: time until a retry makes sense, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        """Store the time beside the message."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFullError(OverloadError):
    """The queue is full."""

    code = "queue_full"


class RateLimitedError(OverloadError):
    """This client has filled its share of the queue."""

    code = "rate_limited"


class LoadingError(OverloadError):
    """The model is not ready yet."""

    code = "loading"


class DrainingError(OverloadError):
    """The service is about to stop."""

    code = "draining"


class NoWorkerError(OverloadError):
    """No worker runs; it is started again."""

    code = "no_worker"


class BusyError(OverloadError):
    """The memory for decoded pictures is taken."""

    code = "busy"


class DeadlineExceededError(ServiceError):
    """The answer would come after the request's deadline."""

    code = "deadline_exceeded"


class ModelOutputInvalidError(ServiceError):
    """The model produced values that are no scores."""

    code = "model_output_invalid"


class StorageFullError(ServiceError):
    """There is no room left to write."""

    code = "storage_full"


class InternalError(ServiceError):
    """A defect of the service."""


_MAX_MESSAGE = 300


def message_for_clients(error: ServiceError) -> str:
    """Return the message of an error for clients; that of ``InternalError`` stays in the log."""
    if isinstance(error, InternalError):
        return "the service failed, its log tells why"
    text = str(error)  # may quote what the client sent
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."
