"""How a batch becomes labels, and what is left of it when it fails as a whole.

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
    """One batch of pictures of one version and one padded size.

    Attributes:
        version: whose engine.
        pictures: what to label.
        labels: where the answer to each goes (``answer_shape``).
        deadlines_s: when nobody waits for each any more, on the clock of ``time.monotonic``.
    """

    version: ModelVersion
    pictures: Sequence[PreparedImage]
    labels: Sequence[UInt8Array]
    deadlines_s: Sequence[float]


Pending = Callable[[], BatchReport]
"""Waits for a batch that was begun; to be called once."""


@dataclass
class _Stopwatch:
    infer_s: float = 0.0
    post_s: float = 0.0


_Flaws = Callable[[], Sequence[str | None]]
"""Waits for pictures that were begun; for each, what is wrong with its scores.

Words instead of errors: a traceback would keep the pixels alive.
"""


class Labeler(Protocol):
    """Writes the labels of pictures of one size, by whatever the engine offers."""

    runs_ahead: bool

    def begin(
        self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array], watch: _Stopwatch
    ) -> _Flaws:
        """Begin now if it ``runs_ahead``, else when the result is called; adds up times in ``watch``."""
        ...


@dataclass(eq=False)
class _DeviceLabeler:
    engine: LabelingEngine
    last_end_s: float = 0.0
    runs_ahead = True

    def begin(
        self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array], watch: _Stopwatch
    ) -> _Flaws:
        begun_s = time.monotonic()
        fetch = self.engine.begin(pictures, labels)

        def finish() -> list[str | None]:
            flaws = fetch()
            end_s = time.monotonic()
            # What it waited for the batch before it is not its own time.
            watch.infer_s += end_s - max(begun_s, self.last_end_s)
            self.last_end_s = end_s
            return [None if flaw is None else str(flaw) for flaw in flaws]

        return finish


def labeler_of(engine: InferenceEngine, manifest: ModelManifest, decoders: Executor) -> Labeler:
    """Return how an engine's pictures are labelled: by the engine if it can, else by ``decoders``."""
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
    runs_ahead = False

    def begin(
        self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array], watch: _Stopwatch
    ) -> _Flaws:
        return partial(self._label, pictures, labels, watch)

    def _label(
        self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array], watch: _Stopwatch
    ) -> list[str | None]:
        begun_s = time.monotonic()
        raw_NKhw = self.engine.infer(_batch([picture.pixels_HW3 for picture in pictures]))
        inferred_s = time.monotonic()
        watch.infer_s += inferred_s - begun_s
        if raw_NKhw.ndim != _RAW_AXES or len(raw_NKhw) != len(pictures):
            return [f"raw output {raw_NKhw.shape} for {len(pictures)} pictures"] * len(pictures)
        flaws = [self._decode(*item) for item in zip(raw_NKhw, pictures, labels, strict=True)]
        watch.post_s += time.monotonic() - inferred_s
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
    """Return images_NHW3; one picture is not copied."""
    return images[0][np.newaxis] if len(images) == 1 else np.stack(images)


@dataclass(eq=False)
class Attempts:
    """One batch, and the smaller ones that it falls into when it fails as a whole.

    Without memory for all there may be memory for half. Any other failure is blamed on one picture, so that
    its neighbours are not lost with it. Each picture is tried twice at most.
    """

    labeler: Labeler
    work: LabelingWork
    began: Callable[[], None]
    outcomes: list[Outcome] = field(default_factory=list)
    watch: _Stopwatch = field(default_factory=_Stopwatch)

    def begin(self) -> Pending:
        """Begin now; the result waits for the end."""
        self.began()
        begun_s, part = self._wanted()
        return partial(self._finish, begun_s, part, self._try_start(part))

    def run(self) -> BatchReport:
        """Do everything now."""
        return self.begin()()

    def _wanted(self) -> tuple[float, list[int]]:
        now_s = time.monotonic()
        self.outcomes = [
            Outcome.EXPIRED if deadline_s <= now_s else Outcome.FAILED for deadline_s in self.work.deadlines_s
        ]
        return now_s, [i for i, outcome in enumerate(self.outcomes) if outcome is not Outcome.EXPIRED]

    def _try_start(self, part: Sequence[int]) -> _Flaws:
        try:
            return self._start(part)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a library raises: told when the batch is fetched
            traceback.clear_frames(error.__traceback__)
            return partial(_fail, error)

    def _start(self, part: Sequence[int]) -> _Flaws:
        if not part:
            return list
        pictures = [self.work.pictures[i] for i in part]
        return self.labeler.begin(pictures, [self.work.labels[i] for i in part], self.watch)

    def _finish(self, begun_s: float, part: Sequence[int], flaws: _Flaws) -> BatchReport:
        self._settle(part, flaws, may_retry=True)
        return BatchReport(begun_s, self.watch.infer_s, self.watch.post_s, tuple(self.outcomes))

    def _settle(self, part: Sequence[int], flaws: _Flaws, *, may_retry: bool) -> None:
        failure = self._failure(part, flaws)
        if failure is None:
            return
        for i in part:
            self.outcomes[i] = failure
        for few in _smaller(part, failure) if may_retry else ():
            self._settle(few, self._try_start(few), may_retry=False)

    def _failure(self, part: Sequence[int], flaws: _Flaws) -> Outcome | None:
        """Note the outcome of each picture; if they fail as a whole, return how.

        The error ends here: its traceback holds memory that the next attempt needs.
        """
        try:
            self._note(part, flaws())
        except DeviceLostError:
            raise
        except (DeviceMemoryError, MemoryError) as error:
            _log.warning("a batch did not fit into the device", size=len(part), reason=str(error))
            traceback.clear_frames(error.__traceback__)
            return Outcome.NO_MEMORY
        except Exception:  # noqa: BLE001 - whatever a library raises
            _log.exception("inference failed", size=len(part))
            # Not by a name: a log that draws variables would keep the error in this frame, and so itself.
            traceback.clear_frames(sys.exc_info()[2])
            return Outcome.FAILED
        return None

    def _note(self, part: Sequence[int], flaws: Sequence[str | None]) -> None:
        for i, flaw in zip(part, flaws, strict=True):
            self.outcomes[i] = Outcome.ANSWERED if flaw is None else Outcome.INVALID
            if flaw is not None:
                _log.error("the model's output is invalid", version=str(self.work.version), flaw=flaw)


def _smaller(part: Sequence[int], failure: Outcome) -> list[Sequence[int]]:
    if failure is Outcome.NO_MEMORY:
        return _halves(part)
    return [[i] for i in part] if len(part) > 1 else []


def _halves(part: Sequence[int]) -> list[Sequence[int]]:
    middle = -(-len(part) // 2)
    return [half for half in (part[:middle], part[middle:]) if half]


def _fail(error: Exception) -> Sequence[str | None]:
    raise error
