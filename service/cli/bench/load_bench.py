"""``bisenet bench pipeline``, ``http`` and ``grpc``: from JPEG to mask, without and with a server."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.bench.http_target import HttpTarget
from service.cli.bench.load import (
    LoadFigures,
    RefusedError,
    Send,
    closed_loop,
    figures_of,
    open_loop,
    poisson_arrivals,
)
from service.cli.bench.options import (
    DEFAULT_SIZE,
    AsJson,
    Device,
    Engine,
    Force,
    InFlight,
    KeyFile,
    Model,
    Pictures,
    Precision,
    Rate,
    RegistryUrl,
    Seconds,
    Sizes,
    exit_on_refusal,
    refuse_busy,
    run_async,
    service_arguments,
)
from service.cli.bench.own_service import own_service
from service.cli.bench.pictures import encoded_pictures, parse_image_size
from service.cli.grpc_target import CaFile, Connect, Tls, connector, refuse_tls_on_loopback
from service.cli.local import exit_on_errors, local_settings, open_segmenter
from service.client.errors import ClientError
from service.core.errors import ServiceError
from service.core.memory import frozen_objects
from service.core.models.loaded_model import LoadedModel
from service.core.pictures import codec
from service.core.pictures.picture import EncodedPicture
from service.core.pictures.segmenter import Segmentation, Segmenter
from service.machine import Machine, this_machine

_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Load:
    """The requests of a measurement.

    Attributes:
        pictures: JPEG files, sent in turn.
        sizes: of the pictures.
        in_flight: requests under way in the closed loop.
        rate: requests a second in the open loop; None = the loop is closed.
        seconds: duration.
    """

    pictures: Sequence[bytes]
    sizes: tuple[str, ...]
    in_flight: int
    rate: float | None
    seconds: float

    def __str__(self) -> str:
        """Return the kind of loop."""
        if self.rate is None:
            return f"closed loop, {self.in_flight} in flight"
        return f"open loop, {self.rate:g} a second (Poisson)"

    async def run(self, send: Send) -> LoadFigures:
        """Warm up each size and each connection, then send the requests and return their figures."""
        for number in range(len(self.sizes)):
            await send(number)
        await closed_loop(send, in_flight=self.in_flight, seconds=0)
        with frozen_objects():  # a pause of this process would count as latency of the target
            if self.rate is None:
                return figures_of(await closed_loop(send, in_flight=self.in_flight, seconds=self.seconds))
            arrivals_s = poisson_arrivals(rate=self.rate, seconds=self.seconds)
            return figures_of(await open_loop(send, arrivals_s=arrivals_s))


@dataclass(frozen=True)
class LoadReport:
    """The figures of a load with their context.

    Attributes:
        target: the measured service.
        model: ``name@version`` that answered.
        engine: that ran the model.
        device: of the engine.
        precision: of the engine.
        load: kind of loop.
        sizes: of the pictures.
        seconds: duration of the load.
        machine: that ran target and client; with a URL, the client's.
        figures: of the load.
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
        return (
            f"{self.target}: {self.model} ({self.engine} {self.precision} on {self.device}), "
            f"{', '.join(self.sizes)}, {self.load}, {self.seconds:g} s\n"
            f"{self.machine.summary}\n{self.figures}"
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
    """Measure the way from JPEG to palette PNG in this process: the upper limit for a service.

    Examples:
        bisenet bench pipeline
        bisenet bench pipeline --in-flight 4 --precision int8 --pictures photos/
    """
    load = make_load(size, pictures, in_flight=in_flight, rate=rate, seconds=seconds)
    refuse_busy(force=force)
    models = {"serve": model and [model], "engine": engine, "device": device, "precision": precision}
    with exit_on_errors(), exit_on_refusal("the model"):
        settings = local_settings({"models": models, "registry": {"url": registry}})
        with open_segmenter(settings) as (segmenter, served):
            figures = run_async(_measure_pipeline(segmenter, served, load))
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
    arguments = service_arguments(flags, address=url, option="--url")
    load = make_load(size, pictures, in_flight=in_flight, rate=rate, seconds=seconds)
    refuse_busy(force=force)
    with exit_on_refusal(url or "the service"), ExitStack() as stack:
        address = url or stack.enter_context(own_service(arguments)).url
        target = HttpTarget(address, headers=_authorization(key_file))
        answering, figures = run_async(_measure_http(target, load))
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
    arguments = service_arguments(flags, address=address, option="--address")
    if not address:
        refuse_tls_on_loopback(tls=tls, ca_file=ca_file)
    load = make_load(size, pictures, in_flight=in_flight, rate=rate, seconds=seconds)
    refuse_busy(force=force)
    with exit_on_refusal(address or "the service"), ExitStack() as stack:
        grpc_address = address or stack.enter_context(own_service(arguments)).grpc_address
        connect = connector(grpc_address, key_file, tls=tls, ca_file=ca_file)
        answering, figures = run_async(_measure_grpc(connect, load))
    _print(_report(f"grpc {address or 'on loopback'}", answering, load, figures), as_json=as_json)


def make_load(
    sizes: Sequence[str] | None,
    folder: Path | None,
    *,
    in_flight: int = 1,
    rate: float | None = None,
    seconds: float = 10.0,
) -> Load:
    """Return the load that the options describe.

    Raises:
        typer.BadParameter: a size is malformed, or the folder has no pictures.
    """
    wanted = tuple(parse_image_size(text) for text in sizes or [DEFAULT_SIZE])
    return Load(encoded_pictures(wanted, folder), tuple(map(str, wanted)), in_flight, rate, seconds)


def _authorization(key_file: Path | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key_file.read_text('utf-8').strip()}"} if key_file else {}


async def _measure_pipeline(segmenter: Segmenter, model: LoadedModel, load: Load) -> LoadFigures:
    async def send(number: int) -> None:
        picture = EncodedPicture(load.pictures[number % len(load.pictures)])
        try:
            deadline_s = time.monotonic() + _TIMEOUT_S
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
                await client.segment(load.pictures[number % len(load.pictures)], timeout_s=_TIMEOUT_S)
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
