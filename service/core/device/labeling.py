"""Labels a batch; a batch that fails as a whole is labelled in smaller parts.

Axes: N images in a batch, K channels of the head, H height, W width, 3 = red green blue; h w = H/stride
W/stride.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import structlog

from model.artifacts.manifest import ModelManifest, ModelVersion
from model.decoding import decode
from model.decoding.confidence import confidence
from model.errors import ModelOutputError
from model.labels import UInt8Array
from model.pictures.preprocess import PreparedImage
from service.core.device.batch_job import BatchReport, Outcome, answer_planes
from service.core.device.engine import (
    DeviceLostError,
    DeviceMemoryError,
    Float32Array,
    InferenceEngine,
    LabelingEngine,
)

_log = structlog.get_logger()

_RAW_AXES = 4


@dataclass(frozen=True, eq=False)
class LabelingWork:
    """Pictures of one padded size, and the memory for their labels.

    Attributes:
        version: the model version.
        pictures: at least one.
        labels: the answer to each (``answer_shape``), uint8; written here.
        deadlines_s: of each picture: time after which its labels are no longer needed (``time.monotonic``).
    """

    version: ModelVersion
    pictures: Sequence[PreparedImage]
    labels: Sequence[UInt8Array]
    deadlines_s: Sequence[float]


Pending = Callable[[], BatchReport]
"""Waits for a batch that was started; to be called once."""


@dataclass
class _Times:
    infer_s: float = 0.0
    post_s: float = 0.0


_PendingFlaws = Callable[[], Sequence[str | None]]
"""Waits for pictures that were started; returns the fault of each picture's scores, or None.

Texts instead of exceptions: a traceback would keep the pixels in memory.
"""


class Labeler(Protocol):
    """Labels pictures of one padded size with one engine.

    Attributes:
        is_asynchronous: ``start`` returns while the device works.
    """

    is_asynchronous: bool

    def start(
        self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array], times: _Times
    ) -> _PendingFlaws:
        """Start now, or when the result is called; adds the times to ``times``."""
        ...


@dataclass(eq=False)
class _DeviceLabeler:
    engine: LabelingEngine
    last_end_s: float = 0.0
    is_asynchronous = True

    def start(
        self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array], times: _Times
    ) -> _PendingFlaws:
        begun_s = time.monotonic()
        fetch = self.engine.begin(pictures, labels)

        def finish() -> list[str | None]:
            errors = fetch()
            end_s = time.monotonic()
            # The wait for the batch in front is not part of this one's time.
            times.infer_s += end_s - max(begun_s, self.last_end_s)
            self.last_end_s = end_s
            return [None if error is None else str(error) for error in errors]

        return finish


def labeler_of(engine: InferenceEngine, manifest: ModelManifest, decoders: Executor) -> Labeler:
    """Return the decoder of an engine: the engine itself if it can, else the threads of ``decoders``."""
    if makes_labels(engine):
        return _DeviceLabeler(cast("LabelingEngine", engine))
    return _HostLabeler(engine, manifest, decoders)


def makes_labels(engine: InferenceEngine) -> bool:
    """Return whether an engine is a ``LabelingEngine``."""
    return hasattr(engine, "begin")


@dataclass(frozen=True, eq=False)
class _HostLabeler:
    engine: InferenceEngine
    manifest: ModelManifest
    decoders: Executor
    is_asynchronous = False

    def start(
        self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array], times: _Times
    ) -> _PendingFlaws:
        return partial(self._label, pictures, labels, times)

    def _label(
        self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array], times: _Times
    ) -> list[str | None]:
        begun_s = time.monotonic()
        raw_NKhw = self.engine.infer(_batch([picture.pixels_HW3 for picture in pictures]))
        inferred_s = time.monotonic()
        times.infer_s += inferred_s - begun_s
        if raw_NKhw.ndim != _RAW_AXES or len(raw_NKhw) != len(pictures):
            return [f"raw output {raw_NKhw.shape} for {len(pictures)} pictures"] * len(pictures)
        flaws = [self._decode(*item) for item in zip(raw_NKhw, pictures, labels, strict=True)]
        times.post_s += time.monotonic() - inferred_s
        return flaws

    def _decode(self, raw_Khw: Float32Array, picture: PreparedImage, answer: UInt8Array) -> str | None:
        labels_HW, confidence_HW = answer_planes(answer)
        geometry: dict[str, Any] = {
            "upsample": self.manifest.upsample,
            "stride": self.manifest.stride,
            "padded": picture.padded,
            "content": picture.content,
            "original": picture.original,
        }
        try:
            decode.labels(raw_Khw, **geometry, executor=self.decoders, out_HW=labels_HW)
            if confidence_HW is not None:
                confidence(raw_Khw, labels_HW, **geometry, executor=self.decoders, out_HW=confidence_HW)
        except ModelOutputError as error:
            return str(error)
        return None


def _batch(images: Sequence[UInt8Array]) -> UInt8Array:
    """Return images_NHW3; a single picture is not copied."""
    return images[0][np.newaxis] if len(images) == 1 else np.stack(images)


@dataclass(eq=False)
class LabelingAttempts:
    """One batch, and the smaller ones into which it is split when it fails as a whole.

    A batch that needs more memory than there is, is halved. After any other failure each picture runs alone,
    so that the others do not fail with the one to blame. Each picture is tried twice at most.
    """

    labeler: Labeler
    work: LabelingWork
    on_start: Callable[[], None]
    outcomes: list[Outcome] = field(default_factory=list)
    times: _Times = field(default_factory=_Times)

    def start(self) -> Pending:
        """Start now; the result waits for the end."""
        self.on_start()
        begun_s, part = self._unexpired()
        return partial(self._finish, begun_s, part, self._try_start(part))

    def run_to_end(self) -> BatchReport:
        """Start now and wait for the end."""
        return self.start()()

    def _unexpired(self) -> tuple[float, list[int]]:
        now_s = time.monotonic()
        self.outcomes = [
            Outcome.EXPIRED if deadline_s <= now_s else Outcome.FAILED for deadline_s in self.work.deadlines_s
        ]
        return now_s, [i for i, outcome in enumerate(self.outcomes) if outcome is not Outcome.EXPIRED]

    def _try_start(self, part: Sequence[int]) -> _PendingFlaws:
        if not part:
            return list
        pictures, labels = self.work.pictures, self.work.labels
        try:
            return self.labeler.start([pictures[i] for i in part], [labels[i] for i in part], self.times)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a library raises: reported by the result
            traceback.clear_frames(error.__traceback__)
            return partial(_fail, error)

    def _finish(self, begun_s: float, part: Sequence[int], flaws: _PendingFlaws) -> BatchReport:
        self._settle(part, flaws, may_retry=True)
        return BatchReport(begun_s, self.times.infer_s, self.times.post_s, tuple(self.outcomes))

    def _settle(self, part: Sequence[int], flaws: _PendingFlaws, *, may_retry: bool) -> None:
        failure = self._failure(part, flaws)
        if failure is None:
            return
        for i in part:
            self.outcomes[i] = failure
        for few in _smaller(part, failure) if may_retry else ():
            self._settle(few, self._try_start(few), may_retry=False)

    def _failure(self, part: Sequence[int], flaws: _PendingFlaws) -> Outcome | None:
        """Set the outcome of each picture; return the outcome of all if they failed as a whole.

        The error is not kept: its traceback holds memory that the next attempt needs.
        """
        try:
            self._set_outcomes(part, flaws())
        except DeviceLostError:
            raise
        except (DeviceMemoryError, MemoryError) as error:
            _log.warning("batch does not fit into the device", size=len(part), reason=str(error))
            traceback.clear_frames(error.__traceback__)
            return Outcome.NO_MEMORY
        except Exception:  # noqa: BLE001 - whatever a library raises
            _log.exception("inference failed", size=len(part))
            # Without a name for the error: a log that draws variables would keep it in this frame.
            traceback.clear_frames(sys.exc_info()[2])
            return Outcome.FAILED
        return None

    def _set_outcomes(self, part: Sequence[int], flaws: Sequence[str | None]) -> None:
        for i, flaw in zip(part, flaws, strict=True):
            self.outcomes[i] = Outcome.ANSWERED if flaw is None else Outcome.INVALID
            if flaw is not None:
                _log.error("model output invalid", version=str(self.work.version), flaw=flaw)


def _smaller(part: Sequence[int], failure: Outcome) -> list[Sequence[int]]:
    if failure is Outcome.NO_MEMORY:
        middle = -(-len(part) // 2)
        return [half for half in (part[:middle], part[middle:]) if half]
    return [[i] for i in part] if len(part) > 1 else []


def _fail(error: Exception) -> Sequence[str | None]:
    raise error
