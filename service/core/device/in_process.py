"""Runs batches in a thread of this process: for commands, which end when they are done.

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
    RunnerListener,
    ScoreBatchJob,
    answer_shape,
)
from service.core.device.device import Device
from service.core.device.engine import DEFAULT_TUNING, DeviceLostError, EngineInfo, EngineTuning
from service.core.device.labeling import LabelingWork

_log = structlog.get_logger()


class InProcessRunner:
    """A ``Runner`` without a worker process.

    Args:
        device: runs the batches; closed with the runner.
    """

    depth = 1

    def __init__(self, device: Device) -> None:
        self._device = device
        self._batches: SimpleQueue[tuple[int, BatchJob] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run_all, name="inference", daemon=True)
        self._listener: RunnerListener

    def open(self, listener: RunnerListener) -> None:
        """Start; ready at once."""
        self._listener = listener
        self._thread.start()
        listener.on_ready()

    def canvas(
        self,
        padded: ImageSize,
        original: ImageSize,  # noqa: ARG002 - processes need it
        *,
        confidence: bool = False,  # noqa: ARG002 - processes need it
    ) -> UInt8Array:
        """Return a new array for a prepared picture, uint8 HW3."""
        return np.empty((padded.height, padded.width, 3), np.uint8)

    def run_batch(self, token: int, batch: BatchJob) -> None:
        """Run a batch after those that came before."""
        self._batches.put((token, batch))

    def load(
        self,
        version: ModelVersion,
        artifact: Artifact,
        sizes: Sequence[ImageSize] = (),
        tuning: EngineTuning = DEFAULT_TUNING,
    ) -> EngineInfo:
        """Build an engine and prove it.

        Raises:
            EngineUnavailableError: the engine cannot run here.
            model.errors.ArtifactError: the artifact is broken, or the engine computes something else.
        """
        return self._device.load(version, artifact, sizes, tuning)

    def unload(self, version: ModelVersion) -> None:
        """Free an engine."""
        self._device.unload(version)

    def close(self) -> None:
        """Free the device."""
        self._batches.put(None)
        self._thread.join()
        self._device.close()

    def _run_all(self) -> None:
        while (entry := self._batches.get()) is not None:
            self._run_one(*entry)
            del entry  # or its pixels would live until the next batch comes

    def _run_one(self, token: int, batch: BatchJob) -> None:
        try:
            report, outputs = _results(self._device, batch)
        except DeviceLostError:
            _log.exception("device lost")
            self._listener.on_worker_lost([token], [], retry_after_s=0.0)
            self._listener.on_ready()
        else:
            self._listener.on_batch_done(token, report, outputs)


def _results(device: Device, batch: BatchJob) -> tuple[BatchReport, Sequence[BatchOutput]]:
    if isinstance(batch, ScoreBatchJob):
        raw_NKhw = np.empty(batch.raw_shape, np.float32)
        return device.score(batch.version, batch.images_NHW3, raw_NKhw, batch.deadline_s), [raw_NKhw]
    labels = [np.empty(answer_shape(picture), np.uint8) for picture in batch.pictures]
    return device.start_labeling(
        LabelingWork(batch.version, batch.pictures, labels, batch.deadlines_s)
    )(), labels
