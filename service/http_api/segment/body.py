"""The body of a request: a raw picture, or the field ``file`` of a form. Size and time are bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from service.core.deadline import within
from service.core.errors import (
    EmptyBodyError,
    InvalidArgumentError,
    PayloadTooLargeError,
    RequestTooSlowError,
    UnsupportedMediaError,
)
from service.http_api.segment.form import FormFile, boundary_of
from service.http_api.segment.inflation import WINDOW_BITS, Inflation

DocumentT = TypeVar("DocumentT", bound=BaseModel)
Hold = Callable[[int], Awaitable[None]]
"""Reserves memory for a body that has this many bytes so far."""


@dataclass(frozen=True)
class BodyLimits:
    """Limits of the body of one request.

    Args:
        max_bytes: largest body, form framing included.
        receive_timeout_s: longest time from the first byte to the last, in seconds.
        grace_s: time after which a body must arrive at a pace that completes it in time, in seconds.
        min_bytes_per_s: lowest pace of a body of unknown size.
        setting: name of the setting behind ``receive_timeout_s``, for error messages; empty = none.
    """

    max_bytes: int = 20 * 1024 * 1024
    receive_timeout_s: float = 30.0
    grace_s: float = 5.0
    min_bytes_per_s: int = 8192
    setting: str = "limits.receive_timeout_s"

    def allowed_s(self, received: int, expected: int) -> float:
        """Return the time after the first byte at which a body of this length is given up, in seconds.

        A constant pace of at least ``min_bytes_per_s`` that completes the body in time is never given up.

        Args:
            received: bytes so far.
            expected: bytes in total; 0 = unknown.
        """
        grace_s = min(self.grace_s, self.receive_timeout_s / 2)
        pace = max(self.min_bytes_per_s, expected / (self.receive_timeout_s - grace_s))
        return min(self.receive_timeout_s, grace_s + received / pace)


def declared_bytes(request: Request, limits: BodyLimits) -> int | None:
    """Return the declared length of a body; None if none is declared.

    Raises:
        PayloadTooLargeError: more than the limit.
    """
    header = request.headers.get("content-length")
    if header is None:
        return None
    digits = header.lstrip("0")  # of which there may be thousands
    if digits.isascii() and digits.isdigit() and _is_more(digits, limits.max_bytes):
        raise _too_large(limits)
    return int(digits or "0")


_DOCUMENT_LIMITS = BodyLimits(max_bytes=64 * 1024, receive_timeout_s=10.0, setting="")


async def _at_once(_received: int) -> None:
    pass


async def read_picture(request: Request, limits: BodyLimits, hold: Hold = _at_once) -> bytes:
    """Receive the picture of a request.

    ``Content-Type`` only tells a form from a raw body. The first bytes tell the format of the picture.

    Args:
        request: its body was not received yet.
        limits: of the body.
        hold: awaited with each piece; its time does not count against the client.

    Raises:
        ServiceError: what ``hold`` raises.
        UnsupportedMediaError: the body is compressed (``Content-Encoding``).
        PayloadTooLargeError: it is, or declares to be, larger than the limit.
        RequestTooSlowError: it did not arrive in time.
        InvalidArgumentError: a form is malformed, or has no ``file``, or two.
        EmptyBodyError: there are no bytes.
        ClientDisconnect: the client left.
    """
    _refuse_by_head(request, limits)
    boundary = boundary_of(request.headers.get("content-type", ""))
    chunks = _chunks(request, limits, hold)
    data = await (_raw(chunks) if boundary is None else _form_file(chunks, boundary))
    if not data:
        raise EmptyBodyError("there is no picture in the request")
    return data


async def read_message(request: Request, limits: BodyLimits, hold: Hold = _at_once) -> bytes:
    """Receive a whole body, inflated if ``Content-Encoding`` is gzip or deflate.

    Args:
        request: whose body was not received yet.
        limits: of the body, and of what it inflates to.
        hold: awaited whenever more has arrived or was inflated.

    Raises:
        ServiceError: what ``hold`` raises.
        UnsupportedMediaError: it is compressed in another way.
        PayloadTooLargeError: it is, declares to be, or inflates to more than the limit.
        InvalidArgumentError: the compressed bytes are damaged, cut off, or followed by others.
        RequestTooSlowError: it did not arrive in time.
        ClientDisconnect: the client left.
    """
    encoding = _content_encoding(request)
    declared_bytes(request, limits)
    if encoding and encoding not in WINDOW_BITS:
        raise UnsupportedMediaError("a body is sent as it is, or compressed as gzip or deflate")
    chunks = _chunks(request, limits, hold)
    return await _raw(_inflated(chunks, encoding, limits, hold) if encoding else chunks)


async def _inflated(
    chunks: AsyncIterator[bytes], encoding: str, limits: BodyLimits, hold: Hold
) -> AsyncIterator[bytes]:
    inflation, total = Inflation(encoding), 0
    async for chunk in chunks:
        for piece in inflation.feed(chunk):
            total += len(piece)
            if total > limits.max_bytes:
                raise _too_large(limits)
            await hold(total)
            yield piece
            await asyncio.sleep(0)  # a small chunk may hold many pieces
    inflation.finish()


async def read_document(request: Request, kind: type[DocumentT]) -> DocumentT:
    """Receive the small JSON document of a request.

    Args:
        request: its ``Content-Type`` is ignored.
        kind: type of the document; it should forbid extra fields.

    Raises:
        InvalidArgumentError: it is no JSON, or no such document; the message names the field.
        PayloadTooLargeError: it is larger than 64 KiB.
        RequestTooSlowError: it did not arrive in time.
    """
    return _document(await _small_body(request), kind)


async def read_optional_document(request: Request, kind: type[DocumentT]) -> DocumentT:
    """Receive the small JSON document that a request may carry; an empty body is the empty document.

    Args:
        request: its ``Content-Type`` is ignored.
        kind: what it must be; every field has a default.

    Raises:
        InvalidArgumentError: it is no JSON, or no such document; the message names the field.
        PayloadTooLargeError: it is larger than 64 KiB.
        RequestTooSlowError: it did not arrive in time.
    """
    return _document(await _small_body(request) or b"{}", kind)


async def _small_body(request: Request) -> bytes:
    _refuse_by_head(request, _DOCUMENT_LIMITS)
    return await _raw(_chunks(request, _DOCUMENT_LIMITS, _at_once))


def _document(data: bytes, kind: type[DocumentT]) -> DocumentT:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
    raise InvalidArgumentError(
        f"{field!r} is missing, unknown or wrong" if field else "this is no JSON object"
    )


def _refuse_by_head(request: Request, limits: BodyLimits) -> None:
    if _content_encoding(request):
        raise UnsupportedMediaError("compressed bodies are not accepted: send the picture as it is")
    declared_bytes(request, limits)


def _content_encoding(request: Request) -> str:
    """Return the compression of a body, empty if there is none."""
    encoding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    return "" if encoding == "identity" else encoding


def _is_more(digits: str, limit: int) -> bool:
    return len(digits) > len(str(limit)) or int(digits) > limit


async def _raw(chunks: AsyncIterator[bytes]) -> bytes:
    first, rest = b"", bytearray()
    async for chunk in chunks:
        if first:
            rest += chunk
        else:
            first = chunk  # most bodies come in one piece, which need not be copied
    return first + rest if rest else first


async def _form_file(chunks: AsyncIterator[bytes], boundary: bytes) -> bytes:
    form = FormFile(boundary)
    async for chunk in chunks:
        form.feed(chunk)
    return form.finish()


async def _chunks(request: Request, limits: BodyLimits, hold: Hold) -> AsyncIterator[bytes]:
    received = 0
    more = True
    expected = declared_bytes(request, limits) or 0
    started_s = time.monotonic()
    while more:
        left_s = started_s + limits.allowed_s(received, expected) - time.monotonic()
        async with within(left_s, lambda: _too_slow(limits)):
            message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        received += len(chunk)
        if received > limits.max_bytes:
            raise _too_large(limits)
        more = message.get("more_body", False)
        arrived_s = time.monotonic()
        await hold(received)
        started_s += time.monotonic() - arrived_s
        yield chunk


def _too_slow(limits: BodyLimits) -> RequestTooSlowError:
    by = f" ({limits.setting})" if limits.setting else ""
    return RequestTooSlowError(
        f"the body arrives too slowly to be here within {limits.receive_timeout_s:g} s{by}"
    )


def _too_large(limits: BodyLimits) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"the body is larger than {limits.max_bytes} bytes")
