"""``bisenet bench pipeline`` and ``bench http``: from JPEG to mask, without and with a server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop

from service.cli.bench.http_target import HttpTarget, running_service, started_service
from service.cli.bench.load import (
    LoadFigures,
    RefusedError,
    Send,
    closed_loop,
    figures_of,
    open_loop,
    poisson_arrivals,
)
from service.cli.bench.pictures import encoded_pictures, parse_image_size
from service.cli.grpc_target import CaFile, Connect, Tls, connector, refuse_tls_on_loopback
from service.cli.local import EXIT_FAILED, exit_on_errors, local_settings, open_segmenter
from service.client.errors import ClientError
from service.core.errors import ServiceError
from service.core.memory import frozen_objects
from service.core.models.loaded_model import LoadedModel
from service.core.pictures import codec
from service.core.pictures.picture import EncodedPicture
from service.core.pictures.segmenter import Segmentation, Segmenter
from service.machine import Machine, is_busy, this_machine

_PATIENCE_S = 30.0
_DEFAULT_SIZE = "512x1024"
_Result = TypeVar("_Result")

Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size", metavar="HxW", help="Of the pictures; repeatable: a mixed load. Default: 512x1024."
    ),
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        exists=True, file_okay=False, metavar="FOLDER", help="Pictures to resize and send; else made-up ones."
    ),
]
InFlight = Annotated[int, typer.Option(min=1, help="Closed loop: requests under way all the time.")]
Rate = Annotated[
    float | None, typer.Option(min=0.01, help="Open loop: requests a second, at random (Poisson).")
]
Seconds = Annotated[float, typer.Option(min=0, help="How long to send.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", "--token-file", exists=True, dir_okay=False, help="Holds an API key for the service."
    ),
]
Model = Annotated[str | None, typer.Option(help="NAME, NAME:ALIAS or NAME@VERSION.")]
RegistryUrl = Annotated[str | None, typer.Option(metavar="URL", help="Where published models are.")]
Engine = Annotated[str | None, typer.Option(help="auto, openvino, tensorrt or torch.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.")]
Precision = Annotated[str | None, typer.Option(help="auto, f32, bf16, f16 or int8.")]
Force = Annotated[bool, typer.Option("--force", help="Measure even though the machine is busy.")]
AsJson = Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")]


@dataclass(frozen=True)
class Load:
    """What is sent, and how.

    Attributes:
        pictures: JPEG files, sent in turn.
        sizes: of the pictures.
        in_flight: of the closed loop.
        rate: of the open loop, a second; None = the loop is closed.
        seconds: how long.
    """

    pictures: Sequence[bytes]
    sizes: tuple[str, ...]
    in_flight: int
    rate: float | None
    seconds: float

    def __str__(self) -> str:
        """Return how it is sent, for people."""
        if self.rate is None:
            return f"closed loop, {self.in_flight} in flight"
        return f"open loop, {self.rate:g} a second (Poisson)"

    async def run(self, send: Send) -> LoadFigures:
        """Warm up with every size and every connection, then send, and sum up."""
        for number in range(len(self.sizes)):
            await send(number)
        await closed_loop(send, in_flight=self.in_flight, seconds=0)
        with frozen_objects():  # pauses of this program would be charged to what answers
            if self.rate is None:
                return figures_of(await closed_loop(send, in_flight=self.in_flight, seconds=self.seconds))
            arrivals_s = poisson_arrivals(rate=self.rate, seconds=self.seconds)
            return figures_of(await open_loop(send, arrivals_s=arrivals_s))


@dataclass(frozen=True)
class LoadReport:
    """Figures and everything without which they mean nothing; as a string for people.

    Attributes:
        target: what was measured.
        model: ``name@version`` that answered.
        engine: that ran it.
        device: that it ran on.
        precision: that it computed in.
        load: how pictures were sent.
        sizes: of the pictures.
        seconds: how long pictures were sent.
        machine: that all of it ran on; with a URL, that of the client.
        figures: what came of it.
    """

    target: str
    model: str
    engine: str
    device: str
    precision: str
    load: str
    sizes: tuple[str, ...]
    seconds: float
    machine: Machine
    figures: LoadFigures

    def __str__(self) -> str:
        """Return the context, then the figures."""
        machine = self.machine
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        return (
            f"{self.target}: {self.model} ({self.engine} {self.precision} on {self.device}), "
            f"{', '.join(self.sizes)}, {self.load}, {self.seconds:g} s\n"
            f"{machine.processor}, {machine.cores} cores; {versions}\n{self.figures}"
        )


def pipeline(
    *,
    model: Model = None,
    registry: RegistryUrl = None,
    engine: Engine = None,
    device: Device = None,
    precision: Precision = None,
    size: Sizes = None,
    pictures: Pictures = None,
    in_flight: InFlight = 1,
    rate: Rate = None,
    seconds: Seconds = 10.0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure the way from JPEG to palette PNG in this process: what a service can reach at most.

    Examples:
        bisenet bench pipeline
        bisenet bench pipeline --in-flight 4 --precision int8 --pictures photos/
    """
    load = make_load(size, pictures, in_flight=in_flight, rate=rate, seconds=seconds)
    _refuse_busy(force=force)
    models = {"serve": model and [model], "engine": engine, "device": device, "precision": precision}
    with exit_on_errors(), _exit_on_refusal("the model"):
        settings = local_settings({"models": models, "registry": {"url": registry}})
        with open_segmenter(settings) as (segmenter, served):
            figures = _run(_measure_pipeline(segmenter, served, load))
    answering = {
        "name": served.version.name,
        "version": served.version.number,
        **dataclasses.asdict(served.engine),
    }
    _print(_report("pipeline", answering, load, figures), as_json=as_json)


def http(
    *,
    url: Annotated[
        str | None, typer.Option(metavar="http://HOST:PORT", help="A service that runs; else one is started.")
    ] = None,
    key_file: KeyFile = None,
    model: Model = None,
    registry: RegistryUrl = None,
    engine: Engine = None,
    device: Device = None,
    precision: Precision = None,
    size: Sizes = None,
    pictures: Pictures = None,
    in_flight: InFlight = 1,
    rate: Rate = None,
    seconds: Seconds = 10.0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure a service over HTTP: JPEG in, palette PNG out, latency from the intended time of sending.

    Without --url, a service is started on this machine as the other flags say, and stopped afterwards.

    Examples:
        bisenet bench http
        bisenet bench http --precision int8 --in-flight 8 --size 512x1024 --size 360x480
        bisenet bench http --url http://127.0.0.1:8000 --rate 20 --seconds 60 --json
    """
    flags = {
        "--model": model,
        "--registry": registry,
        "--engine": engine,
        "--device": device,
        "--precision": precision,
    }
    arguments = [word for flag, value in flags.items() if value for word in (flag, value)]
    if url and arguments:
        raise typer.BadParameter(f"{arguments[0]} is for a service that is started here, not for --url")
    load = make_load(size, pictures, in_flight=in_flight, rate=rate, seconds=seconds)
    _refuse_busy(force=force)
    with _exit_on_refusal(url or "the service"), ExitStack() as stack:
        address = url or stack.enter_context(started_service(arguments))
        target = HttpTarget(address, headers=_authorization(key_file))
        answering, figures = _run(_measure_http(target, load))
    _print(_report(f"http {url or 'on loopback'}", answering, load, figures), as_json=as_json)


def grpc(
    *,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A service that runs; else one is started.")
    ] = None,
    key_file: KeyFile = None,
    tls: Tls = False,
    ca_file: CaFile = None,
    model: Model = None,
    precision: Precision = None,
    size: Sizes = None,
    pictures: Pictures = None,
    in_flight: InFlight = 1,
    rate: Rate = None,
    seconds: Seconds = 10.0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure a service over gRPC, one call for each picture; "bench stream" measures cameras.

    Examples:
        bisenet bench grpc --in-flight 4 --size 360x480
        bisenet bench grpc --address 127.0.0.1:8001 --rate 20 --seconds 60 --json
    """
    flags = {"--model": model, "--precision": precision}
    arguments = [word for flag, value in flags.items() if value for word in (flag, value)]
    if address and arguments:
        raise typer.BadParameter(f"{arguments[0]} is for a service that is started here, not for --address")
    if not address:
        refuse_tls_on_loopback(tls=tls, ca_file=ca_file)
    load = make_load(size, pictures, in_flight=in_flight, rate=rate, seconds=seconds)
    _refuse_busy(force=force)
    with _exit_on_refusal(address or "the service"), ExitStack() as stack:
        there = address or stack.enter_context(running_service(arguments)).grpc_address
        connect = connector(there, key_file, tls=tls, ca_file=ca_file)
        answering, figures = _run(_measure_grpc(connect, load))
    _print(_report(f"grpc {address or 'on loopback'}", answering, load, figures), as_json=as_json)


def make_load(
    sizes: Sequence[str] | None,
    folder: Path | None,
    *,
    in_flight: int = 1,
    rate: float | None = None,
    seconds: float = 10.0,
) -> Load:
    """Return the load that flags describe.

    Raises:
        typer.BadParameter: a size is malformed, or the folder has no pictures.
    """
    wanted = tuple(parse_image_size(text) for text in sizes or [_DEFAULT_SIZE])
    return Load(encoded_pictures(wanted, folder), tuple(map(str, wanted)), in_flight, rate, seconds)


def _authorization(key_file: Path | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key_file.read_text('utf-8').strip()}"} if key_file else {}


def _refuse_busy(*, force: bool) -> None:
    if is_busy() and not force:
        typer.echo("error: the machine is busy with other work; wait, or measure with --force", err=True)
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def _exit_on_refusal(target: str) -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        typer.echo(f"error: {target} does not answer: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error


def _run(measuring: Coroutine[Any, Any, _Result]) -> _Result:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measuring)


async def _measure_pipeline(segmenter: Segmenter, model: LoadedModel, load: Load) -> LoadFigures:
    async def send(number: int) -> None:
        picture = EncodedPicture(load.pictures[number % len(load.pictures)])
        try:
            deadline_s = time.monotonic() + _PATIENCE_S
            async with segmenter.segment(model, picture, _png, deadline_s=deadline_s):
                pass
        except ServiceError as error:
            raise RefusedError(error.code) from error

    return await load.run(send)


def _png(segmentation: Segmentation) -> bytes:
    return codec.encode_palette_png(segmentation.label_map)


async def _measure_http(target: HttpTarget, load: Load) -> tuple[dict[str, Any], LoadFigures]:
    async def send(number: int) -> None:
        await target.segment(load.pictures[number % len(load.pictures)])

    async with target:
        return (await target.models())[0], await load.run(send)


async def _measure_grpc(connect: Connect, load: Load) -> tuple[dict[str, Any], LoadFigures]:
    async with connect() as client:

        async def send(number: int) -> None:
            try:
                await client.segment(load.pictures[number % len(load.pictures)], timeout_s=_PATIENCE_S)
            except ClientError as error:
                raise RefusedError(str(error)) from error

        try:
            answering = (await client.models())[0]
        except ClientError as error:
            raise RefusedError(str(error)) from error
        return dataclasses.asdict(answering), await load.run(send)


def _report(target: str, answering: Mapping[str, Any], load: Load, figures: LoadFigures) -> LoadReport:
    return LoadReport(
        target=target,
        model=f"{answering['name']}@{answering['version']}",
        engine=answering["engine"],
        device=answering["device"],
        precision=answering["precision"],
        load=str(load),
        sizes=load.sizes,
        seconds=load.seconds,
        machine=this_machine(),
        figures=figures,
    )


def _print(report: LoadReport, *, as_json: bool) -> None:
    typer.echo(json.dumps(dataclasses.asdict(report), indent=2) if as_json else str(report))
