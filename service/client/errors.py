"""What a client may meet.

ClientError                     anything that keeps an answer away
├── RefusedError                the service answered with an error
├── UnreachableError            nobody answered, or the connection broke
├── ProtocolError               the answer makes no sense
└── SourceError                 a camera or film cannot be read
"""

from __future__ import annotations


class ClientError(Exception):
    """Anything that keeps an answer away."""


class RefusedError(ClientError):
    """The service answered with an error.

    Args:
        code: the service's own, for example ``queue_full``.
        message: for people.
        retry_after_s: when to try again; None = the same request will be refused again.
        request_id: finds the line in the service's log.
    """

    def __init__(
        self, code: str, message: str, *, retry_after_s: float | None = None, request_id: str = ""
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class UnreachableError(ClientError):
    """Nobody answered, or the connection broke."""


class ProtocolError(ClientError):
    """The answer makes no sense."""


class SourceError(ClientError):
    """A camera or film cannot be read."""
