"""Keep a service busy and see whether anything in it grows: ``python tests/soak.py --minutes 60``.

The time is divided into twelve periods. In each of them the service gets pictures over HTTP at random times,
at 70 % of the rate that it can answer. One request in twenty is hostile. Two cameras stream frames over gRPC,
an evaluation runs, and in the middle the alias ``production`` moves to the other one of two versions. Then
the load stops, and the service is measured at rest.

The first four periods are the warm-up. The program ends with 0 when every answer was right, and when the last
four measurements show at most 1 % more memory than the four before them, no more file descriptors and no more
threads.

``--leak`` is the negative control: the engine keeps memory, descriptors and threads. It must end with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx2
import numpy as np
from fakes import PATIENCE_S
from http_site import encoded
from job_site import MODEL, JobSite, started_site, write_dataset
from live_service import processes_of, serving_environment
from worker_site import pooling_artifacts

from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from service.cli.bench.http_target import HttpTarget
from service.cli.bench.load import RefusedError, closed_loop, open_loop, poisson_arrivals
from service.client.answers import Frame, Result
from service.client.grpc_client import AsyncGrpcClient, FrameCall
from service.core.jobs.evaluation_job import EvaluationResult
from service.core.jobs.job import JobState

PERIODS = 12
WARM_UP = 4
"""Periods whose measurements do not count."""

MAX_GROWTH = 0.01
"""Of the memory, as a share."""

HOSTILE_EVERY = 20
CAMERAS = 2
CAMERA_FPS = 1.0
SATURATED = 8
"""Requests under way while the rate is measured that the service can answer."""

MASK = "/v1/segment?output=labels"
PICTURE_BYTES = encoded(np.zeros((64, 96, 3), np.uint8))
_VERSION = re.compile(rb"\r\nx-model-version: *(\d+)\r\n", re.IGNORECASE)
LEAK = "+leak"
_LEAST_RATE = CAMERAS * CAMERA_FPS + 1
_LOOKS = 5
_RESTED_S = 60.0


# --- what is measured -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rest:
    """What a service and its workers hold while nobody asks for anything.

    Attributes:
        memory_bytes: private and shared memory. Pages of files, which other programs share, do not count.
        descriptors: open files and sockets.
        threads: of all processes.
    """

    memory_bytes: int
    descriptors: int
    threads: int

    def __str__(self) -> str:
        memory_mb = self.memory_bytes / 1e6
        return f"{memory_mb:.2f} MB, {self.descriptors} descriptors, {self.threads} threads"


def findings(rests: Sequence[Rest]) -> list[str]:
    """Return what has grown; empty if nothing has.

    Args:
        rests: one for each period.
    """
    counted = rests[WARM_UP:]
    early, late = counted[: len(counted) // 2], counted[len(counted) // 2 :]
    found = []
    before, after = (median(rest.memory_bytes for rest in part) for part in (early, late))
    if after > (1 + MAX_GROWTH) * before:
        found.append(f"memory grew by {100 * (after / before - 1):.2f} %")
    for name in ("descriptors", "threads"):
        most, now = (max(getattr(rest, name) for rest in part) for part in (early, late))
        if now > most:
            found.append(f"{name} grew from {most} to {now}")
    return found


def at_rest(pid: int, processes: int) -> Rest:
    """Wait until a service has no more than so many processes, and return the least of several looks."""
    given_up_s = time.monotonic() + _RESTED_S
    while len(processes_of(pid)) > processes:  # the process of the jobs ends when there are none
        assert time.monotonic() < given_up_s, "the process of the jobs does not end"
        time.sleep(0.5)
    looks = []
    for _ in range(_LOOKS):
        time.sleep(1.0)
        looks.append([_rest_of_process(each) for each in processes_of(pid)])
    sums = [tuple(map(sum, zip(*look, strict=True))) for look in looks]
    return Rest(*map(min, zip(*sums, strict=True)))


def _rest_of_process(pid: int) -> tuple[int, int, int]:
    folder = Path(f"/proc/{pid}")
    kilobytes = {
        name: int(value.split()[0])
        for name, _, value in (
            line.partition(":") for line in (folder / "smaps_rollup").read_text().splitlines()[1:]
        )
    }
    memory_bytes = 1024 * (kilobytes["Anonymous"] + kilobytes["Pss_Shmem"])
    return memory_bytes, len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))


# --- hostile requests -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """Bytes for the service, and what it may answer.

    Attributes:
        what: name in the result.
        request: sent as it is.
        statuses: of HTTP, any of which is right; 0 = closed without an answer. Empty: the client leaves.
        to_grpc: sent to the port of gRPC.
    """

    what: str
    request: bytes
    statuses: frozenset[int] = frozenset()
    to_grpc: bool = False


def _post(body: bytes, *, path: str = "/v1/segment", head: str = "", length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: {length}\r\n\r\n".encode() + body
    )


def _two_files() -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n' % PICTURE_BYTES
    return _post(2 * part + b"--x--\r\n", head="Content-Type: multipart/form-data; boundary=x\r\n")


def _png(side: int) -> bytes:
    """Return a gray PNG of so many pixels a side, which holds next to none of them."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), b"IDAT" + zlib.compress(b"0")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


ATTACKS = (
    Attack("half a picture", _post(PICTURE_BYTES[: len(PICTURE_BYTES) // 2]), frozenset({422})),
    Attack("text", _post(b"no picture"), frozenset({415})),
    Attack("900 megapixels", _post(_png(30_000)), frozenset({413})),
    Attack("nothing", _post(b""), frozenset({400})),
    Attack("99 GB", _post(b"", length=99_000_000_000), frozenset({413})),
    Attack("two files", _two_files(), frozenset({400})),
    Attack("bytes of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", frozenset({0, 400})),
    Attack(
        "one millisecond", _post(PICTURE_BYTES, path="/v1/segment?timeout_ms=1"), frozenset({200, 429, 504})
    ),
    Attack("another model", _post(PICTURE_BYTES, path="/v1/models/none:segment"), frozenset({404})),
    Attack("half a body", _post(PICTURE_BYTES[:20], length=len(PICTURE_BYTES))),
    Attack("no patience", _post(PICTURE_BYTES)),
    Attack("half a call", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x04", to_grpc=True),
)


async def refused(attack: Attack, *, http_port: int, grpc_port: int) -> bool:
    """Send an attack; return whether the answer is one of those that are right."""
    reader, writer = await asyncio.open_connection("127.0.0.1", grpc_port if attack.to_grpc else http_port)
    try:
        writer.write(attack.request)
        if not attack.statuses:
            await asyncio.sleep(0.05)
            return True
        line = b""
        with suppress(ConnectionError):
            line = await asyncio.wait_for(reader.readline(), PATIENCE_S)
        found = re.match(rb"HTTP/1\.1 (\d{3}) ", line)
        return (int(found[1]) if found else 0) in attack.statuses
    finally:
        writer.transport.abort()


# --- the load ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A picture, and the mask of each version."""

    picture: bytes
    masks: dict[int, bytes]


class Soak:
    """Asks a service in periods, and counts what is right and what is wrong.

    Args:
        site: the service.
        grpc_address: of the service.
        samples: its pictures.
    """

    def __init__(self, site: JobSite, grpc_address: str, samples: Sequence[Sample]) -> None:
        self.right: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self._site = site
        self._grpc_address = grpc_address
        self._samples = samples
        self._version = 1
        self._scores: dict[str, EvaluationResult | None] = {}

    async def capacity(self, seconds: float) -> float:
        """Return the number of pictures a second that the service answers while some always wait."""
        async with HttpTarget(self._url) as target:
            records = await closed_loop(
                lambda number: self._ask(target, number), in_flight=SATURATED, seconds=seconds
            )
        return len(records) / (max(one.ended_s for one in records) - min(one.intended_s for one in records))

    async def period(self, number: int, *, rate: float, seconds: float) -> None:
        """Send everything for a while; return when all of it is answered.

        Args:
            number: of the period, from 0.
            rate: pictures, frames and hostile requests a second.
            seconds: duration.
        """
        arrivals_s = poisson_arrivals(rate=rate - CAMERAS * CAMERA_FPS, seconds=seconds, seed=number)
        async with HttpTarget(self._url) as target, asyncio.TaskGroup() as tasks:
            tasks.create_task(open_loop(lambda index: self._send(target, index), arrivals_s=arrivals_s))
            for _ in range(CAMERAS):
                tasks.create_task(self._stream(seconds))
            tasks.create_task(asyncio.to_thread(self._evaluate))
            await asyncio.sleep(seconds / 2)
            await asyncio.to_thread(self._swap)

    @property
    def _url(self) -> str:
        return str(self._site.server.client.base_url).rstrip("/")

    def _count(self, what: str, *, is_right: bool) -> None:
        (self.right if is_right else self.wrong)[what] += 1

    async def _send(self, target: HttpTarget, index: int) -> None:
        if index % HOSTILE_EVERY:
            await self._ask(target, index)
            return
        attack = ATTACKS[index // HOSTILE_EVERY % len(ATTACKS)]
        http_port, grpc_port = (int(url.rpartition(":")[2]) for url in (self._url, self._grpc_address))
        is_right = await refused(attack, http_port=http_port, grpc_port=grpc_port)
        self._count("hostile" if is_right else f"hostile: {attack.what}", is_right=is_right)

    async def _ask(self, target: HttpTarget, index: int) -> None:
        sample = self._samples[index % len(self._samples)]
        try:
            answer = await target.segment(sample.picture, MASK)
        except RefusedError as error:
            self._count(f"picture: {error}", is_right=False)
            return
        version = _VERSION.search(answer.head)
        is_right = version is not None and sample.masks.get(int(version[1])) == answer.body
        self._count("picture" if is_right else "picture: another mask", is_right=is_right)

    async def _stream(self, seconds: float) -> None:
        async with (
            AsyncGrpcClient(self._grpc_address) as client,
            client.stream(mask="png", policy="block") as call,
            asyncio.TaskGroup() as tasks,
        ):
            frames = max(1, int(seconds * CAMERA_FPS))
            tasks.create_task(self._listen(call, frames))
            for seq in range(1, frames + 1):
                await call.send(Frame(seq, self._samples[seq % len(self._samples)].picture))
                await asyncio.sleep(1 / CAMERA_FPS)
            await call.end()

    async def _listen(self, call: FrameCall, frames: int) -> None:
        answered = 0
        while (event := await call.next_event()) is not None:
            if isinstance(event, Result):
                sample = self._samples[event.seq % len(self._samples)]
                is_right = sample.masks[event.version] == event.mask.data
                self._count("frame" if is_right else "frame: another mask", is_right=is_right)
                answered += 1
        if answered < frames:
            self.wrong["frame: no answer"] += frames - answered

    def _evaluate(self) -> None:
        job_id = self._site.submit()
        while not (job := self._site.get(job_id)).state.is_final:
            time.sleep(0.5)
        first = self._scores.setdefault(str(job.request.version), job.result)
        is_right = job.state is JobState.SUCCEEDED and job.result == first
        self._count("evaluation" if is_right else f"evaluation: {job.error}", is_right=is_right)

    def _swap(self) -> None:
        self._version = 3 - self._version
        try:
            status = promote(self._site, self._version)
        except httpx2.TransportError as error:
            self._count(f"swap: {type(error).__name__}", is_right=False)
            return
        self._count("swap" if status == 200 else f"swap: {status}", is_right=status == 200)


def promote(site: JobSite, version: int) -> int:
    """Move the alias ``production``; return the status of the answer."""
    path = f"/admin/v1/models/{MODEL}/aliases/production"
    return site.admin.put(path, json={"version": version}).status_code


# --- the program ------------------------------------------------------------------------------------------


def main() -> int:
    """Soak a service; return 1 if something grew or an answer was wrong."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the service must not survive this program
    seconds = 60 * options.minutes / PERIODS
    with _site(options.engine + LEAK * options.leak) as (site, grpc_address):
        soak = Soak(site, grpc_address, _samples(site))
        rests = asyncio.run(_run(soak, site.server.process.pid, options, seconds))
        assert site.server.stop() == 0
        errors = site.server.log.read_text().count('"level": "error"')
    found = [f"{count} x {what}" for what, count in soak.wrong.items()] + findings(rests)
    if errors:
        found.append(f"{errors} errors in the log")
    print(f"{PERIODS} periods of {seconds:.0f} s:", dict(soak.right))
    print("found:", "; ".join(found) or "nothing")
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--load", type=float, default=0.7, help="share of the rate that it can answer")
    parser.add_argument("--rate", type=float, help="requests and frames a second, in the place of --load")
    parser.add_argument("--engine", default="fault_engine:slow:20", help="of the service")
    parser.add_argument("--leak", action="store_true", help="with a leak in the fault engine")
    options = parser.parse_args()
    if options.leak and not options.engine.startswith("fault_engine:"):
        parser.error("--leak needs the fault engine")
    return options


async def _run(soak: Soak, pid: int, options: argparse.Namespace, seconds: float) -> list[Rest]:
    processes = len(processes_of(pid))
    capacity = await soak.capacity(min(10.0, seconds))
    rate = max(_LEAST_RATE, options.rate or options.load * capacity)
    print(f"{capacity:.1f} pictures/s can be answered; {rate:.1f} are asked for", flush=True)
    rests = []
    for number in range(PERIODS):
        await soak.period(number, rate=rate, seconds=seconds)
        rests.append(await asyncio.to_thread(at_rest, pid, processes))
        print(f"period {number + 1}: {rests[-1]}; wrong answers: {dict(soak.wrong)}", flush=True)
    return rests


@contextmanager
def _site(engine: str) -> Iterator[tuple[JobSite, str]]:
    """Start a service with jobs and two versions of a small model; also yield its address of gRPC."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        registry = ModelRegistry(folder / "registry")
        for artifact in pooling_artifacts(folder / "artifacts", 2):
            registry.publish(artifact.folder, MODEL)
        registry.promote(ModelVersion(MODEL, 1))
        environment = serving_environment(folder / "registry", folder / "cache", folder / "home", MODEL)
        environment |= {
            "BISENET_JOBS__MODE": "embedded",
            "BISENET_DATASETS__NOISE": str(write_dataset(folder / "noise", 50)),
            "BISENET_MODELS__ENGINE": engine,
        }
        with started_site(environment, folder / "log") as site:
            (grpc_address,) = re.findall(r'"grpc_address": "([^"]+)"', site.server.log.read_text())
            yield site, grpc_address


def _samples(soak_site: JobSite) -> list[Sample]:
    """Return pictures of which the two versions make different masks; version 1 is in production then."""
    random = np.random.default_rng(0)
    grids = random.integers(0, 256, (20, 8, 16, 3), np.uint8)
    samples = [Sample(encoded(grid.repeat(16, axis=0).repeat(16, axis=1)), {}) for grid in grids]
    for version in (2, 1):
        promote(soak_site, version)
        for sample in samples:
            answer = soak_site.server.client.post(MASK, content=sample.picture).raise_for_status()
            sample.masks[int(answer.headers["x-model-version"])] = answer.content
    assert all(len(set(sample.masks.values())) == 2 for sample in samples)
    return samples


if __name__ == "__main__":
    sys.exit(main())
