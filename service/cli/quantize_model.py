"""``bisenet models quantize``: a model as an int8 version of itself, behind an accuracy gate."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.decoding import decode
from model.errors import DatasetError, QuantizationError
from model.export.quantize import finish, load_nncf, measure, write_quantized
from service.cli.local import exit_on_errors, local_settings
from service.core.device.engine import EngineOptions, private_folder
from service.engines import engine_builder
from service.registry import open_registry

DEFAULT_MAX_MIOU_LOSS = 0.5


@dataclass(frozen=True)
class Accuracy:
    """What a version scores on the validation split, by the engine that serves it.

    Attributes:
        engine: its name and precision.
        miou: in points of 0..100.
        pixel_accuracy: in points of 0..100.
    """

    engine: str
    miou: float
    pixel_accuracy: float

    def __str__(self) -> str:
        """Return the mIoU, for people."""
        return f"{self.miou:.2f} mIoU ({self.engine})"


@dataclass(frozen=True)
class Comparison:
    """An int8 version beside its original."""

    original: Accuracy
    int8: Accuracy

    @property
    def loss(self) -> float:
        """Points of mIoU that the int8 version lacks; negative where it is better."""
        return round(self.original.miou - self.int8.miou, 2)


def quantize_model(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="NAME, NAME:ALIAS or NAME@VERSION; else the shipped one."),
    ] = None,
    *,
    dataset: Annotated[str, typer.Option(metavar="D", help="A data-set TOML, or a preset with --root.")],
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the data set lies.")] = None,
    calibrate_on: Annotated[str, typer.Option(metavar="SPLIT", help="What ranges are taken from.")] = "train",
    validate_on: Annotated[str, typer.Option(metavar="SPLIT", help="What the loss is measured on.")] = "val",
    max_miou_loss: Annotated[
        float, typer.Option(min=0, max=100, help="Points of mIoU that may be lost, of 100.")
    ] = DEFAULT_MAX_MIOU_LOSS,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the artifact here, and publish nothing."),
    ] = None,
    registry: Annotated[str | None, typer.Option(metavar="URL", help="Where published models are.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")] = False,
) -> None:
    """Make an int8 version of a model and publish it; one that loses too much accuracy is refused.

    Unless NAME has an alias production, NAME alone then means the new version where the processor has
    instructions for int8, and its original elsewhere; NAME@VERSION and aliases mean what they meant.

    Examples:
        bisenet models quantize city --dataset city.toml
        bisenet models quantize bisenetv2-camvid@1 --dataset camvid --root /data/camvid --max-miou-loss 0.2
    """
    with exit_on_errors():
        settings = local_settings({"models": {"serve": model and [model]}, "registry": {"url": registry}})
        models = open_registry(settings)
        version = models.resolve(settings.models.serve[0], int8=False)
        spec = DatasetSpec.load(dataset, root=root)
        maker = Int8Quantizer(
            LabeledImages(spec, calibrate_on),
            LabeledImages(spec, validate_on),
            max_miou_loss,
            settings.models.cache_folder,
        )
        with tempfile.TemporaryDirectory() as folder:
            artifact, scores = maker.make(version, models.open(version), Path(folder))
            made = str(models.publish(artifact.folder, version.name)) if out is None else _copy(artifact, out)
    if as_json:
        scored = {**dataclasses.asdict(scores), "loss": scores.loss}
        typer.echo(json.dumps({"made": made, "derived_from": str(version), **scored}, indent=2))
    else:
        typer.echo(f"{made}: {scores.int8}; {version}: {scores.original}")


@dataclass(frozen=True)
class Int8Quantizer:
    """Makes int8 versions that lose no more than was allowed.

    Args:
        training: what activations take their ranges from.
        validation: what the loss is measured on.
        max_miou_loss: in points of 0..100.
        cache_folder: of the engines that measure.
    """

    training: LabeledImages
    validation: LabeledImages
    max_miou_loss: float
    cache_folder: Path

    def make(self, version: ModelVersion, source: Artifact, folder: Path) -> tuple[Artifact, Comparison]:
        """Write the int8 version of an artifact into an empty folder.

        Raises:
            QuantizationError: it loses too much, the source is int8 already, or NNCF is not installed.
            DatasetError: the classes are others, or a file is unusable.
            ArtifactError: the source is damaged, or the int8 graph computes something else.
        """
        load_nncf()  # not after minutes of measuring
        self._check_classes(version, source)
        original = self._measured(source)
        typer.echo(f"{version}: {original}", err=True)
        quantized = write_quantized(
            source,
            folder,
            version=version,
            training=self.training,
            validation=self.validation,
            max_miou_loss=self.max_miou_loss,
        )
        scores = Comparison(original, self._measured(quantized))
        if scores.loss > self.max_miou_loss:
            raise QuantizationError(
                f"{version} has {original}, its int8 version {scores.int8}: {scores.loss:.2f} lost, "
                f"more than {self.max_miou_loss:g}"
            )
        return finish(quantized, self._provenance(scores)), scores

    def _check_classes(self, version: ModelVersion, source: Artifact) -> None:
        known, labelled = source.manifest.palette.num_classes, self.validation.spec.palette.num_classes
        if known != labelled:
            raise DatasetError(f"{self.validation.spec.name} has {labelled} classes, {version} has {known}")

    def _measured(self, artifact: Artifact) -> Accuracy:
        decode.warm_up(private_folder(self.cache_folder / "numba"))
        build = engine_builder("openvino", "cpu")
        with closing(build(artifact, EngineOptions("cpu", "auto", self.cache_folder))) as engine:
            pictures = range(len(self.validation))
            matrix = measure(engine.infer, artifact.manifest, self.validation, pictures)
            name = f"{engine.info.engine} {engine.info.precision}"
        return Accuracy(name, _points(matrix.miou), _points(matrix.pixel_accuracy))

    def _provenance(self, scores: Comparison) -> dict[str, Any]:
        return {
            "quantization": {
                "openvino": importlib.metadata.version("openvino"),
                "nncf": importlib.metadata.version("nncf"),
                "dataset": self.training.spec.name,
                "split": self.training.split,
                "data_fingerprint": self.training.fingerprint,
                "max_miou_loss": self.max_miou_loss,
            },
            "validation": {
                "dataset": self.validation.spec.name,
                "split": self.validation.split,
                "data_fingerprint": self.validation.fingerprint,
                **dataclasses.asdict(scores),
            },
        }


def _points(share: float | None) -> float:
    return round(100 * (share or 0.0), 2)


def _copy(artifact: Artifact, folder: Path) -> str:
    try:
        shutil.copytree(artifact.folder, folder)
    except OSError as error:
        raise QuantizationError(f"{folder} cannot be written: {error.strerror}") from error
    return str(folder)
