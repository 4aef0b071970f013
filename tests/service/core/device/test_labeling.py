"""Axes: N images in a batch, K classes, H height, W width, h w = H/8 W/8."""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import structlog
from fakes import FAKE_MANIFEST, FakeEngine, red_scores
from hypothesis import given
from hypothesis import strategies as st

from model.artifacts.manifest import ModelVersion
from model.decoding import decode
from model.errors import ModelOutputError
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.batch_job import BatchReport, Outcome, answer_shape
from service.core.device.engine import DeviceLostError, DeviceMemoryError, Float32Array, ImageBatch
from service.core.device.labeling import LabelingAttempts, LabelingWork, labeler_of
from service.telemetry import LogOptions, configure_logging

SIZE = ImageSize(32, 32)
POISON = 111
ANSWERED, EXPIRED, INVALID, FAILED, NO_MEMORY = Outcome


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    decode.warm_up()


@pytest.fixture(autouse=True)
def _plain_log() -> Iterator[None]:
    # By default structlog draws tracebacks with all variables, and a picture takes a second.
    configure_logging(LogOptions())
    yield
    structlog.reset_defaults()


def work_of(values: Sequence[int], *, late: Sequence[int] = ()) -> LabelingWork:
    pictures = [PreparedImage(np.full((32, 32, 3), value, np.uint8), SIZE, SIZE) for value in values]
    labels = [np.full((32, 32), 99, np.uint8) for _ in values]
    now_s = time.monotonic()
    deadlines_s = [now_s + (-1 if i in late else 60) for i in range(len(values))]
    return LabelingWork(ModelVersion("fake", 1), pictures, labels, deadlines_s)


def labelled(engine: FakeEngine, work: LabelingWork) -> BatchReport:
    with ThreadPoolExecutor(1) as decoders:
        return LabelingAttempts(labeler_of(engine, FAKE_MANIFEST, decoders), work, lambda: None).run_to_end()


def failing(*errors: Exception) -> Callable[[ImageBatch], Float32Array]:
    """Return an answer that fails so often, each time in another way, and then is right."""
    left = list(errors)

    def answer(images_NHW3: ImageBatch) -> Float32Array:
        if left:
            raise left.pop(0)
        return red_scores(images_NHW3)

    return answer


def poisoned(images_NHW3: ImageBatch) -> Float32Array:
    if (images_NHW3 == POISON).any():
        raise RuntimeError("cannot stand this picture")
    return red_scores(images_NHW3)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_each_picture_of_a_batch_gets_its_own_labels(classes: list[int]) -> None:
    work = work_of([85 * k for k in classes])
    engine = FakeEngine()
    assert labelled(engine, work).outcomes == (ANSWERED,) * len(classes)
    assert [int(labels_HW[0, 0]) for labels_HW in work.labels] == classes
    assert engine.seen == [(len(classes), 32, 32, 3)]


def test_a_picture_that_asks_for_it_gets_the_confidence_behind_its_labels() -> None:
    plain = work_of([85, 170])
    picture = dataclasses.replace(plain.pictures[1], confidence=True)
    answer = np.empty(answer_shape(picture), np.uint8)
    work = dataclasses.replace(plain, pictures=[plain.pictures[0], picture], labels=[plain.labels[0], answer])
    assert labelled(FakeEngine(), work).outcomes == (ANSWERED, ANSWERED)
    assert work.labels[0].shape == (32, 32)
    assert (answer[0] == 2).all()
    raw_K = red_scores(picture.pixels_HW3[np.newaxis])[0, :, 0, 0].astype(np.float64)
    assert (answer[1] == round(255 * float(1 / np.exp(raw_K - raw_K.max()).sum()))).all()


def test_what_is_late_is_left_out_of_the_batch() -> None:
    work, engine = work_of([0, 85, 170], late=[1]), FakeEngine()
    assert labelled(engine, work).outcomes == (ANSWERED, EXPIRED, ANSWERED)
    assert engine.seen == [(2, 32, 32, 3)]
    assert int(work.labels[2][0, 0]) == 2


def test_a_batch_that_is_late_as_a_whole_never_reaches_the_engine() -> None:
    engine = FakeEngine()
    assert labelled(engine, work_of([0, 85], late=[0, 1])).outcomes == (EXPIRED, EXPIRED)
    assert engine.seen == []


@pytest.mark.parametrize("error", [DeviceMemoryError("full"), MemoryError()])
def test_without_memory_for_all_halves_are_tried(error: Exception) -> None:
    engine = FakeEngine(answer=failing(error))
    work = work_of([0, 85, 170, 255, 0])
    assert labelled(engine, work).outcomes == (ANSWERED,) * 5
    assert [shape[0] for shape in engine.seen] == [5, 3, 2]
    assert [int(labels_HW[0, 0]) for labels_HW in work.labels] == [0, 1, 2, 3, 0]


def test_a_single_picture_without_memory_is_tried_once_more() -> None:
    assert labelled(FakeEngine(answer=failing(DeviceMemoryError())), work_of([0])).outcomes == (ANSWERED,)


def test_a_device_that_stays_full_is_no_answer_and_is_not_asked_for_ever() -> None:
    engine = FakeEngine(answer=failing(*[DeviceMemoryError() for _ in range(9)]))
    assert labelled(engine, work_of([0, 85])).outcomes == (NO_MEMORY, NO_MEMORY)
    assert [shape[0] for shape in engine.seen] == [2, 1, 1]


@pytest.mark.parametrize("is_poison", [(True, False), (False, True, False), (True, True)])
def test_a_picture_that_an_engine_cannot_stand_fails_alone(is_poison: tuple[bool, ...]) -> None:
    work = work_of([POISON if poison else 85 for poison in is_poison])
    expected = tuple(FAILED if poison else ANSWERED for poison in is_poison)
    assert labelled(FakeEngine(answer=poisoned), work).outcomes == expected


def test_a_picture_that_fails_alone_is_not_tried_again() -> None:
    engine = FakeEngine(answer=poisoned)
    assert labelled(engine, work_of([POISON])).outcomes == (FAILED,)
    assert len(engine.seen) == 1


def test_scores_that_are_no_numbers_are_no_answer_for_their_picture_alone() -> None:
    def half_nan(images_NHW3: ImageBatch) -> Float32Array:
        raw_NKhw = red_scores(images_NHW3)
        raw_NKhw[1] = np.nan
        return raw_NKhw

    assert labelled(FakeEngine(answer=half_nan), work_of([0, 0, 0])).outcomes == (ANSWERED, INVALID, ANSWERED)


@pytest.mark.parametrize("cut", [np.s_[:, :, :-1], np.s_[:1], np.s_[0]])
def test_scores_of_another_shape_are_no_answer(cut: tuple[slice, ...]) -> None:
    engine = FakeEngine(answer=lambda images: np.ascontiguousarray(red_scores(images)[cut]))
    assert labelled(engine, work_of([0, 0])).outcomes == (INVALID, INVALID)


def test_a_lost_device_is_everybodys_problem() -> None:
    with pytest.raises(DeviceLostError):
        labelled(FakeEngine(answer=failing(DeviceLostError("CUDA error"))), work_of([0, 0]))


class AheadEngine(FakeEngine):
    """Makes the labels itself; each batch is computed when it is fetched."""

    def begin(
        self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array]
    ) -> Callable[[], list[ModelOutputError | None]]:
        images_NHW3 = np.stack([picture.pixels_HW3 for picture in pictures])

        def fetch() -> list[ModelOutputError | None]:
            is_poison_N = images_NHW3[:, 0, 0, 0] == POISON
            for pixels_HW3, is_poison, out_HW in zip(images_NHW3, is_poison_N, labels, strict=True):
                if not is_poison:
                    out_HW[...] = pixels_HW3[..., 0] // 85
            return [ModelOutputError("not finite") if is_poison else None for is_poison in is_poison_N]

        self.infer(images_NHW3)
        return fetch


def test_an_engine_that_makes_labels_is_begun_at_once_and_fetched_later() -> None:
    engine, begun = AheadEngine(), list[int]()
    work = work_of([0, POISON, 255], late=[0])
    with ThreadPoolExecutor(1) as decoders:
        labeler = labeler_of(engine, FAKE_MANIFEST, decoders)
        assert labeler.is_asynchronous
        pending = LabelingAttempts(labeler, work, lambda: begun.append(1)).start()
    assert engine.seen == [(2, 32, 32, 3)]
    assert begun == [1]
    assert pending().outcomes == (EXPIRED, INVALID, ANSWERED)
    assert (work.labels[2] == 3).all()


def test_a_batch_is_not_charged_for_the_one_that_the_device_had_before_it() -> None:
    class SlowEngine(AheadEngine):
        def begin(
            self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array]
        ) -> Callable[[], list[ModelOutputError | None]]:
            fetch = super().begin(pictures, labels)
            return lambda: time.sleep(0.05) or fetch()  # type: ignore[func-returns-value]

    with ThreadPoolExecutor(1) as decoders:
        labeler = labeler_of(SlowEngine(), FAKE_MANIFEST, decoders)
        began_s = time.monotonic()
        both = [LabelingAttempts(labeler, work_of([0]), lambda: None).start() for _ in range(2)]
        reports = [pending() for pending in both]
        elapsed_s = time.monotonic() - began_s
    assert sum(report.infer_s for report in reports) <= elapsed_s
    assert min(report.infer_s for report in reports) >= 0.05


def test_an_engine_that_fails_to_begin_is_tried_with_less_when_it_is_fetched() -> None:
    engine = AheadEngine(answer=failing(DeviceMemoryError()))
    work = work_of([0, 85])
    with ThreadPoolExecutor(1) as decoders:
        report = LabelingAttempts(
            labeler_of(engine, FAKE_MANIFEST, decoders), work, lambda: None
        ).run_to_end()
    assert report.outcomes == (ANSWERED, ANSWERED)
    assert [shape[0] for shape in engine.seen] == [2, 1, 1]


@pytest.mark.parametrize("error", [DeviceMemoryError("full"), RuntimeError("no")])
@pytest.mark.parametrize("ahead", [False, True])
def test_what_a_failed_batch_holds_is_gone_before_it_is_tried_again(error: Exception, *, ahead: bool) -> None:
    held: list[weakref.ref[Float32Array]] = []

    def answer(images_NHW3: ImageBatch) -> Float32Array:
        assert all(activations() is None for activations in held)
        activations = red_scores(images_NHW3)
        held.append(weakref.ref(activations))
        if len(held) == 1:
            raise error
        return activations

    engine = (AheadEngine if ahead else FakeEngine)(answer=answer)
    assert labelled(engine, work_of([0, 85])).outcomes == (ANSWERED, ANSWERED)
    assert len(held) == 3
