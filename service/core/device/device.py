"""One device: the engines that live on it, each with its way from raw output to labels.

Everything below the seam between the service and its worker processes: the same object runs inside a worker
and, for commands that end after one task, in the process of the command.

Axes: N images in a batch, K channels of the head, H height, W width; h w = H/stride W/stride.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import structlog

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.decoding import decode
from model.pictures.preprocess import ImageSize
from model.quotas import usable_cores
from service.core.device.batch_job import BatchReport, Outcome
from service.core.device.engine import (
    DEFAULT_TUNING,
    DeviceLostError,
    DeviceMemoryError,
    EngineBuilder,
    EngineInfo,
    EngineOptions,
    EngineTuning,
    Float32Array,
    ImageBatch,
    InferenceEngine,
    private_folder,
)
from service.core.device.labeling import Attempts, Labeler, LabelingWork, Pending, labeler_of, makes_labels

_log = structlog.get_logger()


class Device:
    """Holds engines by version; ``load`` and ``unload`` may run beside one thread that does the rest.

    Args:
        build: makes an engine of an artifact and proves it.
        options: how engines are built.
        decode_threads: that share the rows of one decoding; None = all cores this process may keep busy.
    """

    def __init__(
        self, build: EngineBuilder, options: EngineOptions, *, decode_threads: int | None = None
    ) -> None:
        self._build = build
        self._options = options
        self._decoders = ThreadPoolExecutor(decode_threads or usable_cores(), thread_name_prefix="decode")
        self._warm = threading.Lock()
        self._is_warm = False
        self._engines: dict[ModelVersion, tuple[InferenceEngine, Labeler]] = {}

    def load(
        self,
        version: ModelVersion,
        artifact: Artifact,
        sizes: Sequence[ImageSize] = (),
        tuning: EngineTuning = DEFAULT_TUNING,
    ) -> EngineInfo:
        """Build an engine beside those that run, prove it, and run it once at each size.

        Args:
            version: what it is called from now on; not one that is loaded.
            artifact: what it is built from.
            sizes: padded sizes that pictures are expected to have.
            tuning: what of the options is different for this version.

        Raises:
            EngineUnavailableError: this machine cannot run the engine.
            model.errors.ArtifactError: the artifact must not be used, or the engine computes something else.
        """
        engine = self._build(artifact, self._options.tuned(tuning))
        try:
            if not makes_labels(engine):
                self._warm_up()
            for size in sizes:
                engine.infer(np.zeros((1, size.height, size.width, 3), np.uint8))
        except Exception:
            engine.close()
            raise
        self._engines[version] = engine, labeler_of(engine, artifact.manifest, self._decoders)
        return engine.info

    def _warm_up(self) -> None:
        with self._warm:  # numba keeps the folder of its first compilation
            if not self._is_warm:
                decode.warm_up(private_folder(self._options.cache_folder / "numba"))
                self._is_warm = True

    def unload(self, version: ModelVersion) -> None:
        """Free an engine that nothing runs on any more."""
        self._engines.pop(version)[0].close()

    def begin(self, work: LabelingWork, *, began: Callable[[], None] = lambda: None) -> Pending:
        """Begin a batch: now if the engine can run one while another is waited for, else when it is.

        Args:
            work: the batch.
            began: called at the moment in which the device gets it.

        Raises:
            DeviceLostError: the device is lost to this process.
        """
        labeler = self._engines[work.version][1]
        attempts = Attempts(labeler, work, began)
        return attempts.begin() if labeler.runs_ahead else attempts.run

    def score(
        self, version: ModelVersion, images_NHW3: ImageBatch, out_NKhw: Float32Array, deadline_s: float
    ) -> BatchReport:
        """Run a batch and keep its raw scores.

        Args:
            version: whose engine.
            images_NHW3: uint8, or float32 of 0..255.
            out_NKhw: where the scores go.
            deadline_s: when nobody waits for them any more, on the clock of ``time.monotonic``.

        Raises:
            DeviceLostError: the device is lost to this process.
        """
        begun_s = time.monotonic()
        if begun_s >= deadline_s:
            return BatchReport(begun_s, 0.0, 0.0, (Outcome.EXPIRED,))
        outcome = _scored(self._engines[version][0], images_NHW3, out_NKhw)
        return BatchReport(begun_s, time.monotonic() - begun_s, 0.0, (outcome,))

    def close(self) -> None:
        """Free all engines; nothing runs on them any more."""
        for version in tuple(self._engines):
            self.unload(version)
        self._decoders.shutdown()


def _scored(engine: InferenceEngine, images_NHW3: ImageBatch, out_NKhw: Float32Array) -> Outcome:
    try:
        raw_NKhw = engine.infer(images_NHW3)
    except DeviceLostError:
        raise
    except (DeviceMemoryError, MemoryError) as error:
        _log.warning("a batch did not fit into the device", size=len(images_NHW3), reason=str(error))
        return Outcome.NO_MEMORY
    except Exception:  # noqa: BLE001 - whatever a library raises
        _log.exception("inference failed", size=len(images_NHW3))
        return Outcome.FAILED
    if raw_NKhw.shape != out_NKhw.shape:
        return Outcome.INVALID
    out_NKhw[...] = raw_NKhw
    return Outcome.ANSWERED
