"""Runs jobs in a thread of this process: for commands, which end when they are done.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import SimpleQueue

import numpy as np
import structlog

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize
from service.core.device.batch_job import (
    BatchJob,
    BatchOutput,
    BatchReport,
    Listener,
    ScoreBatchJob,
    answer_shape,
)
from service.core.device.device import Device
from service.core.device.engine import DEFAULT_TUNING, DeviceLostError, EngineInfo, EngineTuning
from service.core.device.labeling import LabelingWork

_log = structlog.get_logger()


class InProcessRunner:
    """A runner without a process of its own.

    Args:
        device: what runs them; closed with the runner.
    """

    depth = 1

    def __init__(self, device: Device) -> None:
        self._device = device
        self._jobs: SimpleQueue[tuple[int, BatchJob] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._listener: Listener

    def open(self, listener: Listener) -> None:
        """Begin at once."""
        self._listener = listener
        self._thread.start()
        listener.ready()

    def canvas(
        self,
        padded: ImageSize,
        original: ImageSize,  # noqa: ARG002 - processes need it
        *,
        confidence: bool = False,  # noqa: ARG002 - processes need it
    ) -> UInt8Array:
        """Return an array."""
        return np.empty((padded.height, padded.width, 3), np.uint8)

    def run(self, token: int, job: BatchJob) -> None:
        """Run a job after those that came before."""
        self._jobs.put((token, job))

    def load(
        self,
        version: ModelVersion,
        artifact: Artifact,
        sizes: Sequence[ImageSize] = (),
        tuning: EngineTuning = DEFAULT_TUNING,
    ) -> EngineInfo:
        """Build an engine and prove it.

        Raises:
            EngineUnavailableError: the engine cannot be run here.
            model.errors.ArtifactError: the artifact must not be used, or the engine computes something else.
        """
        return self._device.load(version, artifact, sizes, tuning)

    def unload(self, version: ModelVersion) -> None:
        """Free an engine."""
        self._device.unload(version)

    def close(self) -> None:
        """Free the device."""
        self._jobs.put(None)
        self._thread.join()
        self._device.close()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._settle(*job)
            del job  # or its pixels would live until the next one comes

    def _settle(self, token: int, job: BatchJob) -> None:
        try:
            report, outputs = _carried_out(self._device, job)
        except DeviceLostError:
            _log.exception("the device is lost")
            self._listener.lost([token], [], retry_after_s=0.0)
            self._listener.ready()
        else:
            self._listener.done(token, report, outputs)


def _carried_out(device: Device, job: BatchJob) -> tuple[BatchReport, Sequence[BatchOutput]]:
    if isinstance(job, ScoreBatchJob):
        raw_NKhw = np.empty(job.raw_shape, np.float32)
        return device.score(job.version, job.images_NHW3, raw_NKhw, job.deadline_s), [raw_NKhw]
    labels = [np.empty(answer_shape(picture), np.uint8) for picture in job.pictures]
    return device.begin(LabelingWork(job.version, job.pictures, labels, job.deadlines_s))(), labels
