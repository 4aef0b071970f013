"""One device with its engines; lives in a worker process, or in the process of a command.

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
from model.evaluation import network_passes
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
from service.core.device.labeling import (
    Labeler,
    LabelingAttempts,
    LabelingWork,
    Pending,
    labeler_of,
    makes_labels,
)

_log = structlog.get_logger()


class Device:
    """Engines by model version. One thread runs batches; ``load`` and ``unload`` may be called beside it.

    Args:
        build: builds and proves an engine.
        options: how engines are built.
        decode_threads: threads that decode one raw output; None = one for each usable core.
        compiles_for_service: compile the kernels for pictures in tiles as well: they run in the process of
            the service, which then finds them in the cache folder.
    """

    def __init__(
        self,
        build: EngineBuilder,
        options: EngineOptions,
        *,
        decode_threads: int | None = None,
        compiles_for_service: bool = False,
    ) -> None:
        self._build = build
        self._options = options
        self._decoders = ThreadPoolExecutor(decode_threads or usable_cores(), thread_name_prefix="decode")
        self._compiles_for_service = compiles_for_service
        self._warming = threading.Lock()
        self._is_warm = False
        self._engines: dict[ModelVersion, tuple[InferenceEngine, Labeler]] = {}

    def load(
        self,
        version: ModelVersion,
        artifact: Artifact,
        sizes: Sequence[ImageSize] = (),
        tuning: EngineTuning = DEFAULT_TUNING,
    ) -> EngineInfo:
        """Build an engine, prove it, and run it once at each size, while others go on running.

        Args:
            version: one that is not loaded.
            artifact: of the engine.
            sizes: padded sizes of pictures to expect.
            tuning: options that differ for this version.

        Raises:
            EngineUnavailableError: this machine cannot run the engine.
            model.errors.ArtifactError: the artifact is broken, or the engine computes something else.
        """
        engine = self._build(artifact, self._options.tuned(tuning))
        try:
            if self._compiles_for_service or not makes_labels(engine):
                self._warm_up()
            for size in sizes:
                engine.infer(np.zeros((1, size.height, size.width, 3), np.uint8))
        except Exception:
            engine.close()
            raise
        self._engines[version] = engine, labeler_of(engine, artifact.manifest, self._decoders)
        return engine.info

    def _warm_up(self) -> None:
        with self._warming:  # numba keeps the folder of its first compilation
            if not self._is_warm:
                warm_up = network_passes.warm_up if self._compiles_for_service else decode.warm_up
                warm_up(private_folder(self._options.cache_folder / "numba"))
                self._is_warm = True

    def unload(self, version: ModelVersion) -> None:
        """Free an engine on which nothing runs any more."""
        self._engines.pop(version)[0].close()

    def start_labeling(self, work: LabelingWork, *, on_start: Callable[[], None] = lambda: None) -> Pending:
        """Start to label a batch, at once if the engine runs asynchronously, else when the result is called.

        Args:
            work: the batch.
            on_start: called right before the device gets the batch.

        Returns:
            Waits for the batch and returns its report; to be called once.

        Raises:
            DeviceLostError: this process can no longer use the device.
        """
        labeler = self._engines[work.version][1]
        attempts = LabelingAttempts(labeler, work, on_start)
        return attempts.start() if labeler.is_asynchronous else attempts.run_to_end

    def score(
        self, version: ModelVersion, images_NHW3: ImageBatch, out_NKhw: Float32Array, deadline_s: float
    ) -> BatchReport:
        """Run a batch and write its raw scores to ``out_NKhw``.

        Args:
            version: one that is loaded.
            images_NHW3: uint8, or float32 of 0..255.
            out_NKhw: float32, of the shape of the raw output.
            deadline_s: time after which the scores are no longer needed (``time.monotonic``, seconds).

        Raises:
            DeviceLostError: this process can no longer use the device.
        """
        begun_s = time.monotonic()
        if begun_s >= deadline_s:
            return BatchReport(begun_s, 0.0, 0.0, (Outcome.EXPIRED,))
        outcome = _scored(self._engines[version][0], images_NHW3, out_NKhw)
        return BatchReport(begun_s, time.monotonic() - begun_s, 0.0, (outcome,))

    def close(self) -> None:
        """Free all engines; called when nothing runs any more."""
        for version in tuple(self._engines):
            self.unload(version)
        self._decoders.shutdown()


def _scored(engine: InferenceEngine, images_NHW3: ImageBatch, out_NKhw: Float32Array) -> Outcome:
    try:
        raw_NKhw = engine.infer(images_NHW3)
    except DeviceLostError:
        raise
    except (DeviceMemoryError, MemoryError) as error:
        _log.warning("batch does not fit into the device", size=len(images_NHW3), reason=str(error))
        return Outcome.NO_MEMORY
    except Exception:  # noqa: BLE001 - whatever a library raises
        _log.exception("inference failed", size=len(images_NHW3))
        return Outcome.FAILED
    if raw_NKhw.shape != out_NKhw.shape:
        return Outcome.INVALID
    out_NKhw[...] = raw_NKhw
    return Outcome.ANSWERED
