"""Answers of several parts: the same bytes, in pieces, the last of which says so."""

from __future__ import annotations

import pytest
from starlette.types import Message

from service.http_api.open_inference.response import PartsResponse
from service.http_api.segment.client_connection import PIECE_BYTES


@pytest.mark.parametrize(
    "lengths",
    [[5], [5, 0, 7], [PIECE_BYTES], [5, PIECE_BYTES], [10, 3 * PIECE_BYTES + 1, 4, PIECE_BYTES - 1, 2]],
)
async def test_the_parts_arrive_in_pieces_and_only_the_last_ends_the_answer(lengths: list[int]) -> None:
    parts = [bytes([number]) * length for number, length in enumerate(lengths)]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    await PartsResponse(parts, "application/octet-stream")({"type": "http"}, receive, send)
    head, *pieces = sent
    assert (b"content-length", str(sum(lengths)).encode()) in head["headers"]
    assert b"".join(piece["body"] for piece in pieces) == b"".join(parts)
    assert all(0 < len(piece["body"]) <= PIECE_BYTES for piece in pieces)
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    if sum(lengths) <= PIECE_BYTES:
        assert len(pieces) == 1
