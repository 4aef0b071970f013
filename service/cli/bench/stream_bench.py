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
from typing import Annotated, Self
from urllib.request import Request, urlopen

import typer
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from service.cli.bench.http_target import RunningService, running_service
from service.cli.bench.load import RefusedError, percentile
from service.cli.bench.pictures import encoded_pictures, parse_image_size
from service.cli.grpc_target import CaFile, Connect, Tls, connector, refuse_tls_on_loopback
from service.cli.local import EXIT_FAILED
from service.client.answers import Frame, FramePolicy, Result
from service.client.errors import ClientError
from service.client.grpc_client import AsyncGrpcClient, FrameCall
from service.client.ledger import FrameLedger
from service.core.memory import frozen_objects
from service.machine import Machine, is_busy, this_machine
from service.telemetry import PICTURE_CPU

_WARM_UP = 10
_PATIENCE_S = 30.0
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
        overhead_ms: the same without what its threads took to decode frames and to encode masks, by its own
            metrics; the network runs in another process.
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
    key_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Holds the API key.")
    ] = None,
    tls: Tls = False,
    ca_file: CaFile = None,
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
    if not address:
        refuse_tls_on_loopback(tls=tls, ca_file=ca_file)
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
            stack.enter_context(frozen_objects())  # pauses of this program would be charged to the service
            watch = None
            if address is None:
                service = stack.enter_context(running_service(arguments))
                address, watch = service.grpc_address, ServiceWatch(service)
            connect = connector(address, key_file, tls=tls, ca_file=ca_file)
            report = runner.run(_measure(connect, load, frames, watch))
    except (ClientError, RefusedError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error
    typer.echo(json.dumps(dataclasses.asdict(report), indent=2) if as_json else str(report))


class ServiceWatch:
    """Looks at a service of our own: its processor time, what of it pictures took, and its memory.

    Args:
        service: runs on this machine.
    """

    def __init__(self, service: RunningService) -> None:
        self._pid = service.pid
        self._metrics = Request(  # noqa: S310 - it has said itself where it listens
            f"{service.admin_url}/metrics",
            headers={"Authorization": f"Bearer {service.admin_token_file.read_text('utf-8').strip()}"},
        )

    def picture_cpu_s(self) -> float:
        """Return the time that decoding and encoding have spent on processors.

        Raises:
            RefusedError: the service does not tell.
        """
        try:
            with urlopen(self._metrics, timeout=_PATIENCE_S) as answer:  # noqa: S310 - as above
                families = text_string_to_metric_families(answer.read().decode())
        except OSError as error:
            raise RefusedError(f"no metrics: {error}") from error
        samples = (sample for family in families for sample in family.samples)
        return sum(sample.value for sample in samples if sample.name == PICTURE_CPU)

    def cpu_s(self) -> float:
        """Return the time that the process itself has spent on processors."""
        return process_cpu_s(self._pid)

    def rss_mb(self) -> float:
        """Return the memory of the process and its children."""
        tasks = Path(f"/proc/{self._pid}/task").iterdir()
        children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        return sum(_rss_mb(pid) for pid in (self._pid, *children))


def process_cpu_s(pid: int) -> float:
    """Return the time that a process of this machine has spent on processors, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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

    async def listen(self) -> None:
        """Book every answer."""
        while (event := await self.call.next_event()) is not None:
            self.ledger.take(event)
            self._room.set()
            if isinstance(event, Result):
                self.ages_s.append(time.monotonic() - self.captured_s.pop(event.seq))

    def figures(self) -> CameraFigures:
        return CameraFigures(
            self.ledger.sent, dict(self.ledger.outcomes), _ms(self.ages_s, 50), _ms(self.ages_s, 99)
        )


async def _measure(
    connect: Connect, load: StreamLoad, frames: Sequence[bytes], watch: ServiceWatch | None
) -> StreamReport:
    async with connect() as client:
        answering = (await client.models())[0]
        single_s = await _single_frame_s(client, frames)
    async with _Cameras(connect, load) as cameras:
        begun_s = time.monotonic()
        cost = await _costed(cameras, load, frames, watch)
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

    def __init__(self, connect: Connect, load: StreamLoad) -> None:
        self.all: list[_Camera] = []
        self._connect = connect
        self._load = load
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for _ in range(self._load.cameras):
            client = await self._stack.enter_async_context(self._connect())
            call = await self._stack.enter_async_context(client.stream(mask="png", policy=self._load.policy))
            self.all.append(_Camera(call))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run(self, frames: Sequence[bytes]) -> None:
        """Send and listen until every frame is answered."""
        async with asyncio.TaskGroup() as tasks:
            for camera in self.all:
                tasks.create_task(camera.listen())
                tasks.create_task(camera.send(self._load, frames))


async def _costed(
    cameras: _Cameras, load: StreamLoad, frames: Sequence[bytes], watch: ServiceWatch | None
) -> ServerCost | None:
    """Run the load, and look at the service meanwhile."""
    if watch is None:
        await cameras.run(frames)
        return None
    picture_s = await asyncio.to_thread(watch.picture_cpu_s)
    cpu_s, begin_mb = watch.cpu_s(), watch.rss_mb()
    running = asyncio.create_task(cameras.run(frames))
    await asyncio.wait([running], timeout=load.seconds / 2)
    middle_mb = watch.rss_mb()
    await running
    cpu_s = watch.cpu_s() - cpu_s
    picture_s = await asyncio.to_thread(watch.picture_cpu_s) - picture_s
    results = max(1, sum(camera.ledger.outcomes["answered"] for camera in cameras.all))
    return ServerCost(
        cpu_ms=round(1e3 * cpu_s / results, 3),
        overhead_ms=round(1e3 * (cpu_s - picture_s) / results, 3),
        rss_mb=(begin_mb, middle_mb, watch.rss_mb()),
    )


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
