"""``bisenet bench``: the speed of this machine, with the context of each figure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal, cast, get_args

import numpy as np
import typer

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import GRAPH_FILE, ModelVersion
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, size_of
from service.assembly import engine_options
from service.cli.bench.cost_bench import cost
from service.cli.bench.engine_comparison import (
    BenchmarkApp,
    ComparedEngine,
    EngineFigures,
    ServiceEngine,
    compare,
)
from service.cli.bench.load_bench import grpc, http, pipeline
from service.cli.bench.options import DEFAULT_SIZE, AsJson, Device, Force, Model, RegistryUrl, refuse_busy
from service.cli.bench.pictures import parse_image_size
from service.cli.bench.stream_bench import stream
from service.cli.local import exit_on_errors, local_settings
from service.core.device.engine import (
    EngineBuilder,
    EngineInfo,
    EngineUnavailableError,
    InferenceEngine,
    PrecisionChoice,
)
from service.engine_choice import EngineChooser
from service.engines import engine_builder
from service.machine import Machine, this_machine
from service.registry import open_registry
from service.settings import Settings

app = typer.Typer(no_args_is_help=True)

_ROUNDS = 5


@app.callback()
def bench() -> None:
    """Measure what this machine can do."""


app.command()(pipeline)
app.command()(http)
app.command()(grpc)
app.command()(stream)
app.command()(cost)


@app.command()
def engine(
    *,
    engines: Annotated[
        list[str] | None,
        typer.Option("--engine", help="auto, openvino, tensorrt, torch or a Python module; repeatable."),
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", help="auto, f32, bf16, f16 or int8, each engine; repeatable."),
    ] = None,
    model: Model = None,
    registry: RegistryUrl = None,
    device: Device = None,
    size: Annotated[str, typer.Option(metavar="HxW", help="Padded to multiples of 32.")] = DEFAULT_SIZE,
    batch: Annotated[int, typer.Option(min=1, help="Pictures in one run.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="For each engine, in five rounds.")] = 10.0,
    peer: Annotated[
        Literal["benchmark_app"] | None,
        typer.Option(help="Run OpenVINO's own benchmark beside, in each precision."),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Time engines on one batch of noise, in turns, without reading pictures or making labels.

    Examples:
        bisenet bench engine
        bisenet bench engine --engine openvino --engine torch --precision f32 --precision bf16
        bisenet bench engine --precision auto --precision f32 --precision bf16 --precision int8
        bisenet bench engine --peer benchmark_app --size 512x1024 --seconds 20 --json
    """
    images_NHW3 = noise(batch, parse_size(size))
    wanted = [parse_precision(precision) for precision in precisions or ["auto"]]
    refuse_busy(force=force)
    with exit_on_errors():
        models = {"serve": model and [model], "device": device}
        settings = local_settings({"models": models, "registry": {"url": registry}})
        choices = list(product(engines or ["auto"], wanted))
        with _built_engines(settings, choices) as built:
            compared: list[ComparedEngine] = [
                ServiceEngine(one.engine, images_NHW3, is_auto=one.is_auto) for one in built
            ]
            if peer:
                compared += _peers(built, images_NHW3.shape)
            results = compare(compared, rounds=_ROUNDS, round_s=seconds / _ROUNDS, batch=batch)
            versions = ", ".join(dict.fromkeys(str(one.version) for one in built))
            device = built[0].engine.info.device
    report = EngineReport(versions, str(size_of(images_NHW3[0])), batch, device, this_machine(), results)
    typer.echo(json.dumps(dataclasses.asdict(report), indent=2) if as_json else str(report))


def parse_size(text: str) -> ImageSize:
    """Read ``HEIGHTxWIDTH`` and pad it as the network's pictures are.

    Raises:
        typer.BadParameter: the text has another form.
    """
    return parse_image_size(text).padded()


def parse_precision(text: str) -> PrecisionChoice:
    """Read a precision.

    Raises:
        typer.BadParameter: there is no such precision.
    """
    if text not in get_args(PrecisionChoice):
        raise typer.BadParameter(f"{text!r} is none of {', '.join(get_args(PrecisionChoice))}")
    return cast("PrecisionChoice", text)


def noise(batch: int, size: ImageSize) -> UInt8Array:
    """Return images_NHW3 of seeded noise; the time of a network does not depend on its pictures."""
    return np.random.default_rng(0).integers(0, 256, (batch, size.height, size.width, 3), np.uint8)


@dataclass(frozen=True, eq=False)
class _BuiltEngine:
    version: ModelVersion
    artifact: Artifact
    engine: InferenceEngine
    is_auto: bool


@contextmanager
def _built_engines(
    settings: Settings, choices: Sequence[tuple[str, PrecisionChoice]]
) -> Iterator[list[_BuiltEngine]]:
    built: dict[tuple[EngineInfo, bool], _BuiltEngine] = {}
    options = engine_options(settings)
    with ExitStack() as stack:
        for name, precision in choices:
            build = engine_builder(name, options.device)
            models = settings.models.model_copy(update={"engine": name, "precision": precision})
            try:
                one = _built_engine(settings.model_copy(update={"models": models}), build)
            except EngineUnavailableError as error:
                if len(choices) == 1:
                    raise
                typer.echo(f"left out: {name} {precision}: {error}", err=True)
                continue
            stack.callback(one.engine.close)
            # "auto" and "openvino" may be the same engine.
            built.setdefault((dataclasses.replace(one.engine.info, refused=""), one.is_auto), one)
        if not built:
            raise EngineUnavailableError("none of the engines can run here")
        yield list(built.values())


def _built_engine(settings: Settings, build: EngineBuilder) -> _BuiltEngine:
    registry, options = open_registry(settings), engine_options(settings)
    chooser = EngineChooser(settings, registry)
    version = chooser.version(settings.models.serve[0])
    artifact = registry.open(version)
    tuning = chooser.tuning(version, artifact.manifest)
    engine = build(artifact, options.tuned(tuning))
    return _BuiltEngine(version, artifact, engine, settings.models.precision == "auto")


def _peers(built: Sequence[_BuiltEngine], shape_NHW3: tuple[int, ...]) -> list[ComparedEngine]:
    graphs = {one.engine.info.precision: one.artifact.path(GRAPH_FILE) for one in built}
    return [BenchmarkApp(graph, shape_NHW3, precision) for precision, graph in graphs.items()]


@dataclass(frozen=True)
class EngineReport:
    """The figures of engines with their context.

    Attributes:
        model: versions that ran.
        size: of the pictures, padded.
        batch: pictures in one run.
        device: of the engines.
        machine: that they ran on.
        results: the figures of each.
    """

    model: str
    size: str
    batch: int
    device: str
    machine: Machine
    results: tuple[EngineFigures, ...]

    def __str__(self) -> str:
        """Return the context and a table."""
        header = f"{self.model}, {self.size}, batch {self.batch}, {self.device}\n{self.machine.summary}\n"
        row = "{:<24}{:>6}{:>10}{:>10}{:>10}{:>12}   {}\n"
        lines = [row.format("", "runs", "p50 ms", "p95 ms", "p99 ms", "pictures/s", "p50 by rounds")]
        lines += [row.format(*result.cells()) for result in self.results]
        return header + "".join(lines).rstrip()
