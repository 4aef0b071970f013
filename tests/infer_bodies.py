"""Bodies of infer requests and their answers, as the protocol's binary extension writes them."""

from __future__ import annotations

import json
import struct
from typing import Any

HEADER_LENGTH = "Inference-Header-Content-Length"


def elements(*files: bytes) -> bytes:
    """Return a BYTES tensor in its raw form."""
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def elements_of(raw: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor in its raw form."""
    found = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return found


def binary_body(
    raw: bytes,
    *,
    shape: list[int],
    datatype: str = "BYTES",
    outputs: tuple[str, ...] = ("labels",),
    parameters: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request whose input and outputs are binary."""
    tensor = {
        "name": "image",
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": len(raw)},
    }
    document = {
        "inputs": [tensor],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
        **({"parameters": parameters} if parameters else {}),
        **changes,
    }
    head = json.dumps(document).encode()
    return head + raw, {HEADER_LENGTH: str(len(head))}


def answer_of(body: bytes, header_length: str | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the JSON of an answer and its binary tensors by name."""
    length = len(body) if header_length is None else int(header_length)
    document = json.loads(body[:length])
    tensors, start = {}, length
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            tensors[output["name"]] = body[start : start + size]
            start += size
    assert start == len(body)
    return document, tensors
