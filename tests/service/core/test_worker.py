"""Axes: N images in a batch, K classes, H height, W width, h w = H/8 W/8."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fakes import FAKE_MANIFEST, PATIENCE_S, FakeEngine, red_scores

from model.labels import UInt8Array
from model.preprocess import ImageSize, PreparedImage
from service.core.engine import Float32Array, ImageBatch
from service.core.errors import (
    DeadlineExceededError,
    DrainingError,
    InternalError,
    ModelOutputInvalidError,
    QueueFullError,
)
from service.core.worker import InferenceWorker, Task


@pytest.fixture
def worker() -> Iterator[InferenceWorker]:
    worker = InferenceWorker(max_waiting=2, decode_threads=2)
    yield worker
    worker.close()


@pytest.fixture
def _no_cycle_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


SIZE = ImageSize(32, 64)


def gray(value: int, *, size: ImageSize = SIZE, original: ImageSize | None = None) -> PreparedImage:
    pixels_HW3: UInt8Array = np.full((size.height, size.width, 3), value, np.uint8)
    return PreparedImage(pixels_HW3, size, original or size)


def task(engine: FakeEngine, value: int = 0, **sizes: ImageSize) -> Task:
    return Task(engine, FAKE_MANIFEST, gray(value, **sizes))


def soon() -> float:
    return time.monotonic() + PATIENCE_S


@pytest.mark.parametrize(("value", "label"), [(0, 0), (85, 1), (170, 2), (255, 3)])
def test_a_picture_is_answered_with_labels(worker: InferenceWorker, value: int, label: int) -> None:
    answer = worker.submit(task(FakeEngine(), value), deadline_s=soon()).result(PATIENCE_S)
    assert answer.labels_HW.shape == (32, 64)
    assert (answer.labels_HW == label).all()


def test_a_reduced_picture_is_answered_at_its_original_size(worker: InferenceWorker) -> None:
    picture = task(FakeEngine(), original=ImageSize(100, 201))
    assert worker.submit(picture, deadline_s=soon()).result(PATIENCE_S).labels_HW.shape == (100, 201)


def test_an_answer_says_where_its_time_went(worker: InferenceWorker) -> None:
    began_s = time.monotonic()
    answer = worker.submit(task(FakeEngine()), deadline_s=soon()).result(PATIENCE_S)
    stages = (answer.queue_s, answer.infer_s, answer.post_s)
    assert all(stage >= 0 for stage in stages)
    assert sum(stages) <= time.monotonic() - began_s


def test_tasks_are_answered_in_the_order_in_which_they_came(worker: InferenceWorker) -> None:
    engine = FakeEngine(held=True)
    futures = [worker.submit(task(engine, size=ImageSize(32, 32)), deadline_s=soon())]
    engine.wait_until_busy()
    futures += [worker.submit(task(engine, size=ImageSize(32, 32 * n)), deadline_s=soon()) for n in (2, 3)]
    engine.go_on(3)
    for future in futures:
        future.result(PATIENCE_S)
    assert [shape[2] for shape in engine.seen] == [32, 64, 96]


@pytest.mark.usefixtures("_no_cycle_collector")
def test_a_cancelled_task_never_reaches_the_engine_and_its_pixels_are_freed_at_once(
    worker: InferenceWorker,
) -> None:
    engine = FakeEngine(held=True)
    first = worker.submit(task(engine), deadline_s=soon())
    engine.wait_until_busy()
    unwanted = task(engine)
    pixels = weakref.ref(unwanted.image.pixels_HW3)
    future = worker.submit(unwanted, deadline_s=soon())
    assert future.cancel()
    del unwanted, future
    assert pixels() is None
    engine.go_on()
    first.result(PATIENCE_S)
    assert len(engine.seen) == 1


def test_an_expired_task_never_reaches_the_engine(worker: InferenceWorker) -> None:
    engine = FakeEngine(held=True)
    first = worker.submit(task(engine), deadline_s=soon())
    engine.wait_until_busy()
    deadline_s = time.monotonic() + 1e-4
    expired = worker.submit(task(engine), deadline_s=deadline_s)
    while time.monotonic() < deadline_s:
        pass
    engine.go_on()
    first.result(PATIENCE_S)
    with pytest.raises(DeadlineExceededError):
        expired.result(PATIENCE_S)
    assert len(engine.seen) == 1


def test_more_than_may_wait_is_refused(worker: InferenceWorker) -> None:
    engine = FakeEngine(held=True)
    worker.submit(task(engine), deadline_s=soon())
    engine.wait_until_busy()
    for _ in range(2):
        worker.submit(task(engine), deadline_s=soon())
    with pytest.raises(QueueFullError):
        worker.submit(task(engine), deadline_s=soon())
    engine.go_on(3)


def test_a_worker_that_knows_its_pace_refuses_what_would_come_too_late() -> None:
    worker = InferenceWorker(max_waiting=10)
    engine = FakeEngine(held=True)
    worker.submit(task(engine), deadline_s=soon())
    engine.wait_until_busy()
    worker.submit(task(engine), deadline_s=soon())
    worker._room.learn(pixels=1, duration_s=60.0)
    with pytest.raises(QueueFullError) as refused:
        worker.submit(task(engine), deadline_s=soon())
    assert refused.value.retry_after_s > 60
    engine.go_on(2)
    worker.close()


def test_a_worker_learns_its_pace_from_what_it_answers(worker: InferenceWorker) -> None:
    worker.submit(task(FakeEngine()), deadline_s=soon()).result(PATIENCE_S)
    worker.close()
    assert worker._room._seconds_per_pixel > 0


def explode(_: ImageBatch) -> Float32Array:
    raise RuntimeError("device lost")


def test_a_task_that_fails_fails_alone(worker: InferenceWorker) -> None:
    failed = worker.submit(task(FakeEngine(answer=explode)), deadline_s=soon())
    answered = worker.submit(task(FakeEngine()), deadline_s=soon())
    with pytest.raises(InternalError, match=r"^inference failed$"):
        failed.result(PATIENCE_S)
    assert answered.result(PATIENCE_S).labels_HW.shape == (32, 64)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_no_answer(worker: InferenceWorker, value: float) -> None:
    engine = FakeEngine(answer=lambda images: np.full((len(images), 4, 4, 8), value, np.float32))
    with pytest.raises(ModelOutputInvalidError):
        worker.submit(task(engine), deadline_s=soon()).result(PATIENCE_S)


def test_scores_of_another_shape_are_no_answer(worker: InferenceWorker) -> None:
    engine = FakeEngine(answer=lambda images: np.zeros((len(images), 4, 4, 9), np.float32))
    with pytest.raises(ModelOutputInvalidError):
        worker.submit(task(engine), deadline_s=soon()).result(PATIENCE_S)


def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    worker = InferenceWorker()
    futures = [worker.submit(task(FakeEngine()), deadline_s=soon()) for _ in range(3)]
    worker.close()
    assert all(future.result(timeout=0) for future in futures)
    with pytest.raises(DrainingError):
        worker.submit(task(FakeEngine()), deadline_s=soon())


def not_a_number(images_NHW3: ImageBatch) -> Float32Array:
    return np.full_like(red_scores(images_NHW3), np.nan)


@pytest.mark.usefixtures("_no_cycle_collector")
@pytest.mark.parametrize("answer", [red_scores, explode, not_a_number])
def test_the_pixels_of_a_task_are_freed_when_it_is_settled(
    worker: InferenceWorker, answer: Callable[[ImageBatch], Float32Array]
) -> None:
    engine = FakeEngine(answer=answer)
    answered = task(engine)
    pixels = weakref.ref(answered.image.pixels_HW3)
    future = worker.submit(answered, deadline_s=soon())
    assert (future.exception(PATIENCE_S) is None) == (answer is red_scores)
    del answered
    given_up_s = soon()
    while pixels() is not None and time.monotonic() < given_up_s:
        pass  # the worker lets go a moment after it has answered
    assert pixels() is None
