"""The picture inside a request: a raw body, or the one ``file`` of a form; bounded while it arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from service.core.deadline import within
from service.core.errors import (
    EmptyBodyError,
    PayloadTooLargeError,
    RequestTooSlowError,
    UnsupportedMediaError,
)
from service.http_api.form import FormFile, boundary_of


@dataclass(frozen=True)
class BodyLimits:
    """What one request may send.

    Args:
        max_bytes: of the body, form framing included.
        receive_timeout_s: from the head to the last byte.
    """

    max_bytes: int = 20 * 1024 * 1024
    receive_timeout_s: float = 30.0


async def read_picture(request: Request, limits: BodyLimits) -> bytes:
    """Receive the bytes of the picture that a request carries.

    ``Content-Type`` only tells a form from a raw body; what the bytes are is decided by their first ones.

    Raises:
        UnsupportedMediaError: the body is compressed (``Content-Encoding``).
        PayloadTooLargeError: it is, or declares to be, larger than the limit.
        RequestTooSlowError: it did not arrive in time.
        InvalidArgumentError: a form is malformed, or has no ``file``, or two.
        EmptyBodyError: there are no bytes.
        ClientDisconnect: the client left.
    """
    _refuse_by_head(request, limits)
    boundary = boundary_of(request.headers.get("content-type", ""))
    too_slow = f"the body did not arrive within {limits.receive_timeout_s:g} s"
    async with within(limits.receive_timeout_s, RequestTooSlowError, too_slow):
        data = await (_raw(request, limits) if boundary is None else _form_file(request, limits, boundary))
    if not data:
        raise EmptyBodyError("there is no picture in the request")
    return data


def _refuse_by_head(request: Request, limits: BodyLimits) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaError("compressed bodies are not accepted: send the picture as it is")
    declared = request.headers.get("content-length", "").lstrip("0")  # of which there may be thousands
    if declared.isascii() and declared.isdigit() and _is_more(declared, limits.max_bytes):
        raise _too_large(limits)


def _is_more(digits: str, limit: int) -> bool:
    return len(digits) > len(str(limit)) or int(digits) > limit


async def _raw(request: Request, limits: BodyLimits) -> bytes:
    received = bytearray()
    async for chunk in _chunks(request, limits):
        received += chunk
    return bytes(received)


async def _form_file(request: Request, limits: BodyLimits, boundary: bytes) -> bytes:
    form = FormFile(boundary)
    async for chunk in _chunks(request, limits):
        form.feed(chunk)
    return form.finish()


async def _chunks(request: Request, limits: BodyLimits) -> AsyncIterator[bytes]:
    received = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        received += len(chunk)
        if received > limits.max_bytes:
            raise _too_large(limits)
        more = message.get("more_body", False)
        yield chunk


def _too_large(limits: BodyLimits) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"the body is larger than {limits.max_bytes} bytes")
