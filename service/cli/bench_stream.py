"""``bisenet bench stream``: cameras that send frames at their own rate, and a ledger of every frame."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Self

import numpy as np
import typer
import uvloop

from model.image import decode_image
from model.labels import MAX_CLASSES, ClassPalette, LabelMap, UInt8Array
from model.preprocess import PreprocessSpec, size_of
from service.cli.http_target import running_service
from service.cli.load import RefusedError, percentile
from service.cli.local import EXIT_FAILED
from service.cli.pictures import encoded_pictures, parse_image_size
from service.client.answers import Frame, FramePolicy, Mask, Result
from service.client.errors import ClientError
from service.client.grpc_client import AsyncGrpcClient, FrameCall
from service.client.ledger import FrameLedger
from service.core import codec
from service.machine import Machine, is_busy, this_machine

_WARM_UP = 10
_ANY_PALETTE = ClassPalette(
    tuple(map(str, range(MAX_CLASSES))), tuple((gray, gray, gray) for gray in range(MAX_CLASSES))
)
_ANY_SPEC = PreprocessSpec((0.5, 0.5, 0.5), max_infer_pixels=1 << 62)
_BLOCK_WINDOW = 8
"""Frames of a film that are under way: more than the service takes at once."""


@dataclass(frozen=True)
class StreamLoad:
    """What is sent.

    Attributes:
        cameras: streams, each on a connection of its own.
        fps: frames a second that each sends; 0 = as many as are taken.
        policy: of all streams.
        seconds: how long.
        size: of the frames.
    """

    cameras: int
    fps: float
    policy: FramePolicy
    seconds: float
    size: str


@dataclass(frozen=True)
class CameraFigures:
    """What became of the frames of one camera; ages from the intended moment of capture to the result."""

    sent: int
    outcomes: dict[str, int]
    age_p50_ms: float | None
    age_p99_ms: float | None


@dataclass(frozen=True)
class ServerCost:
    """What a service on this machine took for it.

    Attributes:
        cpu_ms: of the serving process for each result, decoding and encoding included.
        overhead_ms: the same without decoding and encoding; the network runs in another process. What these
            two take is measured here, after the load, alone and with warm caches: beside other work they take
            more, which counts as overhead.
        rss_mb: of all its processes when the load began, in the middle of it, and at its end.
    """

    cpu_ms: float
    overhead_ms: float
    rss_mb: tuple[float, float, float]

    def __str__(self) -> str:
        """Return the cost for people."""
        rss = ", ".join(f"{mb:.0f}" for mb in self.rss_mb)
        return (
            f"server: {self.cpu_ms:.2f} ms CPU a result, {self.overhead_ms:.2f} ms of it neither decoding "
            f"nor encoding; {rss} MB at begin, middle, end"
        )


@dataclass(frozen=True)
class StreamReport:
    """The ledger and everything without which it means nothing.

    Attributes:
        load: what was sent.
        model: that answered.
        single_frame_ms: from sending one frame to its result, when nothing else is under way; median.
        results_per_s: of all cameras together.
        share_spread: results of the best served camera over those of the worst, minus one.
        age_p50_ms: of all results.
        age_p99_ms: of all results.
        age_limit_ms: frame interval + 2 single frames + 20 ms, of a camera that is served live.
        totals: frames by what became of them.
        is_balanced: answered + dropped + failed = sent, for each camera.
        cameras: one by one.
        cost: None where the service runs elsewhere.
        machine: that of the clients.
    """

    load: StreamLoad
    model: str
    single_frame_ms: float
    results_per_s: float
    share_spread: float
    age_p50_ms: float | None
    age_p99_ms: float | None
    age_limit_ms: float | None
    totals: dict[str, int]
    is_balanced: bool
    cameras: tuple[CameraFigures, ...]
    cost: ServerCost | None
    machine: Machine

    def __str__(self) -> str:
        """Return the figures for people."""
        load = self.load
        totals = ", ".join(f"{count} {name}" for name, count in self.totals.items())
        lines = [
            f"stream: {self.model}, {load.cameras} x {load.size}, {load.fps:g} fps, {load.policy}",
            f"{self.machine.processor}, {self.machine.cores} cores",
            f"{self.results_per_s:.1f} results/s; one frame alone {self.single_frame_ms:.1f} ms",
            f"age p50 {self.age_p50_ms} ms, p99 {self.age_p99_ms} ms (limit {self.age_limit_ms} ms)",
            f"shares within {100 * self.share_spread:.1f} %",
            f"ledger: {totals}; {'balanced' if self.is_balanced else 'NOT BALANCED'}",
        ]
        return "\n".join(lines if self.cost is None else [*lines, str(self.cost)])


def stream(
    *,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A service that runs; else one is started.")
    ] = None,
    cameras: Annotated[int, typer.Option(min=1, help="Streams at the same time.")] = 8,
    fps: Annotated[float, typer.Option(min=0, help="Of each camera; 0 = as fast as it goes.")] = 30.0,
    policy: Annotated[FramePolicy, typer.Option(help="latest or block.")] = "latest",
    seconds: Annotated[float, typer.Option(min=0, help="How long to send.")] = 30.0,
    size: Annotated[str, typer.Option(metavar="HxW", help="Of the frames.")] = "360x480",
    pictures: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A folder of pictures; else made-up ones."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="NAME, NAME:ALIAS or NAME@VERSION.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, f32, bf16, f16 or int8.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure even though the machine is busy.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")] = False,
) -> None:
    """Send frames of many cameras to a service and account for each of them.

    Examples:
        bisenet bench stream --cameras 8 --fps 30 --seconds 600
        bisenet bench stream --cameras 1 --fps 0 --policy block --json
    """
    wanted = parse_image_size(size)
    frames = encoded_pictures([wanted], pictures)
    if is_busy() and not force:
        typer.echo("error: the machine is busy with other work; wait, or measure with --force", err=True)
        raise typer.Exit(EXIT_FAILED)
    load = StreamLoad(cameras, fps, policy, seconds, str(wanted))
    flags = {"--model": model, "--precision": precision}
    arguments = [word for flag, value in flags.items() if value for word in (flag, value)]
    try:
        with ExitStack() as stack, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            process = None
            if address is None:
                service = stack.enter_context(running_service(arguments))
                address, process = service.grpc_address, ProcessTree(service.pid)
            report = runner.run(_measure(address, load, frames, process))
    except (ClientError, RefusedError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error
    typer.echo(json.dumps(dataclasses.asdict(report), indent=2) if as_json else str(report))


class ProcessTree:
    """Looks at a process, and at the memory of its children too.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def cpu_s(self) -> float:
        """Return the time that the process itself has spent on processors."""
        fields = Path(f"/proc/{self._pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Return the memory of the process and its children."""
        tasks = Path(f"/proc/{self._pid}/task").iterdir()
        children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        return sum(_rss_mb(pid) for pid in (self._pid, *children))


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass
class _Camera:
    """One stream, its clock and its book."""

    call: FrameCall
    ledger: FrameLedger = field(default_factory=FrameLedger)
    captured_s: dict[int, float] = field(default_factory=dict)
    ages_s: list[float] = field(default_factory=list)
    masks: dict[int, Mask] = field(default_factory=dict)
    _room: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, load: StreamLoad, frames: Sequence[bytes]) -> None:
        """Send at the camera's rate, whatever becomes of the frames."""
        started_s = time.monotonic()
        seq = 0
        while (now_s := time.monotonic()) < started_s + load.seconds:
            due_s = started_s + seq / load.fps if load.fps else now_s
            await asyncio.sleep(max(0.0, due_s - now_s))
            while not load.fps and len(self.ledger) >= _BLOCK_WINDOW:
                self._room.clear()
                await self._room.wait()
            seq += 1
            self.captured_s[seq] = due_s if load.fps else time.monotonic()
            self.ledger.send(seq)
            await self.call.send(Frame(seq, frames[seq % len(frames)]))
        await self.call.end()

    async def listen(self, num_frames: int) -> None:
        """Book every answer, and keep the newest mask of each of so many pictures."""
        while (event := await self.call.next_event()) is not None:
            self.ledger.take(event)
            self._room.set()
            if isinstance(event, Result):
                self.ages_s.append(time.monotonic() - self.captured_s.pop(event.seq))
                self.masks[event.seq % num_frames] = event.mask

    def figures(self) -> CameraFigures:
        return CameraFigures(
            self.ledger.sent, dict(self.ledger.outcomes), _ms(self.ages_s, 50), _ms(self.ages_s, 99)
        )


async def _measure(
    address: str, load: StreamLoad, frames: Sequence[bytes], process: ProcessTree | None
) -> StreamReport:
    async with AsyncGrpcClient(address) as client:
        answering = (await client.models())[0]
        single_s = await _single_frame_s(client, frames)
    async with _Cameras(address, load) as cameras:
        begun_s = time.monotonic()
        cost = await _costed(cameras, load, frames, process)
        seconds = time.monotonic() - begun_s
    results = [camera.ledger.outcomes["answered"] for camera in cameras.all]
    ages_s = [age_s for camera in cameras.all for age_s in camera.ages_s]
    totals = sum((camera.ledger.outcomes for camera in cameras.all), Counter({"sent": 0}))
    totals["sent"] = sum(camera.ledger.sent for camera in cameras.all)
    return StreamReport(
        load=load,
        model=f"{answering.name}@{answering.version}",
        single_frame_ms=round(1e3 * single_s, 2),
        results_per_s=round(sum(results) / seconds, 2),
        share_spread=round(max(results) / max(1, min(results)) - 1, 4),
        age_p50_ms=_ms(ages_s, 50),
        age_p99_ms=_ms(ages_s, 99),
        age_limit_ms=round(1e3 * (1 / load.fps + 2 * single_s) + 20, 1) if load.fps else None,
        totals=dict(totals),
        is_balanced=all(sum(c.ledger.outcomes.values()) == c.ledger.sent for c in cameras.all),
        cameras=tuple(camera.figures() for camera in cameras.all),
        cost=cost,
        machine=this_machine(),
    )


class _Cameras:
    """Opens the streams, each on a connection of its own, and closes them."""

    def __init__(self, address: str, load: StreamLoad) -> None:
        self.all: list[_Camera] = []
        self._address = address
        self._load = load
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for _ in range(self._load.cameras):
            client = await self._stack.enter_async_context(AsyncGrpcClient(self._address))
            call = await self._stack.enter_async_context(client.stream(mask="png", policy=self._load.policy))
            self.all.append(_Camera(call))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run(self, frames: Sequence[bytes]) -> None:
        """Send and listen until every frame is answered."""
        async with asyncio.TaskGroup() as tasks:
            for camera in self.all:
                tasks.create_task(camera.listen(len(frames)))
                tasks.create_task(camera.send(self._load, frames))


async def _costed(
    cameras: _Cameras, load: StreamLoad, frames: Sequence[bytes], process: ProcessTree | None
) -> ServerCost | None:
    """Run the load, and look at the service meanwhile."""
    if process is None:
        await cameras.run(frames)
        return None
    cpu_s, begin_mb = process.cpu_s(), process.rss_mb()
    running = asyncio.create_task(cameras.run(frames))
    await asyncio.wait([running], timeout=load.seconds / 2)
    middle_mb = process.rss_mb()
    await running
    cpu_s = process.cpu_s() - cpu_s
    results = max(1, sum(camera.ledger.outcomes["answered"] for camera in cameras.all))
    masks = {number: mask for camera in cameras.all for number, mask in camera.masks.items()}
    picture_s = fmean(picture_cpu_s(frames[number], mask) for number, mask in masks.items()) if masks else 0.0
    return ServerCost(
        cpu_ms=round(1e3 * cpu_s / results, 3),
        overhead_ms=round(1e3 * (cpu_s / results - picture_s), 3),
        rss_mb=(begin_mb, middle_mb, process.rss_mb()),
    )


def picture_cpu_s(data: bytes, mask: Mask, *, repeats: int = 5) -> float:
    """Return how long a processor works to decode a frame and to encode its mask, in seconds; the median.

    Not the time that passes: beside other threads a stage waits for a processor as well, and what was
    subtracted for it would hide what the service does.

    Args:
        data: a JPEG, PNG or WebP file.
        mask: its palette PNG.
        repeats: how often it is done, after one time that fills the caches.
    """
    label_map = LabelMap(mask.labels_HW(), _ANY_PALETTE)
    padded = size_of(label_map.ids_HW).padded()
    canvas_HW3 = np.empty((padded.height, padded.width, 3), np.uint8)
    return median([_cpu_s(data, label_map, canvas_HW3) for _ in range(1 + repeats)][1:])


def _cpu_s(data: bytes, label_map: LabelMap, canvas_HW3: UInt8Array) -> float:
    started_s = time.thread_time()
    _ANY_SPEC.prepare(decode_image(data), canvas=lambda _padded, _original: canvas_HW3)
    codec.encode_palette_png(label_map)
    return time.thread_time() - started_s


async def _single_frame_s(client: AsyncGrpcClient, frames: Sequence[bytes]) -> float:
    async with client.stream(mask="png", policy="block") as call:
        times_s = []
        await call.next_event()
        for seq in range(1, 3 * _WARM_UP):
            sent_s = time.monotonic()
            await call.send(Frame(seq, frames[seq % len(frames)]))
            await call.next_event()
            times_s.append(time.monotonic() - sent_s)
        await call.end()
    return sorted(times_s[_WARM_UP:])[_WARM_UP]


def _ms(values_s: Sequence[float], percent: float) -> float | None:
    return percentile([1e3 * value_s for value_s in values_s], percent)
