"""HTTP/2 written by hand, for peers that do what no library would."""

from __future__ import annotations

import struct

from google.protobuf.message import Message

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Return a header field that is neither indexed nor compressed (RFC 7541, 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


CALL_HEADERS = (
    literal(b":method", b"POST")
    + literal(b":scheme", b"http")
    + literal(b":path", b"/segmentation.v1.Segmentation/SegmentStream")
    + literal(b":authority", b"localhost")
    + literal(b"te", b"trailers")
    + literal(b"content-type", b"application/grpc")
)


def stream_of(*messages: Message) -> bytes:
    """Return a connection's bytes: a stream of frames whose peer never gives the service any window."""
    data = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, CALL_HEADERS)
    for message in messages:
        body = message.SerializeToString()
        data += frame(DATA, 0, 1, b"\x00" + struct.pack(">I", len(body)) + body)
    return data
