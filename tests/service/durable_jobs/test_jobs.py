"""Jobs on both databases: submitted, run, cancelled, interrupted."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from job_worker import (
    PATIENCE_S,
    REQUEST,
    FakeWork,
    WorkerProcess,
    expected_result,
    finished,
    open_jobs,
    running,
    when,
)

from model.artifacts.manifest import ModelVersion
from service.core.errors import ConflictError, NotFoundError
from service.core.jobs.evaluation_job import EvaluationJobs
from service.core.jobs.job import JobError, JobHeldUpError, JobInterruptedError, JobState
from service.core.jobs.prediction_job import PREDICTIONS, PredictionRequest
from service.durable_jobs import executor
from service.durable_jobs.client import DurableJobs, open_client
from service.durable_jobs.database import JobsDatabase
from service.durable_jobs.executor import JobExecutor


def test_a_job_is_run_to_its_result(database: JobsDatabase, jobs: EvaluationJobs) -> None:
    job = jobs.enqueue_job(REQUEST)
    assert (job.state, job.request, job.done, job.total) == (JobState.QUEUED, REQUEST, 0, None)
    with running(database, FakeWork()):
        done = finished(jobs, job)
    assert (done.state, done.done, done.total, done.error) == (JobState.SUCCEEDED, 20, 20, None)
    assert done.result == expected_result(20)


def test_a_key_stands_for_one_job_and_one_request(database: JobsDatabase, jobs: EvaluationJobs) -> None:
    del database
    with ThreadPoolExecutor(20) as pool:
        submitted = list(pool.map(lambda _: jobs.enqueue_job(REQUEST, key="the same"), range(20)))
    assert len({job.id for job in submitted}) == len(jobs.list_jobs()) == 1
    with pytest.raises(ConflictError):
        jobs.enqueue_job(dataclasses.replace(REQUEST, split="train"), key="the same")
    assert jobs.find_by_key("the same") == submitted[0]
    assert jobs.find_by_key("nobody's") is None
    assert jobs.enqueue_job(REQUEST, key="another").id != submitted[0].id
    assert jobs.enqueue_job(REQUEST).id != jobs.enqueue_job(REQUEST).id


def test_a_key_stands_for_what_was_said_and_not_for_what_it_means_by_now(
    sqlite_database: JobsDatabase,
) -> None:
    said = dataclasses.replace(REQUEST, reference="fake")
    with open_jobs(sqlite_database) as jobs:
        job = jobs.enqueue_job(said, key="mine")
        newer = ModelVersion("fake", 4)
        assert jobs.enqueue_job(dataclasses.replace(said, version=newer), key="mine") == job
        with pytest.raises(ConflictError):
            jobs.enqueue_job(REQUEST, key="mine")


def test_kinds_of_jobs_do_not_see_each_other_and_share_no_key(sqlite_database: JobsDatabase) -> None:
    request = PredictionRequest(ModelVersion("fake", 3), "camera", "masks", "labels", "fake")
    with open_jobs(sqlite_database) as jobs, open_client(sqlite_database) as client:
        predictions = DurableJobs(client, PREDICTIONS)
        evaluation = jobs.enqueue_job(REQUEST, key="the same")
        assert predictions.find_by_key("the same") is None
        with pytest.raises(ConflictError):
            predictions.enqueue_job(request, key="the same")
        prediction = predictions.enqueue_job(request)
        assert predictions.get_job(prediction.id).request == request
        assert [job.id for job in predictions.list_jobs()] == [prediction.id]
        assert [job.id for job in jobs.list_jobs()] == [evaluation.id]
        for look in (predictions.get_job, predictions.cancel_job):
            with pytest.raises(NotFoundError):
                look(evaluation.id)


def test_every_job_is_listed_and_no_part_of_one(database: JobsDatabase, jobs: EvaluationJobs) -> None:
    ids = {jobs.enqueue_job(REQUEST).id for _ in range(2)}
    with running(database, FakeWork()):
        for job in jobs.list_jobs():
            finished(jobs, job)
    assert {job.id for job in jobs.list_jobs()} == ids


@pytest.mark.parametrize("job_id", ["0" * 20, "", "../x", "0" * 20 + "-s0", "\x00", "0" * 20 + "\n"])
def test_what_is_no_id_is_not_found(sqlite_database: JobsDatabase, job_id: str) -> None:
    with open_jobs(sqlite_database) as jobs:
        for look in (jobs.get_job, jobs.cancel_job):
            with pytest.raises(NotFoundError):
                look(job_id)


def test_a_queued_job_is_cancelled_before_it_begins(database: JobsDatabase, jobs: EvaluationJobs) -> None:
    job = jobs.enqueue_job(REQUEST)
    assert jobs.cancel_job(job.id).state is JobState.CANCELLED
    seen: list[int] = []
    with running(database, FakeWork(on_image=seen.append)):
        assert finished(jobs, jobs.enqueue_job(REQUEST)).state is JobState.SUCCEEDED
    assert len(seen) == 20
    assert jobs.get_job(job.id).state is JobState.CANCELLED


def test_a_running_job_is_cancelled_within_one_step(database: JobsDatabase, jobs: EvaluationJobs) -> None:
    reached, go_on = threading.Event(), threading.Event()
    seen: list[int] = []

    def on_image(image: int) -> None:
        seen.append(image)
        if image == 4:
            reached.set()
            assert go_on.wait(PATIENCE_S)

    with running(database, FakeWork(on_image=on_image)):
        job = jobs.enqueue_job(REQUEST)
        assert reached.wait(PATIENCE_S)
        assert jobs.cancel_job(job.id).state is JobState.CANCELLED
        go_on.set()
        # Whatever is still queued of the cancelled job would be run before the next one.
        assert finished(jobs, jobs.enqueue_job(REQUEST)).result == expected_result(20)
    assert seen[:6] == [0, 1, 2, 3, 4, 5]
    assert len(seen) == 6 + 20
    assert jobs.cancel_job(job.id).state is JobState.CANCELLED


def test_a_job_that_is_cancelled_while_its_report_is_made_stores_none(
    sqlite_database: JobsDatabase,
) -> None:
    work = FakeWork()
    with open_jobs(sqlite_database) as jobs, running(sqlite_database, work):
        go_on = threading.Event()
        work.on_report = lambda: wait_for(go_on)
        job = jobs.enqueue_job(REQUEST)
        when(jobs, job, lambda seen: seen.done == seen.total)
        assert jobs.cancel_job(job.id).state is JobState.CANCELLED
        go_on.set()
        other = jobs.enqueue_job(REQUEST)
        assert finished(jobs, other).state is JobState.SUCCEEDED
    assert work.stored == [other.id]


def test_a_job_that_has_ended_cannot_be_cancelled(database: JobsDatabase, jobs: EvaluationJobs) -> None:
    with running(database, FakeWork()):
        job = finished(jobs, jobs.enqueue_job(REQUEST))
    assert jobs.cancel_job(job.id) == job


def test_a_job_without_pictures_succeeds(sqlite_database: JobsDatabase) -> None:
    """Its shards are none, which must not be taken for all workflows of the database."""
    with open_jobs(sqlite_database) as jobs, running(sqlite_database, FakeWork(images=0)):
        done = finished(jobs, jobs.enqueue_job(REQUEST))
        assert (done.state, done.done, done.total) == (JobState.SUCCEEDED, 0, 0)
        assert finished(jobs, jobs.enqueue_job(REQUEST)).result == expected_result(0)


def test_a_job_that_cannot_be_planned_fails_with_the_reason(
    database: JobsDatabase, jobs: EvaluationJobs
) -> None:
    with running(database, FakeWork()):
        job = finished(jobs, jobs.enqueue_job(dataclasses.replace(REQUEST, dataset="letters")))
    assert (job.state, job.error) == (JobState.FAILED, "no data set 'letters'")


def test_a_worker_that_is_stopped_lays_its_job_down_and_takes_it_up_again(
    database: JobsDatabase, jobs: EvaluationJobs, tmp_path: Path
) -> None:
    reached = threading.Event()
    work = FakeWork(
        on_image=lambda image: reached.set() if image == 7 else None, journal=tmp_path / "journal"
    )
    with running(database, work):
        job = jobs.enqueue_job(REQUEST)
        assert reached.wait(PATIENCE_S)
    assert jobs.get_job(job.id).state is JobState.RUNNING
    with running(database, FakeWork(journal=tmp_path / "journal")):
        assert finished(jobs, job).result == expected_result(20)
    counted = (tmp_path / "journal").read_text().split()
    assert len(counted) <= 20 + 1  # a step of two pictures was begun again at most
    assert set(counted) == {str(image) for image in range(20)}


def test_a_worker_of_another_name_takes_up_what_is_left_in_its_file(sqlite_database: JobsDatabase) -> None:
    """A container that is made anew is called otherwise."""
    reached = threading.Event()
    work = FakeWork(on_image=lambda image: reached.set() if image == 7 else None)
    with open_jobs(sqlite_database) as jobs:
        job = jobs.enqueue_job(REQUEST)
        with running(sqlite_database, work, "a"):
            assert reached.wait(PATIENCE_S)
        assert jobs.get_job(job.id).state is JobState.RUNNING
        with running(sqlite_database, FakeWork(), "b"):
            assert finished(jobs, job).result == expected_result(20)


@pytest.mark.soak
def test_to_stop_a_worker_is_no_rescue_however_often(sqlite_database: JobsDatabase) -> None:
    with open_jobs(sqlite_database) as jobs:
        job = jobs.enqueue_job(REQUEST)
        for _ in range(5):
            reached = threading.Event()

            def on_image(_image: int, reached: threading.Event = reached) -> None:
                reached.set()
                raise JobInterruptedError

            with running(sqlite_database, FakeWork(on_image=on_image)):
                assert reached.wait(PATIENCE_S)
        with running(sqlite_database, FakeWork()):
            assert finished(jobs, job).result == expected_result(20)


def test_a_worker_that_is_killed_takes_its_job_up_again_when_it_is_started_again(
    sqlite_database: JobsDatabase, tmp_path: Path
) -> None:
    with open_jobs(sqlite_database) as jobs:
        job = jobs.enqueue_job(REQUEST)
        assert WorkerProcess(sqlite_database, tmp_path / "journal", dies_at=9).died() == -9
        assert jobs.get_job(job.id).state is JobState.RUNNING
        with running(sqlite_database, FakeWork(journal=tmp_path / "journal")):
            assert finished(jobs, job).result == expected_result(20)
    counted = [int(line) for line in (tmp_path / "journal").read_text().split()]
    assert sorted(counted) == sorted([*range(20), 8])  # the step of 8 and 9 was begun again, no other


@pytest.mark.soak
def test_pictures_that_kill_every_worker_fail_the_job_after_three_rescues(
    sqlite_database: JobsDatabase, tmp_path: Path
) -> None:
    with open_jobs(sqlite_database) as jobs:
        job = jobs.enqueue_job(REQUEST)
        for _ in range(4):
            assert WorkerProcess(sqlite_database, tmp_path / "journal", dies_at=9).died() == -9
        survivor = WorkerProcess(sqlite_database, tmp_path / "journal", dies_at=9).wait_until_ready()
        job = finished(jobs, job)
        assert survivor.stop() == 0
    assert job.state is JobState.FAILED
    assert "the workers died 4 times at the same pictures" in str(job.error)


@pytest.mark.soak
def test_what_fails_for_the_moment_is_tried_again(sqlite_database: JobsDatabase) -> None:
    failures = iter([True])

    def on_image(image: int) -> None:
        if image == 3 and next(failures, False):
            raise ConnectionError("the device is away")

    with open_jobs(sqlite_database) as jobs, running(sqlite_database, FakeWork(on_image=on_image)):
        assert finished(jobs, jobs.enqueue_job(REQUEST)).result == expected_result(20)


def test_a_step_that_is_held_up_waits_until_what_it_needs_is_back(
    sqlite_database: JobsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_PAUSES_S", [0.0] * 9)
    failures = iter(range(9))

    def on_image(image: int) -> None:
        if image == 3 and next(failures, None) is not None:
            raise JobHeldUpError("no worker could be started")

    with open_jobs(sqlite_database) as jobs, running(sqlite_database, FakeWork(on_image=on_image)):
        assert finished(jobs, jobs.enqueue_job(REQUEST)).result == expected_result(20)


def test_what_holds_a_step_up_for_good_is_the_reason_of_the_failure(
    sqlite_database: JobsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_PAUSES_S", [0.0, 0.0])
    seen: list[int] = []

    def on_image(image: int) -> None:
        seen.append(image)
        raise JobHeldUpError("no worker could be started")

    with open_jobs(sqlite_database) as jobs, running(sqlite_database, FakeWork(on_image=on_image)):
        job = finished(jobs, jobs.enqueue_job(REQUEST))
    assert (job.state, job.error) == (JobState.FAILED, "given up after 0 s: no worker could be started")
    assert seen[:3] == [0, 0, 0]  # the next part may have begun before the job heard of it


def test_a_job_that_is_held_up_can_be_cancelled_and_does_not_keep_its_worker_from_stopping(
    sqlite_database: JobsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_PAUSES_S", [10 * PATIENCE_S])
    reached = threading.Semaphore(0)

    def on_image(_image: int) -> None:
        reached.release()
        raise JobHeldUpError("no worker could be started")

    with open_jobs(sqlite_database) as jobs:
        with running(sqlite_database, FakeWork(on_image=on_image)):
            cancelled, job = jobs.enqueue_job(REQUEST), jobs.enqueue_job(REQUEST)
            assert reached.acquire(timeout=PATIENCE_S)
            jobs.cancel_job(cancelled.id)
            assert reached.acquire(timeout=PATIENCE_S)
        with running(sqlite_database, FakeWork()):
            assert finished(jobs, job).result == expected_result(20)


def test_progress_is_seen_while_a_job_runs(sqlite_database: JobsDatabase) -> None:
    go_on = threading.Event()

    def on_image(image: int) -> None:
        assert image < 12 or go_on.wait(PATIENCE_S)

    with open_jobs(sqlite_database) as jobs, running(sqlite_database, FakeWork(on_image=on_image)):
        job = jobs.enqueue_job(REQUEST)
        seen = when(jobs, job, lambda seen: seen.done == 12)
        assert (seen.state, seen.total) == (JobState.RUNNING, 20)
        go_on.set()
        assert finished(jobs, job).done == 20


def test_a_job_that_began_with_other_libraries_fails_instead_of_mixing(
    sqlite_database: JobsDatabase,
) -> None:
    reached = threading.Event()
    work = FakeWork(on_image=lambda image: reached.set() if image == 3 else None)
    with open_jobs(sqlite_database) as jobs:
        with running(sqlite_database, work):
            job = jobs.enqueue_job(REQUEST)
            assert reached.wait(PATIENCE_S)
        with running(sqlite_database, FakeWork(), environment={"fake": 2}):
            job = finished(jobs, job)
    assert job.state is JobState.FAILED
    assert (
        job.error == "the job began with other libraries, or on another processor or engine: submit it again"
    )


def wait_for(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)


def test_a_rest_that_fails_is_no_failure_of_the_job(
    sqlite_database: JobsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = FakeWork()

    def fail() -> None:
        work.releases.release()
        raise ConnectionError("the device is away")

    monkeypatch.setattr(work, "release_idle", fail)
    with open_jobs(sqlite_database) as jobs, running(sqlite_database, work):
        assert finished(jobs, jobs.enqueue_job(REQUEST)).result == expected_result(20)
        assert work.releases.acquire(timeout=PATIENCE_S)
        assert finished(jobs, jobs.enqueue_job(REQUEST)).result == expected_result(20)


def test_work_is_released_after_a_job_whatever_came_out(sqlite_database: JobsDatabase) -> None:
    go_on = threading.Event()
    work = FakeWork()
    with open_jobs(sqlite_database) as jobs, running(sqlite_database, work):
        finished(jobs, jobs.enqueue_job(REQUEST))
        assert work.releases.acquire(timeout=PATIENCE_S)
        finished(jobs, jobs.enqueue_job(dataclasses.replace(REQUEST, dataset="letters")))
        assert work.releases.acquire(timeout=PATIENCE_S)
        work.on_image = lambda _image: wait_for(go_on)
        job = jobs.enqueue_job(REQUEST)
        when(jobs, job, lambda seen: seen.state is JobState.RUNNING)
        jobs.cancel_job(job.id)
        go_on.set()
        assert work.releases.acquire(timeout=PATIENCE_S)


def test_a_worker_releases_all_when_nothing_has_run_since_the_last_check_whatever_it_was(
    sqlite_database: JobsDatabase,
) -> None:
    sqlite_database.prepare()
    work = FakeWork()
    with open_client(sqlite_database) as client:
        worker = JobExecutor(sqlite_database, client, [work], environment={}, executor_id="worker")
        with worker._counted():  # a shard of another one's job, for example
            worker.release_when_idle()
            assert not work.releases.acquire(blocking=False)
        with worker._counted():
            pass
        worker.release_when_idle()
        assert not work.releases.acquire(blocking=False)
        worker.release_when_idle()
        assert work.releases.acquire(blocking=False)


@pytest.mark.soak
def test_a_shard_that_fails_ends_the_whole_job_with_its_reason(sqlite_database: JobsDatabase) -> None:
    seen: list[int] = []

    def on_image(image: int) -> None:
        seen.append(image)
        if image == 5:
            raise JobError("5.png: broken")

    with open_jobs(sqlite_database) as jobs, running(sqlite_database, FakeWork(on_image=on_image)):
        job = finished(jobs, jobs.enqueue_job(REQUEST))
        assert (job.state, job.error) == (JobState.FAILED, "5.png: broken")
        assert finished(jobs, jobs.enqueue_job(REQUEST)).error == "5.png: broken"
    assert seen.count(5) == 2  # what cannot help is not tried again


def test_a_defect_is_told_without_its_details(
    sqlite_database: JobsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(executor._RETRIES, "max_attempts", 1)

    def on_image(image: int) -> None:
        raise KeyError(f"/secret/path/{image}")

    with open_jobs(sqlite_database) as jobs, running(sqlite_database, FakeWork(on_image=on_image)):
        job = finished(jobs, jobs.enqueue_job(REQUEST))
    assert (job.state, job.error) == (JobState.FAILED, "the service failed, its log tells why")


@pytest.mark.soak
def test_jobs_that_ended_long_ago_are_forgotten(sqlite_database: JobsDatabase) -> None:
    with open_jobs(sqlite_database) as jobs:
        with running(sqlite_database, FakeWork()):
            ended = finished(jobs, jobs.enqueue_job(REQUEST))
        queued = jobs.enqueue_job(REQUEST)
        with running(sqlite_database, FakeWork()):
            finished(jobs, queued)
            assert {job.id for job in jobs.list_jobs()} == {ended.id, queued.id}
        with running(sqlite_database, FakeWork(), keep_days=-1.0):  # as if it were tomorrow
            assert jobs.list_jobs() == ()
