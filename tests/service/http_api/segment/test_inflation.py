"""Compressed bodies: the same bytes come out, in pieces, whatever pieces they come in."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from service.core.errors import InvalidArgumentError
from service.http_api.segment.inflation import PIECE_BYTES, Inflation

COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}


def inflated(encoding: str, data: bytes) -> bytes:
    inflation = Inflation(encoding)
    plain = b"".join(inflation.feed(data))
    inflation.finish()
    return plain


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 200])
def test_what_was_compressed_comes_out_in_bounded_pieces(encoding: str, step: int, size: int) -> None:
    plain = (random.Random(size).randbytes(1000) * (size // 1000 + 1))[:size]
    data = COMPRESS[encoding](plain)
    inflation = Inflation(encoding)
    pieces = [
        piece for start in range(0, len(data), step) for piece in inflation.feed(data[start : start + step])
    ]
    inflation.finish()
    assert b"".join(pieces) == plain
    assert all(len(piece) <= PIECE_BYTES for piece in pieces)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_damaged_cut_and_followed_streams_are_refused(encoding: str) -> None:
    data = COMPRESS[encoding](b"a picture" * 1000)
    for damaged in (b"no stream", data[:-1], b"", data[: len(data) // 2], data + b"x", data + data):
        with pytest.raises(InvalidArgumentError, match=encoding):
            inflated(encoding, damaged)
    inflation = Inflation(encoding)
    assert b"".join(inflation.feed(data)) == b"a picture" * 1000
    with pytest.raises(InvalidArgumentError, match="follow"):
        list(inflation.feed(b"x"))


def test_a_bomb_comes_out_piece_by_piece() -> None:
    bomb = gzip.compress(bytes(100 << 20))
    pieces = Inflation("gzip").feed(bomb)
    assert len(bomb) < 200_000
    assert [len(next(pieces)) for _ in range(3)] == [PIECE_BYTES] * 3
