"""``/page/camera``: the frames of a browser's camera over a WebSocket.

Each binary message is one message of the gRPC method ``SegmentStream``: a ``StreamRequest`` of the page, a
``StreamResponse`` of the service. A text message of the page ends its frames.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.errors import (
    BusyError,
    DrainingError,
    ForbiddenError,
    InternalError,
    InvalidArgumentError,
    ServiceError,
    message_for_clients,
)
from service.http_api.access import AccessPolicy
from service.http_api.exchange import Exchange
from service.http_api.problems import CLIENT_CLOSED_CODE, problem

CAMERA_PATH = "/page/camera"
SUBPROTOCOL = "segmentation.v1"

_KEY_PREFIX = "bearer."
"""Of the subprotocol that carries a key, as unpadded base64url: a browser sets no other header."""

_MAX_REASON_BYTES = 123
_NORMAL, _GOING_AWAY, _POLICY, _UNEXPECTED, _TRY_AGAIN = 1000, 1001, 1008, 1011, 1013
"""Codes of RFC 6455, 7.4.1, and of its registry."""


@dataclass
class FrameCall:
    """One stream, as the log line of its request tells it.

    Attributes:
        served: name and number of the version that answers; None = none does.
        log_fields: outcomes of its frames.
    """

    served: tuple[str, int] | None = None
    log_fields: dict[str, Any] = field(default_factory=dict)


class AnswerFrames(Protocol):
    """Answers the frames of one stream until it ends."""

    async def __call__(
        self,
        call: FrameCall,
        receive: Callable[[], Awaitable[bytes | None]],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Read and send encoded messages; raise an error of the service that ends the stream.

        Args:
            call: gets what the log tells.
            receive: returns the next message; None = there are no more.
            send: sends one, and waits while the client is slow.
        """
        ...


class CameraRoute:
    """Answers the WebSocket of the camera page, and hands all other requests on.

    Args:
        app: answers all other requests.
        answer: answers the frames.
        access: what the handshake must show: the key may be a subprotocol.
        origins: whose pages may open a stream besides the service's own; ``*`` = any.
        max_streams: open at the same time.
    """

    def __init__(
        self,
        app: ASGIApp,
        answer: AnswerFrames,
        *,
        access: AccessPolicy,
        origins: Sequence[str],
        max_streams: int,
    ) -> None:
        self._app = app
        self._answer = answer
        self._access = access
        self._origins = origins
        self._max_streams = max_streams
        self._open_streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["path"] != CAMERA_PATH:
            await self._app(scope, receive, send)
            return
        exchange = Exchange.of(scope)
        exchange.route = CAMERA_PATH
        try:
            self._check(scope, exchange)
        except ServiceError as refusal:
            await problem(refusal, exchange)(scope, receive, send)
            return
        self._open_streams += 1
        try:
            await _Connection(receive, send).converse(self._answer, exchange)
        finally:
            self._open_streams -= 1

    def _check(self, scope: Scope, exchange: Exchange) -> None:
        headers = _with_key(Headers(scope=scope))
        admission = self._access.admit(headers, scope["path"])
        if admission is not None:
            exchange.admitted(admission)
        if scope["type"] != "websocket":
            raise InvalidArgumentError("this path is a WebSocket: connect to it with ws:// or wss://")
        self._check_origin(headers)
        if SUBPROTOCOL not in scope["subprotocols"]:
            raise InvalidArgumentError(f"the WebSocket needs the subprotocol {SUBPROTOCOL}")
        if self._open_streams >= self._max_streams:
            raise BusyError(f"{self._max_streams} streams are open, and more are not allowed")

    def _check_origin(self, headers: Headers) -> None:
        """Refuse pages of other sites: browsers let every page open a WebSocket to anywhere."""
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or origin in self._origins:
            return
        try:
            host = urlsplit(origin).netloc
        except ValueError:
            raise InvalidArgumentError("Origin is malformed") from None
        if host != headers.get("host", "").lower():
            raise ForbiddenError("a page of another origin may not open a stream (server.cors_origins)")


class _Connection:
    """One WebSocket."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._is_gone = False
        self._conversation: asyncio.Task[None] | None = None

    async def converse(self, answer: AnswerFrames, exchange: Exchange) -> None:
        """Accept the connection, have its frames answered, and close it with the reason of its end."""
        await self._receive()  # websocket.connect
        await self._send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL, "headers": []})
        call = FrameCall()
        code, reason = _NORMAL, ""
        try:
            await self._unless_gone(answer(call, self._next_message, self._send_message))
        except ServiceError as error:
            exchange.code = error.code
            code, reason = _closing(error)
        except Exception:
            exchange.code = InternalError.code
            code, reason = _closing(InternalError("unexpected"))
            raise
        finally:
            exchange.served = call.served
            exchange.notes.update(call.log_fields)
            if self._is_gone:
                exchange.code = CLIENT_CLOSED_CODE
            else:
                await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _unless_gone(self, conversation: Awaitable[None]) -> None:
        """Await a conversation; one whose client leaves is cancelled."""
        self._conversation = asyncio.ensure_future(conversation)
        try:
            await self._conversation
        except OSError:  # uvicorn's, when it sends to a client that has left
            self._is_gone = True
        except asyncio.CancelledError:
            if not self._is_gone:
                self._conversation.cancel()
                raise

    async def _next_message(self) -> bytes | None:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._is_gone = True
            assert self._conversation is not None
            self._conversation.cancel()
            return None
        data: bytes | None = message.get("bytes")
        return data

    async def _send_message(self, data: bytes) -> None:
        await self._send({"type": "websocket.send", "bytes": data})


def _with_key(headers: Headers) -> Headers:
    """Return the headers with the key of a subprotocol where the others are looked for."""
    offered = (one.strip() for one in headers.get("sec-websocket-protocol", "").split(","))
    encoded = next((one.removeprefix(_KEY_PREFIX) for one in offered if one.startswith(_KEY_PREFIX)), None)
    if encoded is None:
        return headers
    try:
        key = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode("latin-1")
    except (binascii.Error, ValueError):
        raise InvalidArgumentError(f"the subprotocol {_KEY_PREFIX}... holds no base64url") from None
    completed = MutableHeaders(raw=list(headers.raw))
    completed["authorization"] = f"Bearer {key}"
    return completed


_CODES: dict[type[ServiceError], int] = {
    DrainingError: _GOING_AWAY,
    InternalError: _UNEXPECTED,
    BusyError: _TRY_AGAIN,
}


def _closing(error: ServiceError) -> tuple[int, str]:
    """Return the code and the reason with which an error closes a WebSocket."""
    reason = f"{error.code}: {message_for_clients(error)}".encode()[:_MAX_REASON_BYTES]
    return _CODES.get(type(error), _POLICY), reason.decode(errors="ignore")
