"""Hostile pictures and requests against a running service: refused as what they are, they leave no trace."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import os
import random
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import fuzz_image
import httpx2
import numpy as np
import pytest
from fakes import LEAKED, PATIENCE_S, write_pooling_artifact
from http_site import encoded
from live_service import Server, serving_environment, started
from PIL import Image

from model.artifacts.registry import ModelRegistry
from service.core.scheduling.memory_budget import BYTES_PER_PIXEL_IN_FLIGHT, DEFAULT_MAX_PIXELS_IN_FLIGHT
from service.http_api.segment.body_budget import DEFAULT_MAX_ANSWER_BYTES_IN_FLIGHT

MIB = 1 << 20
SMALL = encoded(np.zeros((64, 96, 3), np.uint8))
CODES = {
    "ok": (200, None),
    "undecodable": (422, "undecodable_image"),
    "unsupported_format": (415, "unsupported_media"),
    "too_many_pixels": (413, "too_many_pixels"),
}
"""What the service says where the corpus says the key."""

needs_data = pytest.mark.skipif("BISENET_DATA_ROOT" not in os.environ, reason="BISENET_DATA_ROOT is not set")


@pytest.fixture(scope="module")
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, shared_cache: Path, temporary_folder: Path
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pooling")
    ModelRegistry(folder / "registry").publish(write_pooling_artifact(folder / "artifact").folder, "pooling")
    environment = serving_environment(folder / "registry", shared_cache, folder, "pooling")
    with started({**environment, "TMPDIR": str(temporary_folder)}, folder / "log") as server:
        yield server
        assert server.stop() == 0
    errors = [line for line in server.log.read_text().splitlines() if '"level": "error"' in line]
    assert not errors


def rows_of(corpus: str) -> list[dict[str, str]]:
    with (data_folder(corpus) / "manifest.tsv").open(newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def data_folder(corpus: str) -> Path:
    return Path(os.environ["BISENET_DATA_ROOT"]) / corpus


def assert_alive(server: Server) -> None:
    assert server.client.get("/livez").status_code == 200
    assert server.client.post("/v1/segment", content=SMALL).status_code == 200


# --- pictures ---------------------------------------------------------------------------------------------


def code_of(response: httpx2.Response) -> tuple[int, str | None]:
    if response.status_code == 200:
        return 200, None
    assert not LEAKED.search(response.text), response.text
    return response.status_code, response.json()["code"]


def mismatches(server: Server, rows: Sequence[Mapping[str, str]], *, as_form: bool) -> list[str]:
    def post(row: Mapping[str, str]) -> tuple[int, str | None]:
        data = (data_folder("hostile_images") / row["file"]).read_bytes()
        if as_form:
            return code_of(server.client.post("/v1/segment", files={"file": (row["whats_wrong"], data)}))
        return code_of(server.client.post("/v1/segment", content=data))

    with ThreadPoolExecutor(2) as clients:
        answers = list(clients.map(post, rows))
    return [
        f"{row['file']} ({row['whats_wrong']}): {answer}"
        for row, answer in zip(rows, answers, strict=True)
        if answer != CODES[row["expected_code"]]
    ]


@pytest.mark.guarantee("G1", "G26")
@pytest.mark.data
@needs_data
def test_every_hostile_picture_gets_its_answer_raw_and_as_a_form_and_leaves_no_memory_behind(
    server: Server, temporary_folder: Path
) -> None:
    rows = rows_of("hostile_images")
    assert len(rows) == 1358
    assert not mismatches(server, rows, as_form=False)
    assert_alive(server)
    before = server.memory_bytes()
    assert not mismatches(server, rows, as_form=True)
    assert_alive(server)
    assert server.memory_bytes() <= 1.03 * before
    assert not list(temporary_folder.iterdir())


@pytest.mark.guarantee("G2")
@pytest.mark.parametrize("count", [300, pytest.param(100_000, marks=pytest.mark.soak)])
def test_no_mutant_of_a_picture_is_a_defect(server: Server, count: int) -> None:
    pictures = fuzz_image.seeds()

    def post(number: int) -> tuple[int, str | None]:
        return code_of(server.client.post("/v1/segment", content=fuzz_image.mutant(number, pictures)[1]))

    with ThreadPoolExecutor(4) as clients:
        answers = Counter(clients.map(post, range(count)))
    # An empty mutant is a body of its own kind.
    assert set(answers) <= {*CODES.values(), (400, "empty_body")}
    assert answers[200, None] > count // 20  # not all of them are nonsense
    assert_alive(server)


def near_limit_pictures() -> list[bytes]:
    """Return pictures of 49 megapixels in a few kilobytes: what each decoder likes least."""
    side = 7000
    gray = Image.new("L", (side, side))
    return [
        png_of_zeros(side, color_type=6),
        encoded_image(gray, "JPEG", progressive=True),
        encoded_image(gray.convert("RGB"), "WEBP", lossless=True, method=0),
        png_of_zeros(side, color_type=0),
    ]


def encoded_image(picture: Image.Image, image_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, image_format, **options)
    return stream.getvalue()


def png_of_zeros(side: int, *, color_type: int) -> bytes:
    channels = {0: 1, 6: 4}[color_type]
    header = struct.pack(">IIBBBBB", side, side, 8, color_type, 0, 0, 0)
    data = zlib.compress(bytes(side * (1 + channels * side)), 1)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.guarantee("G14")
def test_a_crowd_of_pictures_at_the_limit_stays_within_its_memory_and_lets_small_ones_through(
    server: Server,
) -> None:
    pictures = near_limit_pictures()
    for picture in pictures:  # what the engine keeps for the largest input that it gets is no longer new
        assert post_patiently(server, picture, timeout_ms=60_000) == (200, None)
    before = server.memory_bytes()
    with server.peak_memory() as peak, ThreadPoolExecutor(80) as clients:
        crowd = [
            clients.submit(post_patiently, server, pictures[number % 4], timeout_ms=6000)
            for number in range(64)
        ]
        rest = [clients.submit(post_patiently, server, SMALL, timeout_ms=60_000) for _ in range(16)]
    answers = {future.result() for future in crowd}
    assert answers <= {(200, None), (503, "busy"), (504, "deadline_exceeded"), (429, "queue_full")}
    assert {future.result() for future in rest} == {(200, None)}
    budget = DEFAULT_MAX_PIXELS_IN_FLIGHT * BYTES_PER_PIXEL_IN_FLIGHT
    assert peak[0] <= before + budget + 64 * MIB
    assert_alive(server)


def test_answers_at_the_limit_that_clients_do_not_take_stay_within_their_memory(server: Server) -> None:
    picture = png_of_zeros(7000, color_type=0)
    assert post_patiently(server, picture, timeout_ms=60_000) == (200, None)
    before = server.memory_bytes()
    with ThreadPoolExecutor(12) as clients, ExitStack() as held, server.peak_memory() as peak:
        raw = list(
            clients.map(
                lambda _: first_bytes_of_an_overlay(server, picture, held, timeout_ms=4000), range(12)
            )
        )
        assert post_patiently(server, SMALL, timeout_ms=60_000) == (200, None)
    assert set(raw) <= {b"200", b"503", b"504", b"429"}
    assert b"200" in raw
    budget = DEFAULT_MAX_PIXELS_IN_FLIGHT * BYTES_PER_PIXEL_IN_FLIGHT
    assert peak[0] <= before + budget + DEFAULT_MAX_ANSWER_BYTES_IN_FLIGHT + 64 * MIB
    assert_alive(server)


def first_bytes_of_an_overlay(server: Server, picture: bytes, held: ExitStack, *, timeout_ms: int) -> bytes:
    """Ask for 3 bytes a pixel, read the status and no more, and stay connected; return the status."""
    raw, reader = held.enter_context(server.connection())
    head = f"POST /v1/segment?output=overlay&timeout_ms={timeout_ms} HTTP/1.1\r\nHost: localhost\r\n"
    length = f"Accept: application/octet-stream\r\nContent-Length: {len(picture)}\r\n\r\n"
    raw.sendall(f"{head}{length}".encode() + picture)
    return reader.read(12)[9:]


def post_patiently(server: Server, picture: bytes, *, timeout_ms: int) -> tuple[int, str | None]:
    url = f"{server.client.base_url}/v1/segment"
    return code_of(
        httpx2.post(url, params={"timeout_ms": timeout_ms}, content=picture, timeout=2 * PATIENCE_S)
    )


# --- requests ---------------------------------------------------------------------------------------------


async def ask(server: Server, request: bytes, *, silence_s: float = 5.0) -> list[int]:
    """Send a request and nothing more; return the statuses of all answers.

    Args:
        server: is asked.
        request: or the beginning of one.
        silence_s: time without an answer after which the sending side is closed, in seconds.
    """
    url = server.client.base_url
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(request)
        try:
            answers = await first_bytes(reader, silence_s)
            with contextlib.suppress(ConnectionError):  # cut off, with the rest of it still on its way
                writer.write_eof()
                answers += await reader.read()
        finally:
            writer.close()
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answers)]


async def first_bytes(reader: asyncio.StreamReader, silence_s: float) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(1), silence_s)
    except (TimeoutError, ConnectionError):
        return b""


async def ask_all(server: Server, requests: Sequence[bytes], *, silence_s: float = 5.0) -> list[list[int]]:
    """Send many at once, and see to it that the service is alive all the while."""
    at_once = asyncio.Semaphore(64)

    async def ask_in_turn(request: bytes) -> list[int]:
        async with at_once:
            return await ask(server, request, silence_s=silence_s)

    answering = asyncio.gather(*(ask_in_turn(request) for request in requests))
    while not answering.done():
        assert (await asyncio.to_thread(server.client.get, "/livez")).status_code == 200
        await asyncio.wait([answering], timeout=0.05)
    return await answering


def allowed(row: Mapping[str, str], answers: Sequence[int]) -> bool:
    """Whether the first answer is one of those that the manifest names."""
    if not answers:
        return "close" in row["expected"]
    named = [int(status) for status in re.findall(r"\b[1-5][0-9]{2}\b", row["expected"].split(";")[0])]
    if "4xx" in row["expected"] or row["expected"].startswith("200/206"):
        named += range(400, 500)
    return answers[0] in named and all(status < 500 for status in answers)


@pytest.mark.guarantee("G4")
@pytest.mark.data
@needs_data
@pytest.mark.parametrize("kind", ["raw", "httpreq", "multipart"])
async def test_every_hostile_request_is_refused_or_cut_off(server: Server, kind: str) -> None:
    rows = [row for row in rows_of("hostile_requests") if row["file"].startswith(f"{kind}/")]
    requests = [(data_folder("hostile_requests") / row["file"]).read_bytes() for row in rows]
    if kind == "multipart":
        requests = [as_form(request) for request in requests]
    answers = await ask_all(server, requests)
    wrong = [f"{row['file']}: {got}" for row, got in zip(rows, answers, strict=True) if not allowed(row, got)]
    assert len(rows) == {"raw": 18, "httpreq": 200, "multipart": 70}[kind]
    assert not wrong
    assert_alive(server)


BOUNDARY = b"dfhjksd23f43242f43fv4b4g2g2g23vf2"  # that of the corpus


def as_form(body: bytes) -> bytes:
    head = b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    kind = b"Content-Type: multipart/form-data; boundary=" + BOUNDARY
    return b"%b%b\r\nContent-Length: %d\r\n\r\n%b" % (head, kind, len(body), body)


# --- mutants of requests ----------------------------------------------------------------------------------

POST = b"POST /v1/segment?alpha=0.5&classes=1&output=overlay HTTP/1.1\r\nHost: localhost\r\n"
GOOD = (
    b"%bAccept: application/json;q=0.5, image/png\r\nContent-Length: %d\r\n\r\n%b"
    % (POST, len(SMALL), SMALL),
    b"%bTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (POST, len(SMALL), SMALL),
    as_form(
        b"--%b\r\nContent-Disposition: form-data; name=file; filename=a.png\r\n\r\n%b\r\n--%b--\r\n"
        % (BOUNDARY, SMALL, BOUNDARY)
    ),
    b"GET /v1/models/pooling HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\r\n" * 3,
)
PIECES = (
    *(b"\r\n", b"\0", b": ", b"%", b"\xff\xfe", b"chunked", b",", b";", b'"', b"A" * 300, b"-1", b"9" * 30),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Host: elsewhere\r\n", b"HTTP/1.0"),
)


def mutant_of_a_request(rng: random.Random, requests: Sequence[bytes]) -> bytes:
    data = bytearray(rng.choice(requests))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        start = rng.randrange(len(data) + 1)
        end = start + rng.randrange(20)
        match rng.randrange(4):
            case 0:
                data[start:end] = rng.randbytes(rng.randrange(4))
            case 1:
                data[start:start] = rng.choice(PIECES)
            case 2:
                data[start:start] = data[start:end] * rng.choice((1, 3, 40))
            case _:
                other = rng.choice(requests)
                data[start:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data)


@pytest.mark.guarantee("G4")
@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.soak)])
async def test_no_mutant_of_a_request_is_a_defect(server: Server, count: int) -> None:
    rng = random.Random(count)
    requests = [mutant_of_a_request(rng, GOOD) for _ in range(count)]
    answers = await ask_all(server, requests, silence_s=0.2)
    assert all(status < 500 for statuses in answers for status in statuses)
    assert sum(200 in statuses for statuses in answers) > count // 20  # not all of them are nonsense
    assert_alive(server)
