"""The accuracy gate of int8: a version that loses more mIoU than allowed is not made."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.datasets.dataset import LabeledImages
from model.errors import QuantizationError
from model.evaluation.metrics import ConfusionMatrix
from model.evaluation.picture_scorer import check_same_classes
from model.export.quantize import finish, load_nncf, write_quantized

DEFAULT_MAX_MIOU_LOSS = 0.5


@dataclass(frozen=True)
class Accuracy:
    """The scores of a version on the validation split.

    Attributes:
        engine: name and precision of the engine that ran it.
        miou: in points of 0..100.
        pixel_accuracy: in points of 0..100.
    """

    engine: str
    miou: float
    pixel_accuracy: float

    @classmethod
    def of(cls, engine: str, matrix: ConfusionMatrix) -> Accuracy:
        """Round what a matrix says to a hundredth of a point."""
        return cls(engine, _points(matrix.miou), _points(matrix.pixel_accuracy))

    def __str__(self) -> str:
        """Return the mIoU, for people."""
        return f"{self.miou:.2f} mIoU ({self.engine})"


@dataclass(frozen=True)
class AccuracyPair:
    """An int8 version beside its original."""

    original: Accuracy
    int8: Accuracy

    @property
    def loss(self) -> float:
        """Points of mIoU that the int8 version loses; negative where it is better."""
        return round(self.original.miou - self.int8.miou, 2)


@dataclass(frozen=True)
class Int8Gate:
    """Makes int8 versions that lose no more accuracy than allowed.

    Args:
        training: pictures that the ranges of activations are taken from.
        validation: pictures that the loss is measured on.
        max_miou_loss: in points of 0..100.
        measure: scores an artifact on ``validation``, by the engine that serves it.
    """

    training: LabeledImages
    validation: LabeledImages
    max_miou_loss: float
    measure: Callable[[Artifact], Accuracy]

    def quantize(
        self, version: ModelVersion, source: Artifact, folder: Path, *, tell: Callable[[str], None]
    ) -> tuple[Artifact, AccuracyPair]:
        """Write the int8 version of an artifact into an empty folder.

        Args:
            version: of the source.
            source: in floating point.
            folder: of the new artifact.
            tell: is given the accuracy of the original once it is measured.

        Raises:
            QuantizationError: it loses too much, the source is int8 already, or NNCF is not installed.
            EvaluationError: the labels have other classes than the model.
            DatasetError: a file of the pictures is unusable.
            ArtifactError: the source is damaged, or the int8 graph computes something else.
        """
        load_nncf()  # before minutes of measuring
        spec = self.validation.spec
        check_same_classes(str(version), source.manifest.palette, spec.name, spec.palette)
        original = self.measure(source)
        tell(f"{version}: {original}")
        quantized = write_quantized(
            source,
            folder,
            version=version,
            training=self.training,
            validation=self.validation,
            max_miou_loss=self.max_miou_loss,
        )
        pair = AccuracyPair(original, self.measure(quantized))
        if pair.loss > self.max_miou_loss:
            raise QuantizationError(
                f"{version} has {original}, its int8 version {pair.int8}: {pair.loss:.2f} lost,"
                f" more than {self.max_miou_loss:g} (--max-miou-loss)"
            )
        return finish(quantized, self._provenance(pair)), pair

    def _provenance(self, pair: AccuracyPair) -> dict[str, Any]:
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
                **dataclasses.asdict(pair),
            },
        }


def _points(share: float | None) -> float:
    return round(100 * (share or 0.0), 2)
