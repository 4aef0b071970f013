"""``bisenet bench``: what this machine does, with the context that makes a number worth writing down."""

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
from service.cli.bench.engine_race import BenchmarkAppEntry, EngineEntry, EntryFigures, RaceEntry, race
from service.cli.bench.load_bench import grpc, http, pipeline
from service.cli.bench.pictures import parse_image_size
from service.cli.bench.stream_bench import stream
from service.cli.local import EXIT_FAILED, exit_on_errors, local_settings
from service.core.device.engine import (
    EngineInfo,
    EngineOptions,
    EngineUnavailableError,
    InferenceEngine,
    PrecisionChoice,
)
from service.engine_choice import EngineChooser
from service.engines import engine_builder
from service.machine import Machine, is_busy, this_machine
from service.registry import open_registry
from service.settings import Settings

app = typer.Typer(no_args_is_help=True)

_ROUNDS = 5


@app.callback()
def bench() -> None:
    """Measure what this machine does."""


app.command()(pipeline)
app.command()(http)
app.command()(grpc)
app.command()(stream)


@app.command()
def engine(
    *,
    engines: Annotated[
        list[str] | None, typer.Option("--engine", help="auto, openvino, tensorrt or torch; repeatable.")
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", help="auto, f32, bf16, f16 or int8, each engine; repeatable."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="NAME, NAME:ALIAS or NAME@VERSION.")] = None,
    registry: Annotated[str | None, typer.Option(metavar="URL", help="Where published models are.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.")] = None,
    size: Annotated[str, typer.Option(metavar="HxW", help="Padded to multiples of 32.")] = "512x1024",
    batch: Annotated[int, typer.Option(min=1, help="Pictures in one run.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="For each contender, in five rounds.")] = 10.0,
    peer: Annotated[
        Literal["benchmark_app"] | None,
        typer.Option(help="Run OpenVINO's own benchmark beside, in each precision."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure even though the machine is busy.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")] = False,
) -> None:
    """Time engines on one batch of noise, without reading pictures or making labels; contenders take turns.

    Examples:
        bisenet bench engine
        bisenet bench engine --engine openvino --engine torch --precision f32 --precision bf16
        bisenet bench engine --precision bf16 --precision int8
        bisenet bench engine --peer benchmark_app --size 512x1024 --seconds 20 --json
    """
    images_NHW3 = noise(batch, parse_size(size))
    wanted = [parse_precision(precision) for precision in precisions or ["auto"]]
    if is_busy() and not force:
        typer.echo("error: the machine is busy with other work; wait, or measure with --force", err=True)
        raise typer.Exit(EXIT_FAILED)
    with exit_on_errors():
        models = {"serve": model and [model], "device": device}
        settings = local_settings({"models": models, "registry": {"url": registry}})
        options = engine_options(settings)
        choices = list(product(engines or ["auto"], wanted))
        with _engines(settings, choices, options) as built:
            contenders: list[RaceEntry] = [
                EngineEntry(one.engine, images_NHW3, is_auto=one.is_auto) for one in built
            ]
            if peer:
                contenders += _peers(built, images_NHW3.shape)
            results = race(contenders, rounds=_ROUNDS, round_s=seconds / _ROUNDS, batch=batch)
            versions = ", ".join(dict.fromkeys(str(one.version) for one in built))
    report = EngineBenchReport(
        versions, str(size_of(images_NHW3[0])), batch, options.device, this_machine(), results
    )
    typer.echo(json.dumps(dataclasses.asdict(report), indent=2) if as_json else str(report))


def parse_size(text: str) -> ImageSize:
    """Read ``HEIGHTxWIDTH`` and pad it as the network's pictures are.

    Raises:
        typer.BadParameter: it is written otherwise.
    """
    return parse_image_size(text).padded()


def parse_precision(text: str) -> PrecisionChoice:
    """Read a precision.

    Raises:
        typer.BadParameter: there is none of this name.
    """
    if text not in get_args(PrecisionChoice):
        raise typer.BadParameter(f"{text!r} is none of {', '.join(get_args(PrecisionChoice))}")
    return cast("PrecisionChoice", text)


def noise(batch: int, size: ImageSize) -> UInt8Array:
    """Return images_NHW3 of seeded noise; the time of a network does not depend on what it sees."""
    return np.random.default_rng(0).integers(0, 256, (batch, size.height, size.width, 3), np.uint8)


@dataclass(frozen=True, eq=False)
class _Built:
    version: ModelVersion
    artifact: Artifact
    engine: InferenceEngine
    is_auto: bool


@contextmanager
def _engines(
    settings: Settings, choices: Sequence[tuple[str, PrecisionChoice]], options: EngineOptions
) -> Iterator[list[_Built]]:
    registry = open_registry(settings)
    built: dict[tuple[EngineInfo, bool], _Built] = {}
    with ExitStack() as stack:
        for choice, precision in choices:
            models = settings.models.model_copy(update={"engine": choice, "precision": precision})
            chooser = EngineChooser(settings.model_copy(update={"models": models}), registry)
            version = chooser.version(settings.models.serve[0])
            artifact, build = registry.open(version), engine_builder(choice, options.device)
            tuned = dataclasses.replace(options, precision=precision).tuned(
                chooser.tuning(version, artifact.manifest)
            )
            try:
                engine = build(artifact, tuned)
            except EngineUnavailableError as error:
                if len(choices) == 1:
                    raise
                typer.echo(f"left out: {choice} {precision}: {error}", err=True)
                continue
            stack.callback(engine.close)
            # The engine that auto means and the one of that name are the same, of equal precision.
            same = dataclasses.replace(engine.info, refused=""), precision == "auto"
            built.setdefault(same, _Built(version, artifact, engine, precision == "auto"))
        if not built:
            raise EngineUnavailableError("none of the contenders can run here")
        yield list(built.values())


def _peers(built: Sequence[_Built], shape_NHW3: tuple[int, ...]) -> list[RaceEntry]:
    graphs = {one.engine.info.precision: one.artifact.path(GRAPH_FILE) for one in built}
    return [BenchmarkAppEntry(graph, shape_NHW3, precision) for precision, graph in graphs.items()]


@dataclass(frozen=True)
class EngineBenchReport:
    """Figures and everything without which they mean nothing; as a string a table."""

    model: str
    size: str
    batch: int
    device: str
    machine: Machine
    results: tuple[EntryFigures, ...]

    def __str__(self) -> str:
        """Return the table."""
        machine = self.machine
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        header = (
            f"{self.model}, {self.size}, batch {self.batch}, {self.device}: {machine.processor}, "
            f"{machine.cores} cores\n{versions}\n"
        )
        row = "{:<24}{:>6}{:>10}{:>10}{:>10}{:>12}   {}\n"
        lines = [row.format("", "runs", "p50 ms", "p95 ms", "p99 ms", "pictures/s", "p50 by rounds")]
        lines += [row.format(*result.cells()) for result in self.results]
        return header + "".join(lines).rstrip()
