"""A finished run becomes an artifact: averaged weights, and a manifest that says how they were made.

The average with the highest validation mIoU is published. Where the validation pictures are also training
pictures their scores mean nothing, and the average of the last step is published.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.manifest import RANDOM_WEIGHTS, ModelManifest
from model.errors import ArtifactError, GoldenMismatchError
from model.evaluation.metrics import ConfusionMatrix
from model.networks.segmentation_network import ARCHITECTURES, SegmentationNetwork
from model.pictures.preprocess import ImageSize
from training.config import TrainingConfig, plain
from training.data.splits import TrainingData
from training.run.checkpoint import sync

NO_OPENVINO = "openvino is not installed here; --resume on the same folder, where it is, makes the artifact"
_DISTRIBUTION = "bisenet-service"
_DIGITS = 4
_DIGEST_DIGITS = 12


@dataclass(frozen=True)
class RunProvenance:
    """The origin of a run.

    Attributes:
        command: the command line.
        code: ``code_version()`` when the run started.
        started_from: ``name@version`` or file of its first weights; empty = random weights.
    """

    command: str
    code: str
    started_from: str = ""


def build_manifest(
    config: TrainingConfig, data: TrainingData, *, origin: RunProvenance, steps: int, matrix: ConfusionMatrix
) -> ModelManifest:
    """Return the manifest of the model of a run, with the data to repeat the run and to judge the model.

    Args:
        config: configuration of the run.
        data: its pictures.
        origin: where the run comes from.
        steps: number of steps that led to the weights.
        matrix: counts of these weights on the validation split.
    """
    architecture = ARCHITECTURES[config.network.architecture]
    return ModelManifest(
        architecture=config.network.architecture,
        generation=architecture.generation,
        parameters={**architecture.parameters, **config.network.parameters},
        upsample=architecture.upsample,
        stride=architecture.stride,
        palette=data.spec.palette,
        mean=data.mean,
        std=data.std,
        precision="f16",
        training_size=ImageSize(*config.augment.crop),
        provenance={
            "command": origin.command,
            "code_version": origin.code,
            "config": plain(config),
            "started_from": origin.started_from or RANDOM_WEIGHTS,
            "torch": torch.__version__,
            "data_fingerprint": data.fingerprint,
            "steps": steps,
            "validation": _scores(config, data.spec.palette.names, matrix),
        },
    )


def publish(folder: Path, network: SegmentationNetwork, manifest: ModelManifest) -> Artifact:
    """Write an artifact and return it; an older one in its place is replaced once the new one is proven.

    Args:
        folder: of the artifact; created.
        network: the averaged weights, on any device.
        manifest: without file digests. Where the precision is ``f16`` and the rounded graph fails the golden
            sample, the artifact has ``f32`` weights.

    Raises:
        model.errors.ArtifactError: a file of the artifact does not reproduce the network, or cannot be
            written; or OpenVINO is not installed.
    """
    part, old = (folder.with_name(folder.name + suffix) for suffix in (".part", ".old"))
    try:
        _remove(part)
        try:
            _write(part, network, manifest)
        except GoldenMismatchError:
            _remove(part)
            _write(part, network, dataclasses.replace(manifest, precision="f32"))
        _remove(old)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        sync(folder.parent)
        _remove(old)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error}") from error
    except ImportError as error:
        raise ArtifactError(f"{folder} is not written: {NO_OPENVINO}") from error
    return read_artifact(folder)


def rehearse(network: SegmentationNetwork, manifest: ModelManifest) -> None:
    """Write an artifact and delete it, which takes as long as ``publish``; nothing without OpenVINO.

    Args:
        network: of any weights, on any device.
        manifest: without file digests.

    Raises:
        model.errors.ArtifactError: a file of the artifact does not reproduce the network, or cannot be
            written.
    """
    with tempfile.TemporaryDirectory(prefix="bisenet-rehearsal-") as folder, suppress(ImportError):
        publish(Path(folder, "artifact"), network, manifest)


def _write(folder: Path, network: SegmentationNetwork, manifest: ModelManifest) -> None:
    # OpenVINO is needed here only: a machine that trains may lack it.
    from model.export.export import write_artifact  # noqa: PLC0415

    write_artifact(folder, network, manifest)
    for path in (folder, *folder.rglob("*")):
        sync(path)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def code_version() -> str:
    """Return the version of the package and a digest of its sources, which may be newer."""
    digest = hashlib.sha256()
    for package in ("model", "training"):
        for source in sorted(files(package).iterdir(), key=lambda entry: entry.name):
            if source.name.endswith(".py"):
                digest.update(source.read_bytes())
    try:
        version = importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = "uninstalled"
    return f"{version}+sha256.{digest.hexdigest()[:_DIGEST_DIGITS]}"


def _scores(config: TrainingConfig, names: tuple[str, ...], matrix: ConfusionMatrix) -> dict[str, Any]:
    precision = config.compute.precision
    return {
        "split": config.data.val_split,
        "protocol": f"ss, native size, averaged weights, {precision}",
        "miou": _rounded(matrix.miou),
        "pixel_accuracy": _rounded(matrix.pixel_accuracy),
        "iou": {name: _rounded(iou) for name, iou in zip(names, matrix.iou, strict=True)},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
