"""A body is received within its limits, or refused as early as possible."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from service.core.errors import (
    EmptyBodyError,
    InvalidArgumentError,
    PayloadTooLargeError,
    RequestTooSlowError,
    UnsupportedMediaError,
)
from service.http_api.segment.body import BodyLimits, read_picture

LIMITS = BodyLimits(max_bytes=10)


class Sender:
    """A client that sends some messages and then stays silent."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.unread = list(messages)

    async def __call__(self) -> Message:
        if not self.unread:
            await asyncio.Event().wait()
        return self.unread.pop(0)


def chunks(*bodies: bytes) -> Sender:
    last = len(bodies) - 1
    return Sender(
        [{"type": "http.request", "body": body, "more_body": i < last} for i, body in enumerate(bodies)]
    )


def request(sender: Sender, **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw}, sender)


async def test_the_chunks_of_a_body_are_joined() -> None:
    assert await read_picture(request(chunks(b"abc", b"", b"de")), LIMITS) == b"abcde"


async def test_the_content_type_of_a_raw_body_does_not_matter() -> None:
    assert await read_picture(request(chunks(b"abc"), content_type="text/plain"), LIMITS) == b"abc"


async def test_a_body_of_exactly_the_limit_passes() -> None:
    assert (
        await read_picture(request(chunks(b"01234", b"56789"), content_length="10"), LIMITS) == b"0123456789"
    )


@pytest.mark.parametrize("declared", ["11", "99999999999999999999"])
async def test_a_body_that_declares_too_much_is_refused_before_it_is_read(declared: str) -> None:
    sender = chunks(b"abc")
    with pytest.raises(PayloadTooLargeError, match="10 bytes"):
        await read_picture(request(sender, content_length=declared), LIMITS)
    assert len(sender.unread) == 1


async def test_a_body_that_hides_its_size_is_refused_when_it_passes_the_limit() -> None:
    sender = chunks(b"01234", b"56789", b"x", b"never read")
    with pytest.raises(PayloadTooLargeError):
        await read_picture(request(sender), LIMITS)
    assert len(sender.unread) == 1


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "GZIP"])
async def test_a_compressed_body_is_refused_before_it_is_read(encoding: str) -> None:
    sender = chunks(b"abc")
    with pytest.raises(UnsupportedMediaError, match="compressed"):
        await read_picture(request(sender, content_encoding=encoding), LIMITS)
    assert len(sender.unread) == 1


async def test_identity_is_no_compression() -> None:
    assert await read_picture(request(chunks(b"abc"), content_encoding="Identity"), LIMITS) == b"abc"


async def test_a_request_without_bytes_is_refused() -> None:
    with pytest.raises(EmptyBodyError):
        await read_picture(request(chunks(b"")), LIMITS)


async def test_a_form_with_an_empty_file_is_refused_as_empty() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n\r\n--b--'
    with pytest.raises(EmptyBodyError):
        await read_picture(
            request(chunks(body), content_type="multipart/form-data; boundary=b"), BodyLimits(max_bytes=100)
        )


async def test_the_limit_holds_for_forms_too() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    with pytest.raises(PayloadTooLargeError):
        await read_picture(request(chunks(body), content_type="multipart/form-data; boundary=b"), LIMITS)


async def test_a_form_without_boundary_is_refused_before_it_is_read() -> None:
    sender = chunks(b"abc")
    with pytest.raises(InvalidArgumentError, match="boundary"):
        await read_picture(request(sender, content_type="multipart/form-data"), LIMITS)
    assert len(sender.unread) == 1


async def test_a_client_that_leaves_ends_the_reading() -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b"abc", "more_body": True},
        {"type": "http.disconnect"},
    ]
    with pytest.raises(ClientDisconnect):
        await read_picture(request(Sender(messages)), LIMITS)


async def test_what_has_arrived_is_held_before_more_is_received() -> None:
    sender = chunks(b"abc", b"de")
    held = []

    async def hold(received: int) -> None:
        held.append((received, len(sender.unread)))

    assert await read_picture(request(sender), LIMITS, hold) == b"abcde"
    assert held == [(3, 1), (5, 0)]


async def test_to_wait_for_room_is_not_to_be_slow() -> None:
    limits = BodyLimits(receive_timeout_s=0.05)

    async def hold(_received: int) -> None:
        await asyncio.sleep(0.1)

    assert await read_picture(request(chunks(b"abc", b"de", b"f")), limits, hold) == b"abcdef"


async def test_a_client_that_falls_silent_is_told_that_it_is_too_slow() -> None:
    sender = Sender([{"type": "http.request", "body": b"abc", "more_body": True}])
    with pytest.raises(RequestTooSlowError):
        await read_picture(request(sender), BodyLimits(receive_timeout_s=0.001))


@given(
    length=st.integers(math.ceil(BodyLimits.receive_timeout_s), BodyLimits.max_bytes),
    duration_s=st.floats(0.001, BodyLimits.receive_timeout_s - 0.001),
    share=st.floats(0, 1),
)
def test_who_sends_at_a_constant_pace_and_is_done_in_time_is_never_given_up(
    length: int, duration_s: float, share: float
) -> None:
    limits = BodyLimits(min_bytes_per_s=1)
    now_s = share * duration_s
    assert limits.allowed_s(math.floor(share * length), length) >= now_s - 1e-6 - duration_s / length


def test_a_body_that_trickles_is_given_up_long_before_the_last_moment() -> None:
    limits = BodyLimits()
    assert limits.allowed_s(0, 20 << 20) == limits.grace_s
    assert limits.allowed_s(100_000, 20 << 20) < limits.grace_s + 1
    assert limits.allowed_s(8192, 0) == limits.grace_s + 1
    assert limits.allowed_s(20 << 20, 0) == limits.receive_timeout_s
