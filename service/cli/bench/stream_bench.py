"""``bisenet bench stream``: cameras that send frames at their own rate, and a ledger of every frame."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Self

import typer

from service.cli.bench.load import RefusedError
from service.cli.bench.options import (
    AsJson,
    Force,
    KeyFile,
    Model,
    Pictures,
    Precision,
    Seconds,
    refuse_busy,
    run_async,
    service_arguments,
)
from service.cli.bench.own_service import ServiceWatch, own_service
from service.cli.bench.percentile import percentile
from service.cli.bench.pictures import encoded_pictures, parse_image_size
from service.cli.grpc_target import CaFile, Connect, Tls, connector, refuse_tls_on_loopback
from service.cli.local import EXIT_FAILED
from service.client.answers import Frame, FramePolicy, Result
from service.client.errors import ClientError
from service.client.grpc_client import AsyncGrpcClient, FrameCall
from service.client.ledger import FrameLedger
from service.core.memory import frozen_objects
from service.machine import Machine, this_machine

_WARM_UP = 10
_BLOCK_WINDOW = 8
"""Frames of a film that are under way: more than the service takes at once."""


@dataclass(frozen=True)
class StreamLoad:
    """The frames of a measurement.

    Attributes:
        cameras: number of streams; each has a connection of its own.
        fps: frames a second of each camera; 0 = as many as the service takes.
        policy: of all streams.
        seconds: duration.
        size: of the frames.
    """

    cameras: int
    fps: float
    policy: FramePolicy
    seconds: float
    size: str


@dataclass(frozen=True)
class CameraFigures:
    """The frames of one camera.

    Attributes:
        sent: number of frames.
        outcomes: number of frames by outcome.
        age_p50_ms: of the time from the intended moment of capture to the result.
        age_p99_ms: of the time from the intended moment of capture to the result.
    """

    sent: int
    outcomes: dict[str, int]
    age_p50_ms: float | None
    age_p99_ms: float | None


@dataclass(frozen=True)
class ServerCost:
    """The cost of the frames for a service on this machine.

    Attributes:
        cpu_ms: processor time of the service's process for each result, in milliseconds.
        overhead_ms: the part of ``cpu_ms`` outside decoding frames and encoding masks. The network runs in
            another process.
        rss_mb: memory of all its processes at the beginning, in the middle and at the end of the load.
    """

    cpu_ms: float
    overhead_ms: float
    rss_mb: tuple[float, float, float]

    def __str__(self) -> str:
        """Return one line."""
        rss = ", ".join(f"{mb:.0f}" for mb in self.rss_mb)
        return (
            f"server: {self.cpu_ms:.2f} ms CPU a result, {self.overhead_ms:.2f} ms of it neither decoding "
            f"nor encoding; {rss} MB at begin, middle, end"
        )


@dataclass(frozen=True)
class StreamReport:
    """The figures of all cameras with their context.

    Attributes:
        load: frames that were sent.
        model: that answered.
        single_frame_ms: median time from sending a frame to its result while no other frame is under way.
        results_per_s: of all cameras together.
        share_spread: results of the camera with the most, over those of the camera with the fewest, minus 1.
        age_p50_ms: of all results.
        age_p99_ms: of all results.
        age_limit_ms: frame interval + 2 single frames + 20 ms: the goal for cameras that are served live;
            None without a frame rate.
        totals: number of frames by outcome, and of all frames (``sent``).
        is_balanced: whether answered + dropped + failed = sent, for each camera.
        cameras: each camera.
        cost: None where the service runs elsewhere.
        machine: of the clients.
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
        """Return one line for each figure."""
        load = self.load
        totals = ", ".join(f"{count} {name}" for name, count in self.totals.items())
        lines = [
            f"stream: {self.model}, {load.cameras} x {load.size}, {load.fps:g} fps, {load.policy}",
            self.machine.summary,
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
    key_file: KeyFile = None,
    tls: Tls = False,
    ca_file: CaFile = None,
    cameras: Annotated[int, typer.Option(min=1, help="Streams at the same time.")] = 8,
    fps: Annotated[float, typer.Option(min=0, help="Of each camera; 0 = as fast as it goes.")] = 30.0,
    policy: Annotated[FramePolicy, typer.Option(help="latest or block.")] = "latest",
    seconds: Seconds = 30.0,
    size: Annotated[str, typer.Option(metavar="HxW", help="Of the frames.")] = "360x480",
    pictures: Pictures = None,
    model: Model = None,
    precision: Precision = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Send frames of many cameras to a service and account for each of them.

    Examples:
        bisenet bench stream --cameras 8 --fps 30 --seconds 600
        bisenet bench stream --cameras 1 --fps 0 --policy block --json
    """
    flags = {"--model": model, "--precision": precision}
    arguments = service_arguments(flags, address=address, option="--address")
    if not address:
        refuse_tls_on_loopback(tls=tls, ca_file=ca_file)
    wanted = parse_image_size(size)
    frames = encoded_pictures([wanted], pictures)
    refuse_busy(force=force)
    load = StreamLoad(cameras, fps, policy, seconds, str(wanted))
    try:
        with ExitStack() as stack:
            stack.enter_context(frozen_objects())  # a pause of this process would count as age of frames
            watch = None
            if address is None:
                service = stack.enter_context(own_service(arguments))
                address, watch = service.grpc_address, ServiceWatch(service)
            connect = connector(address, key_file, tls=tls, ca_file=ca_file)
            report = run_async(_measure(connect, load, frames, watch))
    except (ClientError, RefusedError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error
    typer.echo(json.dumps(dataclasses.asdict(report), indent=2) if as_json else str(report))


@dataclass
class _Camera:
    """One stream, the capture times of its frames, and its ledger."""

    call: FrameCall
    ledger: FrameLedger = field(default_factory=FrameLedger)
    captured_s: dict[int, float] = field(default_factory=dict)
    ages_s: list[float] = field(default_factory=list)
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, load: StreamLoad, frames: Sequence[bytes]) -> None:
        """Send frames at the camera's rate, whether or not earlier ones are answered."""
        started_s = time.monotonic()
        seq = 0
        while (now_s := time.monotonic()) < started_s + load.seconds:
            due_s = started_s + seq / load.fps if load.fps else now_s
            await asyncio.sleep(max(0.0, due_s - now_s))
            while not load.fps and len(self.ledger) >= _BLOCK_WINDOW:
                self._answered.clear()
                await self._answered.wait()
            seq += 1
            self.captured_s[seq] = due_s if load.fps else time.monotonic()
            self.ledger.send(seq)
            await self.call.send(Frame(seq, frames[seq % len(frames)]))
        await self.call.end()

    async def listen(self) -> None:
        """Enter every answer into the ledger."""
        while (event := await self.call.next_event()) is not None:
            self.ledger.take(event)
            self._answered.set()
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
        cost = await _run_and_watch(cameras, load, frames, watch)
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


async def _run_and_watch(
    cameras: _Cameras, load: StreamLoad, frames: Sequence[bytes], watch: ServiceWatch | None
) -> ServerCost | None:
    """Run the load; returns its cost, if the service can be watched."""
    if watch is None:
        await cameras.run(frames)
        return None
    before = await asyncio.to_thread(watch.processor_times)
    begin_mb = watch.rss_mb()
    running = asyncio.create_task(cameras.run(frames))
    await asyncio.wait([running], timeout=load.seconds / 2)
    middle_mb = watch.rss_mb()
    await running
    spent = await asyncio.to_thread(watch.processor_times) - before
    results = max(1, sum(camera.ledger.outcomes["answered"] for camera in cameras.all))
    return ServerCost(
        cpu_ms=round(1e3 * spent.service_s / results, 3),
        overhead_ms=round(1e3 * spent.overhead_s / results, 3),
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
