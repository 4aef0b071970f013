"""``bisenet models quantize``: an int8 version of a model, behind an accuracy gate."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from model.artifacts.artifact import Artifact
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.decoding import decode
from model.errors import QuantizationError
from model.export.accuracy_gate import DEFAULT_MAX_MIOU_LOSS, Accuracy, Int8Gate
from model.export.quantize import measure
from service.cli.local import exit_on_errors, local_settings
from service.core.device.engine import EngineOptions, private_folder
from service.engines import engine_builder
from service.registry import open_registry


def quantize_model(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="NAME, NAME:ALIAS or NAME@VERSION. Default: the shipped one."),
    ] = None,
    *,
    dataset: Annotated[str, typer.Option(metavar="D", help="A data-set TOML, or a preset with --root.")],
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the data set.")] = None,
    calibrate_on: Annotated[
        str, typer.Option(metavar="SPLIT", help="Split for activation ranges.")
    ] = "train",
    validate_on: Annotated[str, typer.Option(metavar="SPLIT", help="Split to measure the loss on.")] = "val",
    max_miou_loss: Annotated[
        float, typer.Option(min=0, max=100, help="Largest loss of mIoU, in points of 100.")
    ] = DEFAULT_MAX_MIOU_LOSS,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the artifact here instead of publishing it."),
    ] = None,
    registry: Annotated[str | None, typer.Option(metavar="URL", help="Registry of the models.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")] = False,
) -> None:
    """Make an int8 version of a model and publish it; a version that loses too much accuracy is refused.

    Unless NAME has an alias production, NAME alone then means the new version where the processor has
    instructions for int8, and its original elsewhere. NAME@VERSION and aliases keep their meaning.

    Examples:
        bisenet models quantize city --dataset city.toml
        bisenet models quantize camvid@1 --dataset camvid --root /data/camvid --max-miou-loss 0.2
    """
    with exit_on_errors():
        settings = local_settings({"models": {"serve": model and [model]}, "registry": {"url": registry}})
        models = open_registry(settings)
        version = models.resolve(settings.models.serve[0], int8=False)
        spec = DatasetSpec.load(dataset, root=root)
        validation = LabeledImages(spec, validate_on)
        measured = partial(_measured, validation, settings.models.cache_folder)
        gate = Int8Gate(LabeledImages(spec, calibrate_on), validation, max_miou_loss, measured)
        with tempfile.TemporaryDirectory() as folder:
            source = models.open(version)
            artifact, scores = gate.quantize(
                version, source, Path(folder), tell=partial(typer.echo, err=True)
            )
            made = str(models.publish(artifact.folder, version.name)) if out is None else _copy(artifact, out)
    if as_json:
        scored = {**dataclasses.asdict(scores), "loss": scores.loss}
        typer.echo(json.dumps({"made": made, "derived_from": str(version), **scored}, indent=2))
    else:
        typer.echo(f"{made}: {scores.int8}; {version}: {scores.original}")


def _measured(validation: LabeledImages, cache_folder: Path, artifact: Artifact) -> Accuracy:
    """Score an artifact by the engine that serves it on this processor."""
    decode.warm_up(private_folder(cache_folder / "numba"))
    build = engine_builder("openvino", "cpu")
    with closing(build(artifact, EngineOptions("cpu", "auto", cache_folder))) as engine:
        matrix = measure(engine.infer, artifact.manifest, validation, range(len(validation)))
        return Accuracy.of(f"{engine.info.engine} {engine.info.precision}", matrix)


def _copy(artifact: Artifact, folder: Path) -> str:
    try:
        shutil.copytree(artifact.folder, folder)
    except OSError as error:
        raise QuantizationError(f"{folder} cannot be written: {error.strerror}") from error
    return str(folder)
