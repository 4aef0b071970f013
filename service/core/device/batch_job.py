"""What is to be done by a device, what becomes of it, and what carries it out.

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
    """What became of one item of a batch; the numbers cross the border between processes."""

    ANSWERED = 0
    EXPIRED = 1
    INVALID = 2
    FAILED = 3
    NO_MEMORY = 4


@dataclass(frozen=True)
class BatchReport:
    """What became of a batch.

    Attributes:
        begun_s: when the device began it, on the clock of ``time.monotonic``.
        infer_s: time in the engine, in seconds.
        post_s: time from raw output to labels, in seconds; 0 for engines that make the labels.
        outcomes: of each item.
    """

    begun_s: float
    infer_s: float
    post_s: float
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, eq=False)
class LabelBatchJob:
    """Pictures of one padded size whose labels are wanted.

    Attributes:
        version: whose engine.
        pictures: what to label.
        deadlines_s: when nobody waits for each any more, on the clock of ``time.monotonic``.
        expected_s: how long it will take, by what was learnt; 0 = unknown.
    """

    version: ModelVersion
    pictures: Sequence[PreparedImage]
    deadlines_s: Sequence[float]
    expected_s: float


@dataclass(frozen=True, eq=False)
class ScoreBatchJob:
    """A batch whose raw scores are wanted.

    Attributes:
        version: whose engine.
        images_NHW3: uint8, or float32 of 0..255.
        raw_shape: of the answer, raw_NKhw.
        deadline_s: as in ``LabelBatchJob``.
        expected_s: as in ``LabelBatchJob``.
    """

    version: ModelVersion
    images_NHW3: ImageBatch
    raw_shape: tuple[int, int, int, int]
    deadline_s: float
    expected_s: float


BatchJob = LabelBatchJob | ScoreBatchJob

BatchOutput = UInt8Array | Float32Array
"""The answer to one picture (``answer_shape``), or raw_NKhw; it has a meaning only if it was ``ANSWERED``."""


def answer_shape(picture: PreparedImage) -> tuple[int, ...]:
    """Return the shape of the answer to a picture, uint8: labels_HW, or labels and confidence, 2HW."""
    return (2, *picture.original.shape) if picture.confidence else picture.original.shape


def answer_planes(answer: UInt8Array) -> tuple[UInt8Array, UInt8Array | None]:
    """Return labels_HW and confidence_HW of an answer; None = the confidence was not asked for."""
    return (answer[0], answer[1]) if answer.ndim > _PLANE_AXES else (answer, None)


class Listener(Protocol):
    """Who hands jobs to a runner; called from a thread of the runner."""

    def ready(self) -> None:
        """Take note that jobs can be run from now on."""
        ...

    def done(self, token: int, report: BatchReport, outputs: Sequence[BatchOutput]) -> None:
        """Take the answer to a job."""
        ...

    def lost(self, executing: Sequence[int], waiting: Sequence[int], *, retry_after_s: float) -> None:
        """Take note that nothing can be run until ``ready`` is called again.

        Args:
            executing: jobs that had begun; they will not be answered.
            waiting: jobs that had not.
            retry_after_s: how long it will take at least, in seconds; 0 = a start is being tried.
        """
        ...


class Runner(Protocol):
    """Runs jobs one after the other, in the order in which they come.

    Attributes:
        depth: jobs that may be there at once: one runs, and with a second one behind it the device never
            waits for the next one to travel.
    """

    depth: int

    def open(self, listener: Listener) -> None:
        """Begin; ``listener`` is told when jobs can be run."""
        ...

    def canvas(self, padded: ImageSize, original: ImageSize, *, confidence: bool = False) -> UInt8Array:
        """Return memory for a prepared picture from which it need not be copied again, uint8 HW3."""
        ...

    def run(self, token: int, job: BatchJob) -> None:
        """Run a job; ``token`` comes back with its answer."""
        ...

    def load(
        self,
        version: ModelVersion,
        artifact: Artifact,
        sizes: Sequence[ImageSize] = (),
        tuning: EngineTuning = DEFAULT_TUNING,
    ) -> EngineInfo:
        """Build an engine, prove it, and run it once at each size; what runs goes on running meanwhile.

        Raises:
            EngineUnavailableError: the engine cannot be run here.
            model.errors.ArtifactError: the artifact must not be used, or the engine computes something else.
            NoWorkerError: the worker died of it.
        """
        ...

    def unload(self, version: ModelVersion) -> None:
        """Free an engine that no job needs any more."""
        ...

    def close(self) -> None:
        """Free everything; no job is there any more."""
        ...
