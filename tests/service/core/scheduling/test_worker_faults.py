"""What becomes of pictures whose worker fails: rules, tried with a runner that does what the test says.

The runner's thread, processes and clock are the test's own, so that any order of events can be tried, and any
failure repeats from its seed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from fakes import FAKE_MANIFEST

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.batch_job import BatchJob, BatchReport, LabelBatchJob, Outcome, RunnerListener
from service.core.device.engine import EngineInfo
from service.core.errors import (
    BusyError,
    DrainingError,
    InternalError,
    ModelOutputInvalidError,
    NoWorkerError,
    QueueFullError,
    ServiceError,
    UndecodableImageError,
    VersionNotFoundError,
)
from service.core.scheduling.dispatcher import Answer, Dispatcher
from service.core.scheduling.scheduler import BatchLimits
from service.telemetry import Metrics

SIZE = ImageSize(32, 32)
CITY, ROAD = ModelVersion("city", 1), ModelVersion("road", 1)


class ScriptedRunner:
    """Keeps batches until the test answers or loses them."""

    depth = 2

    def __init__(self) -> None:
        self.batches: dict[int, LabelBatchJob] = {}
        self.listener: RunnerListener
        self.closed = False

    def open(self, listener: RunnerListener) -> None:
        self.listener = listener
        listener.on_ready()

    def run_batch(self, token: int, batch: BatchJob) -> None:
        assert isinstance(batch, LabelBatchJob)
        self.batches[token] = batch

    def canvas(self, *_: object) -> None:
        raise AssertionError("these pictures are ready")

    def load(self, *_: object) -> EngineInfo:
        return EngineInfo("scripted", "cpu", "f32")

    def unload(self, _: ModelVersion) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def answer(self, *outcomes: Outcome) -> None:
        """Answer the oldest batch; labels are the first value of each picture."""
        token = next(iter(self.batches))
        batch = self.batches.pop(token)
        outcomes = outcomes or (Outcome.ANSWERED,) * len(batch.pictures)
        labels = [picture.pixels_HW3[..., 0] for picture in batch.pictures]
        self.listener.on_batch_done(token, BatchReport(0.0, 0.01, 0.0, outcomes), labels)

    def die(self, *, begun: int, retry_after_s: float = 0.0) -> None:
        """Lose all batches, of which so many had begun."""
        tokens = list(self.batches)
        self.batches.clear()
        self.listener.on_worker_lost(tokens[:begun], tokens[begun:], retry_after_s=retry_after_s)


class Crew:
    """A worker over a scripted runner, on a clock of its own."""

    def __init__(self, **options: object) -> None:
        self.now_s = 0.0
        self.runner = ScriptedRunner()
        self.dispatcher = Dispatcher(self.runner, clock=lambda: self.now_s, **options)  # type: ignore[arg-type]
        for version in (CITY, ROAD):
            self.dispatcher.load(version, Artifact(Path("nowhere"), FAKE_MANIFEST))

    def submit(self, value: int, *, version: ModelVersion = CITY, within_s: float = 1e6) -> Future[Answer]:
        image = PreparedImage(np.full((32, 32, 3), value, np.uint8), SIZE, SIZE)
        deadline_s = self.now_s + within_s
        reservation = self.dispatcher.reserve_picture(version, image.padded, deadline_s=deadline_s)
        return self.dispatcher.submit_picture(reservation, image)


@pytest.fixture
def crew() -> Crew:
    return Crew()


def fates(futures: Sequence[Future[Answer]]) -> list[type[BaseException] | None]:
    assert all(future.done() for future in futures)
    return [None if (error := future.exception()) is None else type(error) for future in futures]


def test_the_next_job_waits_at_the_device_while_one_runs(crew: Crew) -> None:
    for value in range(4):
        crew.submit(value)
    assert [batch.pictures[0].pixels_HW3[0, 0, 0] for batch in crew.runner.batches.values()] == [0, 1]
    crew.runner.answer()
    assert [batch.pictures[0].pixels_HW3[0, 0, 0] for batch in crew.runner.batches.values()] == [1, 2]


def test_what_had_begun_is_lost_and_what_had_not_is_answered_by_the_next_worker(crew: Crew) -> None:
    futures = [crew.submit(value) for value in range(4)]
    crew.runner.die(begun=1)
    assert not crew.dispatcher.is_ready
    assert fates(futures[:1]) == [NoWorkerError]
    crew.runner.listener.on_ready()
    for _ in range(3):
        crew.runner.answer()
    assert fates(futures) == [NoWorkerError, None, None, None]
    assert [int(future.result().labels_HW[0, 0]) for future in futures[1:]] == [1, 2, 3]


def test_what_two_workers_had_not_begun_is_given_up(crew: Crew) -> None:
    future = crew.submit(0)
    for _ in range(2):
        crew.runner.die(begun=0)
        crew.runner.listener.on_ready()
    assert fates([future]) == [NoWorkerError]
    assert crew.runner.batches == {}


def test_while_a_worker_is_started_pictures_wait_and_while_none_can_be_they_are_refused(crew: Crew) -> None:
    crew.runner.die(begun=0)
    waiting = crew.submit(1)
    assert not waiting.done()
    crew.runner.die(begun=0, retry_after_s=8.0)
    assert fates([waiting]) == [NoWorkerError]
    with pytest.raises(NoWorkerError) as refused:
        crew.submit(2)
    assert refused.value.retry_after_s == 8.0
    crew.runner.listener.on_ready()
    accepted = crew.submit(3)
    crew.runner.answer()
    assert fates([accepted]) == [None]


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Outcome.INVALID, ModelOutputInvalidError),
        (Outcome.FAILED, InternalError),
        (Outcome.NO_MEMORY, BusyError),
    ],
)
def test_an_item_that_fails_fails_alone(outcome: Outcome, error: type[ServiceError]) -> None:
    crew = Crew(limits=BatchLimits(max_items=4))
    crew.submit(9)
    futures = [crew.submit(value) for value in range(3)]
    crew.runner.answer()
    crew.runner.answer(Outcome.ANSWERED, outcome, Outcome.ANSWERED)
    assert fates(futures) == [None, error, None]


def test_a_picture_that_killed_a_worker_has_its_next_batch_for_itself() -> None:
    crew = Crew(limits=BatchLimits(max_items=4))
    crew.submit(9)
    futures = [crew.submit(value) for value in (7, 8)]
    crew.runner.answer()
    crew.runner.die(begun=1)
    assert fates(futures) == [NoWorkerError] * 2
    crew.runner.listener.on_ready()
    for value in (9, 1, 2, 7, 3, 4):
        crew.submit(value)
    batches = []
    while crew.runner.batches:
        batch = next(iter(crew.runner.batches.values()))
        batches.append([int(picture.pixels_HW3[0, 0, 0]) for picture in batch.pictures])
        crew.runner.answer()
    assert sorted(batches) == [[1, 2, 3, 4], [7], [9]]


def test_a_picture_that_killed_two_workers_is_refused_until_it_has_been_answered_in_between(
    crew: Crew,
) -> None:
    for _ in range(2):
        crew.submit(7)
        crew.runner.die(begun=1)
        crew.runner.listener.on_ready()
        crew.submit(8)
        crew.runner.answer()
    with pytest.raises(UndecodableImageError):
        crew.submit(7)
    crew.submit(7, version=ROAD)


def test_a_worker_that_dies_of_itself_again_and_again_bans_no_picture_that_is_answered(crew: Crew) -> None:
    for _ in range(5):
        crew.submit(7)
        crew.runner.die(begun=1)
        crew.runner.listener.on_ready()
        answered = crew.submit(7)
        crew.runner.answer()
        assert fates([answered]) == [None]


def test_a_version_that_is_unloaded_is_refused(crew: Crew) -> None:
    crew.dispatcher.unload(CITY)
    with pytest.raises(VersionNotFoundError):
        crew.submit(1)
    crew.submit(1, version=ROAD)


def test_a_worker_that_dies_while_the_service_ends_leaves_no_request_waiting(crew: Crew) -> None:
    futures = [crew.submit(value) for value in range(3)]
    crew.dispatcher._closing = True
    crew.runner.die(begun=1)
    assert fates(futures) == [NoWorkerError] * 3
    crew.dispatcher.close()
    assert crew.runner.closed
    with pytest.raises(DrainingError):
        crew.submit(1)


def test_batches_restarts_and_the_queue_are_counted() -> None:
    metrics = Metrics()
    crew = Crew(metrics=metrics)
    for value in range(4):
        crew.submit(value)
    crew.runner.answer()
    crew.runner.die(begun=1)
    text = metrics.exposition()[0].decode()
    assert "bisenet_batch_size_count 1.0" in text
    assert "bisenet_worker_restarts_total 1.0" in text
    assert "bisenet_queue_depth 2.0" in text
    assert "bisenet_worker_busy_ratio 0.001" in text


class Story:
    """Random submissions, answers, deaths and cancellations; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        limits = BatchLimits(max_items=self.chance.choice([1, 3]))
        self.crew = Crew(limits=limits, max_waiting=self.chance.choice([2, 20]))
        self.accepted: list[tuple[int, Future[Answer]]] = []
        self.begun_at_a_death = 0

    def tell(self, length: int) -> Iterator[str]:
        """Let things happen; yields what."""
        steps = [self.submit, self.submit, self.submit, self.answer, self.answer, self.die]
        steps += [self.ready, self.cancel, self.wait]
        for _ in range(length):
            step = self.chance.choice(steps)
            step()
            assert len(self.crew.runner.batches) <= self.crew.runner.depth
            yield step.__name__
        self.ready()
        while self.crew.runner.batches:
            self.answer()

    def submit(self) -> None:
        value = self.chance.randrange(200)
        with suppress(QueueFullError, NoWorkerError, UndecodableImageError):
            within_s = self.chance.choice([0.5, 1e6])
            self.accepted.append((value, self.crew.submit(value, within_s=within_s)))

    def answer(self) -> None:
        if self.crew.runner.batches:
            self.crew.runner.answer()

    def die(self) -> None:
        batches = list(self.crew.runner.batches.values())
        begun = self.chance.randint(0, len(batches))
        self.begun_at_a_death += sum(len(batch.pictures) for batch in batches[:begun])
        self.crew.runner.die(begun=begun, retry_after_s=self.chance.choice([0.0, 0.0, 4.0]))

    def ready(self) -> None:
        self.crew.runner.listener.on_ready()

    def cancel(self) -> None:
        if self.accepted:
            self.chance.choice(self.accepted)[1].cancel()

    def wait(self) -> None:
        self.crew.now_s += self.chance.random()

    def check(self) -> None:
        """See that every picture has one answer, and its own."""
        assert len(self.crew.dispatcher._scheduler) == 0
        assert set(self.crew.dispatcher._unanswered.values()) == {0}
        lost = 0
        for value, future in self.accepted:
            assert future.done()
            if future.cancelled():
                continue
            if future.exception() is None:
                assert int(future.result().labels_HW[0, 0]) == value
            lost += "while it worked" in str(future.exception())
        assert lost == self.begun_at_a_death


@pytest.mark.guarantee("G22")
@pytest.mark.parametrize("first_seed", range(0, 300, 100))
def test_whatever_happens_each_picture_has_one_answer_and_its_own(first_seed: int) -> None:
    events = Counter[str]()
    for seed in range(first_seed, first_seed + 100):
        story = Story(seed)
        events.update(story.tell(60))
        story.check()
    assert len(events) == 6  # or the stories would prove little


@pytest.mark.soak
def test_each_picture_has_one_answer_in_very_many_stories() -> None:
    for seed in range(300, 20_000):
        story = Story(seed)
        for _ in story.tell(60):
            pass
        story.check()
