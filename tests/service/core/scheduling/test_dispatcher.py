"""Axes: N images in a batch, K classes, H height, W width, h w = H/8 W/8."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from fakes import FAKE_MANIFEST, PATIENCE_S, FakeEngine, red_scores

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.device import Device
from service.core.device.engine import DeviceLostError, EngineOptions, Float32Array, ImageBatch
from service.core.device.in_process import InProcessRunner
from service.core.errors import (
    DeadlineExceededError,
    DrainingError,
    InternalError,
    ModelOutputInvalidError,
    NoWorkerError,
    QueueFullError,
    UndecodableImageError,
)
from service.core.scheduling.dispatcher import Answer, Dispatcher, Scores

SIZE = ImageSize(32, 64)


class Crew:
    """A worker in this process, and as many engines as a test wants."""

    def __init__(self, cache_folder: Path, max_waiting: int) -> None:
        self.engines: dict[Path, FakeEngine] = {}
        options = EngineOptions("cpu", "f32", cache_folder)
        device = Device(lambda artifact, _: self.engines[artifact.folder], options, decode_threads=2)
        self.dispatcher = Dispatcher(InProcessRunner(device), max_waiting=max_waiting)

    def submit(
        self, engine: FakeEngine, image: PreparedImage, *, within_s: float = PATIENCE_S
    ) -> Future[Answer]:
        """Have an engine of its own version label a picture."""
        version = self._version(engine)
        deadline_s = time.monotonic() + within_s
        reservation = self.dispatcher.reserve_picture(version, image.padded, deadline_s=deadline_s)
        return self.dispatcher.submit_picture(reservation, image)

    def _version(self, engine: FakeEngine) -> ModelVersion:
        engines = list(self.engines.values())
        return ModelVersion("fake", 1 + engines.index(engine)) if engine in engines else self.load(engine)

    def load(self, engine: FakeEngine) -> ModelVersion:
        version = ModelVersion("fake", 1 + len(self.engines))
        folder = Path(str(version))
        self.engines[folder] = engine
        self.dispatcher.load(version, Artifact(folder, FAKE_MANIFEST))
        return version


@pytest.fixture
def crew(shared_cache: Path) -> Iterator[Crew]:
    crew = Crew(shared_cache, max_waiting=2)
    yield crew
    crew.dispatcher.close()


@pytest.fixture
def _no_cycle_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def soon() -> float:
    return time.monotonic() + PATIENCE_S


def gray(value: int = 0, *, size: ImageSize = SIZE, original: ImageSize | None = None) -> PreparedImage:
    pixels_HW3: UInt8Array = np.full((size.height, size.width, 3), value, np.uint8)
    return PreparedImage(pixels_HW3, size, original or size)


@pytest.mark.parametrize(("value", "label"), [(0, 0), (85, 1), (170, 2), (255, 3)])
def test_a_picture_is_answered_with_labels(crew: Crew, value: int, label: int) -> None:
    answer = crew.submit(FakeEngine(), gray(value)).result(PATIENCE_S)
    assert answer.labels_HW.shape == (32, 64)
    assert (answer.labels_HW == label).all()


def test_a_reduced_picture_is_answered_at_its_original_size(crew: Crew) -> None:
    picture = gray(original=ImageSize(100, 201))
    assert crew.submit(FakeEngine(), picture).result(PATIENCE_S).labels_HW.shape == (100, 201)


def test_an_answer_says_where_its_time_went(crew: Crew) -> None:
    began_s = time.monotonic()
    answer = crew.submit(FakeEngine(), gray()).result(PATIENCE_S)
    stages = (answer.queue_s, answer.infer_s, answer.post_s)
    assert all(stage >= 0 for stage in stages)
    assert sum(stages) <= time.monotonic() - began_s


def test_a_reserved_place_is_kept_until_its_picture_comes(crew: Crew) -> None:
    engine = FakeEngine(held=True)
    version = crew.load(engine)
    first = crew.submit(engine, gray())
    engine.wait_until_busy()
    reservations = [crew.dispatcher.reserve_picture(version, SIZE, deadline_s=soon()) for _ in range(2)]
    with pytest.raises(QueueFullError):
        crew.submit(engine, gray())
    futures = [crew.dispatcher.submit_picture(reservation, gray()) for reservation in reservations]
    engine.go_on(3)
    assert all(future.result(PATIENCE_S) for future in (first, *futures))


def test_a_tile_that_two_workers_died_of_is_refused(crew: Crew) -> None:
    def deadly(_: ImageBatch) -> Float32Array:
        raise DeviceLostError("the device is gone")

    engine = FakeEngine(answer=deadly)
    version = crew.load(engine)

    def submit() -> Future[Scores]:
        (place,) = crew.dispatcher.reserve_tiles(version, SIZE, 1, deadline_s=soon())
        try:
            return crew.dispatcher.submit_tile(place, gray(), (1, 4, 4, 8))
        finally:
            place.future.cancel()

    for _ in range(2):
        with pytest.raises(NoWorkerError):
            submit().result(PATIENCE_S)
    with pytest.raises(UndecodableImageError, match="two workers died"):
        submit()


def test_a_reservation_that_is_given_up_frees_its_place(crew: Crew) -> None:
    engine = FakeEngine(held=True)
    version = crew.load(engine)
    crew.submit(engine, gray())
    engine.wait_until_busy()
    reservations = [crew.dispatcher.reserve_picture(version, SIZE, deadline_s=soon()) for _ in range(2)]
    for reservation in reservations:
        reservation.future.cancel()
    futures = [crew.submit(engine, gray()) for _ in range(2)]
    with pytest.raises(QueueFullError):
        crew.dispatcher.reserve_picture(version, SIZE, deadline_s=soon())
    engine.go_on(3)
    assert all(future.result(PATIENCE_S) for future in futures)


def test_a_picture_of_another_size_than_was_reserved_needs_a_place_of_its_own(crew: Crew) -> None:
    engine = FakeEngine()
    version = crew.load(engine)
    reservation = crew.dispatcher.reserve_picture(version, SIZE, deadline_s=soon())
    other = gray(size=ImageSize(32, 96))
    future = crew.dispatcher.submit_picture(reservation, other)
    assert reservation.future.cancelled()
    assert future.result(PATIENCE_S).labels_HW.shape == (32, 96)


def test_tasks_are_answered_in_the_order_in_which_they_came(crew: Crew) -> None:
    engine = FakeEngine(held=True)
    futures = [crew.submit(engine, gray(size=ImageSize(32, 32)))]
    engine.wait_until_busy()
    futures += [crew.submit(engine, gray(size=ImageSize(32, 32 * n))) for n in (2, 3)]
    engine.go_on(3)
    for future in futures:
        future.result(PATIENCE_S)
    assert [shape[2] for shape in engine.seen] == [32, 64, 96]


@pytest.mark.usefixtures("_no_cycle_collector")
def test_a_cancelled_task_never_reaches_the_engine_and_its_pixels_are_freed_at_once(
    crew: Crew,
) -> None:
    engine = FakeEngine(held=True)
    first = crew.submit(engine, gray())
    engine.wait_until_busy()
    unwanted = gray()
    pixels = weakref.ref(unwanted.pixels_HW3)
    future = crew.submit(engine, unwanted)
    assert future.cancel()
    del unwanted, future
    assert pixels() is None
    engine.go_on()
    first.result(PATIENCE_S)
    assert len(engine.seen) == 1


def test_an_expired_task_never_reaches_the_engine(crew: Crew) -> None:
    engine = FakeEngine(held=True)
    first = crew.submit(engine, gray())
    engine.wait_until_busy()
    expired = crew.submit(engine, gray(), within_s=1e-3)
    given_up_s = time.monotonic() + 1e-3
    while time.monotonic() < given_up_s:
        pass
    engine.go_on()
    first.result(PATIENCE_S)
    with pytest.raises(DeadlineExceededError):
        expired.result(PATIENCE_S)
    assert len(engine.seen) == 1


def test_more_than_may_wait_is_refused(crew: Crew) -> None:
    engine = FakeEngine(held=True)
    crew.submit(engine, gray())
    engine.wait_until_busy()
    for _ in range(2):
        crew.submit(engine, gray())
    with pytest.raises(QueueFullError):
        crew.submit(engine, gray())
    engine.go_on(3)


def test_a_worker_that_knows_its_pace_refuses_what_would_come_too_late(shared_cache: Path) -> None:
    crew = Crew(shared_cache, max_waiting=10)
    engine = FakeEngine(held=True)
    version = crew.load(engine)
    crew.submit(engine, gray())
    engine.wait_until_busy()
    crew.submit(engine, gray())
    crew.dispatcher._scheduler._latencies[version, "labels"].learn(pixels=SIZE.pixels, duration_s=61.0)
    with pytest.raises(QueueFullError) as refused:
        crew.submit(engine, gray())
    assert refused.value.retry_after_s > 60
    engine.go_on(2)
    crew.dispatcher.close()


def test_a_worker_learns_its_pace_from_what_it_answers(crew: Crew) -> None:
    crew.submit(FakeEngine(), gray()).result(PATIENCE_S)
    crew.dispatcher.close()
    (latency,) = crew.dispatcher._scheduler._latencies.values()
    assert latency.predict(SIZE.pixels) > 0


def explode(_: ImageBatch) -> Float32Array:
    raise RuntimeError("device lost")


def test_a_task_that_fails_fails_alone(crew: Crew) -> None:
    failed = crew.submit(FakeEngine(answer=explode), gray())
    answered = crew.submit(FakeEngine(), gray())
    with pytest.raises(InternalError, match=r"^inference failed$"):
        failed.result(PATIENCE_S)
    assert answered.result(PATIENCE_S).labels_HW.shape == (32, 64)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_no_answer(crew: Crew, value: float) -> None:
    engine = FakeEngine(answer=lambda images: np.full((len(images), 4, 4, 8), value, np.float32))
    with pytest.raises(ModelOutputInvalidError):
        crew.submit(engine, gray()).result(PATIENCE_S)


def test_scores_of_another_shape_are_no_answer(crew: Crew) -> None:
    engine = FakeEngine(answer=lambda images: np.zeros((len(images), 4, 4, 9), np.float32))
    with pytest.raises(ModelOutputInvalidError):
        crew.submit(engine, gray()).result(PATIENCE_S)


def test_closing_answers_what_waits_and_refuses_what_comes(crew: Crew) -> None:
    engine = FakeEngine()
    futures = [crew.submit(engine, gray()) for _ in range(3)]
    crew.dispatcher.close()
    assert all(future.result(timeout=0) for future in futures)
    with pytest.raises(DrainingError):
        crew.submit(engine, gray())


def not_a_number(images_NHW3: ImageBatch) -> Float32Array:
    return np.full_like(red_scores(images_NHW3), np.nan)


@pytest.mark.usefixtures("_no_cycle_collector")
@pytest.mark.parametrize("answer", [red_scores, explode, not_a_number])
def test_the_pixels_of_a_task_are_freed_when_it_is_settled(
    crew: Crew, answer: Callable[[ImageBatch], Float32Array]
) -> None:
    engine = FakeEngine(answer=answer)
    answered = gray()
    pixels = weakref.ref(answered.pixels_HW3)
    future = crew.submit(engine, answered)
    assert (future.exception(PATIENCE_S) is None) == (answer is red_scores)
    del answered
    given_up_s = time.monotonic() + PATIENCE_S
    while pixels() is not None and time.monotonic() < given_up_s:
        pass  # the worker lets go a moment after it has answered
    assert pixels() is None
