"""Batch jobs: the input and the result of a device, and the interfaces of both sides.

Axes: N images in a batch, K channels of the head, H height, W width, 3 = red green blue; h w = H/stride
W/stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.engine import DEFAULT_TUNING, EngineInfo, EngineTuning, Float32Array, ImageBatch

_PLANE_AXES = 2


class Outcome(IntEnum):
    """How one item of a batch ended; the numbers are part of the IPC protocol."""

    ANSWERED = 0
    EXPIRED = 1
    INVALID = 2
    FAILED = 3
    NO_MEMORY = 4


@dataclass(frozen=True)
class BatchReport:
    """How a batch ended.

    Attributes:
        begun_s: when the device began it (``time.monotonic``, seconds).
        infer_s: time in the engine, in seconds.
        post_s: time from raw output to labels, in seconds; 0 for engines that make the labels themselves.
        outcomes: one per item.
    """

    begun_s: float
    infer_s: float
    post_s: float
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, eq=False)
class LabelBatchJob:
    """Pictures of one padded size to be labelled.

    Attributes:
        version: the model version.
        pictures: at least one.
        deadlines_s: of each picture: time after which its labels are no longer needed (``time.monotonic``).
        expected_s: estimated duration, in seconds; 0 = unknown.
    """

    version: ModelVersion
    pictures: Sequence[PreparedImage]
    deadlines_s: Sequence[float]
    expected_s: float


@dataclass(frozen=True, eq=False)
class ScoreBatchJob:
    """A batch whose raw scores are to be computed.

    Attributes:
        version: the model version.
        images_NHW3: uint8, or float32 of 0..255.
        raw_shape: shape of the scores, raw_NKhw.
        deadline_s: time after which the scores are no longer needed (``time.monotonic``, seconds).
        expected_s: estimated duration, in seconds; 0 = unknown.
    """

    version: ModelVersion
    images_NHW3: ImageBatch
    raw_shape: tuple[int, int, int, int]
    deadline_s: float
    expected_s: float


BatchJob = LabelBatchJob | ScoreBatchJob

BatchOutput = UInt8Array | Float32Array
"""The answer to one picture (``answer_shape``), or raw_NKhw; undefined unless the outcome is ``ANSWERED``."""


def answer_shape(picture: PreparedImage) -> tuple[int, ...]:
    """Return the shape of the answer to a picture, uint8: labels_HW, or labels and confidence, 2HW."""
    return (2, *picture.original.shape) if picture.confidence else picture.original.shape


def answer_planes(answer: UInt8Array) -> tuple[UInt8Array, UInt8Array | None]:
    """Return labels_HW and confidence_HW of an answer; None = the confidence was not asked for."""
    return (answer[0], answer[1]) if answer.ndim > _PLANE_AXES else (answer, None)


class RunnerListener(Protocol):
    """Receives the events of a runner, in a thread of the runner."""

    def on_ready(self) -> None:
        """Batches can be run from now on."""
        ...

    def on_batch_done(self, token: int, report: BatchReport, outputs: Sequence[BatchOutput]) -> None:
        """A batch has ended.

        Args:
            token: number of the batch.
            report: outcomes and times.
            outputs: one per item.
        """
        ...

    def on_worker_lost(
        self, executing: Sequence[int], waiting: Sequence[int], *, retry_after_s: float
    ) -> None:
        """No batch can be run until ``on_ready`` is called again.

        Args:
            executing: tokens of batches that had begun; they get no result.
            waiting: tokens of batches that had not begun.
            retry_after_s: least time until the next start, in seconds; 0 = a start is under way.
        """
        ...


class Runner(Protocol):
    """Runs batches one after the other, in the order in which they come.

    Attributes:
        depth: batches that may be in the runner at once: one runs, and a second one behind it spares the
            device the wait for the next message.
    """

    depth: int

    def open(self, listener: RunnerListener) -> None:
        """Start, and send all events to ``listener``."""
        ...

    def canvas(self, padded: ImageSize, original: ImageSize, *, confidence: bool = False) -> UInt8Array:
        """Return memory for a prepared picture, uint8 HW3; a picture prepared there is not copied again."""
        ...

    def run_batch(self, token: int, batch: BatchJob) -> None:
        """Run a batch; its result comes with the same ``token``."""
        ...

    def load(
        self,
        version: ModelVersion,
        artifact: Artifact,
        sizes: Sequence[ImageSize] = (),
        tuning: EngineTuning = DEFAULT_TUNING,
    ) -> EngineInfo:
        """Build an engine, prove it, and run it once at each size, while others go on running.

        Raises:
            EngineUnavailableError: the engine cannot run here.
            model.errors.ArtifactError: the artifact is broken, or the engine computes something else.
            NoWorkerError: the worker died meanwhile.
        """
        ...

    def unload(self, version: ModelVersion) -> None:
        """Free an engine that no batch needs any more."""
        ...

    def close(self) -> None:
        """Free everything; called when no batch is left."""
        ...
