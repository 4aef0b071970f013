"""The answer to an infer request: JSON, and the binary tensors behind it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from functools import partial

import msgspec
import numpy as np
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.http_api.open_inference.message import HEADER_LENGTH
from service.http_api.segment.client_connection import PIECE_BYTES
from service.open_inference.inference import InferAnswer
from service.open_inference.outputs import Encode, OutputKind, WantedOutput, raw_encoding

_JSON = "application/json"
_BINARY = "application/octet-stream"
_NUMBERS_AT_ONCE = 1 << 16
_DECIMALS = tuple(f"{value},".encode() for value in range(256))
_JSON_BYTES_PER_PIXEL = 4
"""Of labels as decimal numbers: up to three digits and a comma."""


def wanted_output(kind: OutputKind, *, is_binary: bool) -> WantedOutput:
    """Return an output in the form that a client wants: raw bytes, or a piece of a JSON list."""
    if is_binary:
        return WantedOutput(kind, raw_encoding(kind))
    encode_bytes = _JSON_BYTES_PER_PIXEL if kind.name == "labels" else kind.render_bytes
    return WantedOutput(kind, _JSON_ENCODINGS[kind.datatype], encode_bytes)


def infer_response(answer: InferAnswer, request_id: str | None, is_binary: Sequence[bool]) -> Response:
    """Return the answer.

    Args:
        answer: its outputs are encoded.
        request_id: comes back; None = the client gave none.
        is_binary: of each output.
    """
    outputs: list[dict[str, object]] = []
    binary: list[bytes] = []
    for tensor, as_binary in zip(answer.outputs, is_binary, strict=True):
        described: dict[str, object] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if as_binary:
            described["parameters"] = {"binary_data_size": sum(map(len, tensor.parts))}
            binary += tensor.parts
        else:
            if tensor.datatype == "BYTES":
                described["parameters"] = {"content_type": "base64"}
            described["data"] = msgspec.Raw(b"[" + b",".join(tensor.parts) + b"]")
        outputs.append(described)
    head: dict[str, object] = {
        "model_name": answer.version.name,
        "model_version": str(answer.version.number),
        "outputs": outputs,
    }
    if request_id is not None:
        head["id"] = request_id
    json = msgspec.json.encode(head)
    if not binary:
        return PartsResponse([json], _JSON)
    return PartsResponse([json, *binary], _BINARY, {HEADER_LENGTH: str(len(json))})


class PartsResponse(Response):
    """An answer of several parts, which are never joined; a small one is sent at once.

    Args:
        parts: of the body, in order; at least one.
        media_type: of the whole.
        headers: besides.
    """

    def __init__(
        self, parts: Sequence[bytes], media_type: str, headers: dict[str, str] | None = None
    ) -> None:
        self._parts = parts
        length = str(sum(map(len, parts)))
        super().__init__(headers={**(headers or {}), "Content-Length": length}, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        """Send it as the client takes it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pieces = self._pieces()
        piece = next(pieces)
        for following in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = following
        await send({"type": "http.response.body", "body": piece, "more_body": False})

    def _pieces(self) -> Iterator[bytes]:
        """Join small parts, and cut large ones."""
        small, num_bytes = [self._parts[0]], len(self._parts[0])
        for part in self._parts[1:]:
            if num_bytes + len(part) > PIECE_BYTES:
                yield from _cut(b"".join(small))
                small, num_bytes = [], 0
            small.append(part)
            num_bytes += len(part)
        yield from _cut(b"".join(small))


def _cut(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


def _decimals(values: bytes) -> bytes:
    """Write bytes as decimal numbers between commas, some at a time: other threads want to run as well."""
    pieces = [
        b"".join(map(_DECIMALS.__getitem__, values[start : start + _NUMBERS_AT_ONCE]))
        for start in range(0, len(values), _NUMBERS_AT_ONCE)
    ]
    return b"".join(pieces)[:-1]


def _numbers(dtype: str, values: bytes) -> bytes:
    """Write values as numbers between commas."""
    return msgspec.json.encode(np.frombuffer(values, dtype).tolist())[1:-1]


def _base64_text(element: bytes) -> bytes:
    return b'"' + base64.b64encode(element) + b'"'


_JSON_ENCODINGS: dict[str, Encode] = {
    "UINT8": _decimals,
    "INT64": partial(_numbers, "<i8"),
    "FP16": partial(_numbers, "<f2"),
    "BYTES": _base64_text,
}
