"""Hostile requests of the Open Inference Protocol, made from a seed: the same bytes on every machine."""

from __future__ import annotations

import base64
import gzip
import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from infer_bodies import HEADER_LENGTH, elements

SEED = 20261130
NUMBER = 240
"""At least so many requests; none of them may be answered."""

_gzip = partial(gzip.compress, mtime=0)
_HUGE = (1 << 31, (1 << 31) - 1, 1 << 32, 1 << 62, 1 << 63, (1 << 63) - 1, 1 << 64, 10**30)
_ODD_SHAPES = ([], [0], [-1], [1, 1, 1], [1] * 60, [2.5], ["1"], [None], [True, True], {}, "1", 1, None)
_DATATYPES = ("FP32", "INT64", "BOOL", "bytes", "", "UINT8 ", "BF16", "\x00", None, 7)
_VALUES = (None, -1, 1.5, "x", [], {}, 1 << 70)


@dataclass(frozen=True)
class HostileRequest:
    """A body and its headers.

    Attributes:
        name: what is wrong with it.
        body: as it is sent.
        headers: beside its length.
    """

    name: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def hostile_requests(picture: bytes) -> list[HostileRequest]:
    """Return the table.

    Args:
        picture: a file that the service would answer.
    """
    rng = random.Random(SEED)
    table = [
        *_shapes(picture, rng),
        *_binary_sizes(picture, rng),
        *_documents(picture),
        *_nested(),
        *_bombs(picture),
        *_numbers(rng),
        *_cut_and_mutated(picture, rng),
    ]
    assert len(table) >= NUMBER, len(table)
    return table


def _message(tensor: dict[str, Any], raw: bytes = b"", **fields: Any) -> tuple[bytes, dict[str, str]]:
    document = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", **tensor}], **fields}
    head = json.dumps(document).encode()
    return head + raw, {HEADER_LENGTH: str(len(head))}


def _shapes(picture: bytes, rng: random.Random) -> Iterator[HostileRequest]:
    raw = elements(picture)
    size = {"parameters": {"binary_data_size": len(raw)}}
    for shape in _ODD_SHAPES:
        yield HostileRequest(f"shape {shape!r:.40}", *_message({**size, "shape": shape}, raw))
    for datatype in _DATATYPES:
        yield HostileRequest(f"datatype {datatype!r}", *_message({**size, "datatype": datatype}, raw))
    for length in _HUGE:
        yield HostileRequest(f"BYTES [{length}]", *_message({**size, "shape": [length]}, raw))
        for axis in range(4):
            shape = [1, 8, 8, 3]
            shape[axis] = length
            pixels = {"datatype": "UINT8", "shape": shape, **size}
            yield HostileRequest(f"UINT8 {shape}", *_message(pixels, raw))
    for _ in range(20):  # products that overflow 32 or 64 bits to the size that is sent
        shape = [rng.choice((1, 2, 1 << 16)), 1 << rng.randrange(16, 40), 1 << rng.randrange(16, 40), 3]
        pixels = {"datatype": "UINT8", "shape": shape, **size}
        yield HostileRequest(f"UINT8 {shape}", *_message(pixels, raw))


def _binary_sizes(picture: bytes, rng: random.Random) -> Iterator[HostileRequest]:
    raw = elements(picture)
    for size in (
        0,
        1,
        len(raw) - 1,
        len(raw) + 1,
        -1,
        -len(raw),
        *_HUGE,
        1.0 * len(raw) + 0.5,
        "7",
        True,
        [],
        {},
    ):
        tensor = {"parameters": {"binary_data_size": size}}
        yield HostileRequest(f"binary_data_size {size!r}", *_message(tensor, raw))
    for lying in (0, 1, len(picture) - 1, len(picture) + 1, 1 << 31, 0xFFFFFFFF):
        data = struct.pack("<I", lying) + picture
        tensor = {"parameters": {"binary_data_size": len(data)}}
        yield HostileRequest(f"element of {lying} bytes", *_message(tensor, data))
    for count in (2, 3, 64):
        tensor = {"shape": [count], "parameters": {"binary_data_size": len(raw)}}
        yield HostileRequest(f"{count} elements, 1 sent", *_message(tensor, raw))
    body, headers = _message({"parameters": {"binary_data_size": len(raw)}}, raw)
    right = int(headers[HEADER_LENGTH])
    wrong = (1, right - 1, right + 1, len(body), len(body) + 1, 10**8, 10**30, -1)
    for length in (*wrong, *(rng.randrange(2, right) for _ in range(10))):
        yield HostileRequest(f"{length} bytes of JSON, not {right}", body, {HEADER_LENGTH: str(length)})
    for text in ("", "1e3", "0x10", "NaN", "1,1", "+1"):
        yield HostileRequest(f"header length {text!r}", body, {HEADER_LENGTH: text})
    yield HostileRequest("raw body without bytes", b"", {HEADER_LENGTH: "0"})
    yield HostileRequest("raw body that is a request", body, {HEADER_LENGTH: "0"})


def _documents(picture: bytes) -> Iterator[HostileRequest]:
    good = {"data": [base64.b64encode(picture).decode()]}
    for name in ("id", "inputs", "outputs", "parameters"):
        for value in (1, "x", [1], {"a": 1}, [[]]):
            if (name, value) in (("id", "x"), ("parameters", {"a": 1})):
                continue
            yield HostileRequest(f"{name} {value!r}", _message(good, **{name: value})[0])
    for name in ("timeout", "priority", "binary_data_output"):
        for value in _VALUES:
            if name != "binary_data_output" and value == 1 << 70:
                continue  # a long time, and the least urgent
            yield HostileRequest(f"{name} {value!r}", _message(good, parameters={name: value})[0])
    for output in ({"name": "x" * 10_000}, {"name": 1}, {}, {"name": "labels", "parameters": 1}):
        yield HostileRequest(f"output {output!r:.30}", _message(good, outputs=[output])[0])
    yield HostileRequest("an id of 100 KB", _message(good, id="x" * 100_000)[0])
    yield HostileRequest("1,000 inputs", json.dumps({"inputs": [{"name": "image"}] * 1000}).encode())
    yield HostileRequest("100,000 objects", json.dumps({"inputs": [{}] * 100_000}).encode())
    yield HostileRequest("100,000 outputs", _message(good, outputs=[{"name": "labels"}] * 100_000)[0])
    yield HostileRequest(
        "100,000 parameters", _message(good, parameters={str(n): n for n in range(100_000)})[0]
    )
    yield HostileRequest("a shape of a million", _message({**good, "shape": [1] * 1_000_000})[0])
    yield HostileRequest("a million texts", _message({"data": ["ab"] * 1_000_000})[0])
    yield HostileRequest(
        "shared memory", _message({**good, "parameters": {"shared_memory_region": "/etc"}})[0]
    )
    for text in (
        b"",
        b"null",
        b"0",
        b'"x"',
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"inputs":NaN}',
        b"{" * 9,
    ):
        yield HostileRequest(f"document {text!r}", text)
    for data in ("%%%", "é", "", "AAAA", "=", "A" * 1_000_003):
        yield HostileRequest(f"base64 {data[:10]!r}", _message({"data": [data]})[0])


def _nested() -> Iterator[HostileRequest]:
    depth = 10_000
    for name, begin, end in (("lists", b"[", b"]"), ("objects", b'{"a":', b"}")):
        whole = begin * depth + b"1" + end * depth
        for field_name in (b"data", b"shape", b"parameters"):
            tensor = b'{"name":"image","datatype":"BYTES","shape":[1],"%b":%b}' % (field_name, whole)
            yield HostileRequest(f"nested {name} as {field_name.decode()}", b'{"inputs":[%b]}' % tensor)
        yield HostileRequest(f"nested {name}", whole)
        yield HostileRequest(f"nested {name} without an end", begin * depth)
        yield HostileRequest(f"nested {name} in an unknown field", b'{"x":%b,"inputs":[]}' % whole)


def _bombs(picture: bytes) -> Iterator[HostileRequest]:
    body = _message({"data": [base64.b64encode(picture).decode()]})[0]
    zeros = bytes(1 << 26)
    for encoding, compress in (("gzip", _gzip), ("deflate", zlib.compress)):
        headers = {"Content-Encoding": encoding}
        yield HostileRequest(f"{encoding} of 64 MiB", compress(zeros), headers)
        yield HostileRequest(f"{encoding} of {encoding}", compress(compress(zeros)), headers)
        whole = compress(body)
        for cut in (0, 1, len(whole) // 2, len(whole) - 1):
            yield HostileRequest(f"{encoding} cut at {cut}", whole[:cut], headers)
        yield HostileRequest(f"{encoding} and a byte", whole + b"x", headers)
        yield HostileRequest(f"two {encoding} streams", whole + whole, headers)
        yield HostileRequest(f"{encoding} that is none", body, headers)
    for encoding in ("br", "zstd", "gzip, gzip", "gzip,identity", "x"):
        yield HostileRequest(f"encoding {encoding}", _gzip(body), {"Content-Encoding": encoding})


def _numbers(rng: random.Random) -> Iterator[HostileRequest]:
    tensor = {"datatype": "UINT8", "shape": [1, 2, 2, 3]}
    for value in (256, -1, 1.5, 1e300, 10**30, "1", None, True, [1, 2], {}):
        numbers: list[Any] = [0] * 12
        numbers[rng.randrange(12)] = value
        yield HostileRequest(f"pixel {value!r}", _message({**tensor, "data": numbers})[0])
    for count in (0, 1, 11, 13, 1_000_000):
        yield HostileRequest(f"{count} numbers for 12", _message({**tensor, "data": [7] * count})[0])
    yield HostileRequest(
        "12 numbers for 2^31", _message({**tensor, "shape": [1, 1 << 16, 1 << 15, 3], "data": [7] * 12})[0]
    )
    yield HostileRequest(
        "a number of a million digits", _message({**tensor, "data": []})[0][:-3] + b"[" + b"9" * 1_000_000
    )


def _cut_and_mutated(picture: bytes, rng: random.Random) -> Iterator[HostileRequest]:
    raw = elements(picture)
    body, headers = _message({"parameters": {"binary_data_size": len(raw)}}, raw)
    for _ in range(15):
        yield HostileRequest("cut off", body[: rng.randrange(1, len(body))], headers)
    for _ in range(15):
        head = bytearray(body[: int(headers[HEADER_LENGTH])])
        head[rng.randrange(len(head))] = rng.choice(b'\x00\xff{}[]"\\')
        yield HostileRequest("a byte of the JSON is another", bytes(head) + raw[:-1], headers)
