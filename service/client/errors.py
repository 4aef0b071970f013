"""The errors of clients.

ClientError                     a picture or frame has no answer
├── RefusedError                the service answered with an error
├── UnreachableError            the service gave no answer, or the connection broke
├── ProtocolError               the answer is not one of this service
└── SourceError                 a camera or film cannot be read, or a film cannot be written
"""

from __future__ import annotations

__all__ = ["ClientError", "ProtocolError", "RefusedError", "SourceError", "UnreachableError"]


class ClientError(Exception):
    """A picture or frame has no answer."""


class RefusedError(ClientError):
    """The service answered with an error.

    Args:
        code: error code of the service, for example ``queue_full``.
        message: for people.
        retry_after_s: seconds until another attempt may succeed; None = the same request fails again.
        request_id: finds the line in the log of the service.
    """

    def __init__(
        self, code: str, message: str, *, retry_after_s: float | None = None, request_id: str = ""
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class UnreachableError(ClientError):
    """The service gave no answer, or the connection broke: a network, a proxy or a stopped service."""


class ProtocolError(ClientError):
    """The answer is not one of this service, or not one of this version."""


class SourceError(ClientError):
    """A camera or film cannot be read, or a film cannot be written."""
