"""An evaluation is the sum of its pictures: counts go in, a report comes out.

Axes: N pictures, K classes, H height, W width; 3 = pixels that hit, pixels of the truth, pixels of the guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from model.errors import EvaluationError
from model.evaluation.intervals import CONFIDENCE, RESAMPLES, Interval, Intervals, bootstrap
from model.evaluation.metrics import ConfusionMatrix, Int64Array, confusion_matrix
from model.labels import ClassPalette, UInt8Array

__all__ = ["EvaluationContext", "EvaluationReport", "Evaluator", "ScoredImage", "SkippedImage"]

REPORT_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """The counts of one picture: its confusion matrix without the zeros.

    Attributes:
        index: index of the picture in its split, from 0.
        name: name of the picture in reports: its path below the root of the data set.
        cells: int64, ascending; truth * K + guess of each pair that occurs.
        pixels: int64; number of pixels of each pair.
    """

    index: int
    name: str
    cells: Int64Array
    pixels: Int64Array

    @classmethod
    def of(
        cls, index: int, name: str, truth_HW: UInt8Array, guess_HW: UInt8Array, palette: ClassPalette
    ) -> ScoredImage:
        """Count one picture.

        Args:
            index: index of the picture in its split.
            name: name of the picture in reports.
            truth_HW: class ids, uint8; pixels of the palette's ignore id are not scored.
            guess_HW: predicted class ids, uint8, same size.
            palette: classes and ignore id.

        Raises:
            LabelRangeError: a scored pixel has an id that is no class, or the sizes differ.
        """
        matrix = confusion_matrix(
            truth_HW, guess_HW, num_classes=palette.num_classes, ignore_id=palette.ignore_id
        )
        counts = matrix.counts_KK.reshape(-1)
        cells = np.flatnonzero(counts)
        return cls(index, name, cells.astype(np.int64), counts[cells])

    def to_json(self) -> dict[str, Any]:
        """Return JSON values for ``from_json``."""
        return {
            "index": self.index,
            "name": self.name,
            "cells": self.cells.tolist(),
            "pixels": self.pixels.tolist(),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ScoredImage:
        """Build a picture's counts from the result of ``to_json``."""
        cells, pixels = (np.array(plain[key], np.int64) for key in ("cells", "pixels"))
        return cls(plain["index"], plain["name"], cells, pixels)

    def matrix(self, num_classes: int) -> ConfusionMatrix:
        """Return the counts as a matrix.

        Raises:
            EvaluationError: a pair lies outside K x K, or has fewer than one pixel.
        """
        counts = np.zeros(num_classes * num_classes, np.int64)
        outside = self.cells.size and not 0 <= self.cells.min() <= self.cells.max() < counts.size
        if outside or len(self.cells) != len(self.pixels) or (self.pixels < 1).any():
            raise EvaluationError(f"the counts of {self.name} do not fit {num_classes} classes")
        counts[self.cells] = self.pixels
        return ConfusionMatrix(counts.reshape(num_classes, num_classes))


@dataclass(frozen=True)
class SkippedImage:
    """A pair that was left out because one of its files is broken.

    Attributes:
        index: index of the picture in its split.
        name: name of the picture in reports.
        reason: the error, for people.
    """

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class EvaluationContext:
    """The conditions of a report: equal conditions give equal numbers.

    Attributes:
        model: ``name@version``.
        weights: SHA-256 of the weights.
        engine: name of the engine.
        device: device of the engine.
        processor: processor of the machine; equal precisions round differently on others.
        precision: precision of the engine.
        protocol: ``str`` of the protocol.
        dataset: name of the data set.
        split: name of the split.
        data_fingerprint: fingerprint of classes and files; None when files were missing.
        versions: versions of the libraries.
        command: the command line, or ``evaluation job``.
        absent_as_zero: classes that occur nowhere count in the mean (``ConfusionMatrix``).
    """

    model: str
    weights: str
    engine: str
    device: str
    processor: str
    precision: str
    protocol: str
    dataset: str
    split: str
    data_fingerprint: str | None
    versions: Mapping[str, str]
    command: str
    absent_as_zero: bool = False


class Evaluator:
    """Sums the counts of pictures, in any order.

    Args:
        palette: the classes.
        total: number of pictures in the split.
    """

    def __init__(self, palette: ClassPalette, *, total: int) -> None:
        self._palette = palette
        self._total = total
        self._images: dict[int, ScoredImage] = {}
        self._skipped: dict[int, SkippedImage] = {}

    def add(self, image: ScoredImage | SkippedImage) -> None:
        """Add the counts of a picture, or note that it was left out.

        Raises:
            EvaluationError: the index is outside the split, or was added before.
        """
        self._check_new(image.index)
        if isinstance(image, SkippedImage):
            self._skipped[image.index] = image
        else:
            image.matrix(self._palette.num_classes)
            self._images[image.index] = image

    def report(self, context: EvaluationContext) -> EvaluationReport:
        """Return the report.

        Raises:
            EvaluationError: a picture is missing, or all were left out.
        """
        missing = [i for i in range(self._total) if i not in self._images and i not in self._skipped]
        if missing:
            raise EvaluationError(f"{len(missing)} of {self._total} pictures are missing, first {missing[0]}")
        if not self._images:
            raise EvaluationError(f"none of {self._total} pictures could be scored")
        return EvaluationReport(
            context,
            self._palette,
            tuple(self._images[index] for index in sorted(self._images)),
            tuple(self._skipped[index] for index in sorted(self._skipped)),
        )

    def _check_new(self, index: int) -> None:
        if not 0 <= index < self._total:
            raise EvaluationError(f"picture {index} is none of {self._total}")
        if index in self._images or index in self._skipped:
            raise EvaluationError(f"picture {index} is counted twice")


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """The scores of a model on one split; the same pictures give the same report, bit for bit.

    Attributes:
        context: the conditions.
        palette: the classes.
        images: counts of each picture, in the order of the split.
        skipped: pairs that were left out, in the order of the split.
    """

    context: EvaluationContext
    palette: ClassPalette
    images: tuple[ScoredImage, ...]
    skipped: tuple[SkippedImage, ...]

    @cached_property
    def matrix(self) -> ConfusionMatrix:
        """The counts of all pictures together."""
        num_classes = self.palette.num_classes
        total = sum((image.matrix(num_classes) for image in self.images), ConfusionMatrix.zeros(num_classes))
        return replace(total, absent_as_zero=self.context.absent_as_zero)

    @cached_property
    def tallies_N3K(self) -> Int64Array:
        """Pixels of each picture: hits, truth and guess of each class; int64."""
        matrices = [image.matrix(self.palette.num_classes) for image in self.images]
        return np.array([[one.hits_K, one.truth_K, one.guess_K] for one in matrices])

    @cached_property
    def intervals(self) -> Intervals:
        """Confidence intervals over pictures."""
        return bootstrap(self.tallies_N3K, absent_as_zero=self.context.absent_as_zero)

    def worst(self, count: int) -> tuple[ScoredImage, ...]:
        """Return the pictures with the lowest mIoU, the worst first; only pictures with scored pixels."""
        scored = [(one.matrix(self.palette.num_classes).miou, one.index, one) for one in self.images]
        ranked = sorted((miou, index, one) for miou, index, one in scored if miou is not None)
        return tuple(one for _, _, one in ranked[:count])

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values, without times: equal evaluations give equal documents."""
        matrix, intervals = self.matrix, self.intervals
        return {
            "schema_version": REPORT_SCHEMA,
            **asdict(self.context),
            "images": len(self.images),
            "skipped": [asdict(image) for image in self.skipped],
            "scores": {
                "miou": matrix.miou,
                "miou_interval": _plain(intervals.miou),
                "classes_averaged": matrix.classes_averaged,
                "pixel_accuracy": matrix.pixel_accuracy,
                "mean_recall": matrix.mean_recall,
                "mean_f1": matrix.mean_f1,
                "frequency_weighted_iou": matrix.frequency_weighted_iou,
                "pixels": matrix.pixels,
            },
            "interval": {"confidence": CONFIDENCE, "resamples": RESAMPLES},
            "classes": [self._class(k) for k in range(self.palette.num_classes)],
            "matrix": matrix.counts_KK.tolist(),
            "per_image": [
                one.to_json() | {"miou": one.matrix(self.palette.num_classes).miou} for one in self.images
            ],
        }

    def _class(self, k: int) -> dict[str, Any]:
        matrix = self.matrix
        pixels = int(matrix.truth_K[k])
        return {
            "id": k,
            "name": self.palette.names[k],
            "color": list(self.palette.colors[k]),
            "pixels": pixels,
            "share": pixels / matrix.pixels if matrix.pixels else None,
            "iou": matrix.iou[k],
            "iou_interval": _plain(self.intervals.iou[k]),
            "precision": matrix.precision[k],
            "recall": matrix.recall[k],
            "f1": matrix.f1[k],
        }


def _plain(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
