"""Several workers over one Postgres: they share a job, and take over what a dead one leaves."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
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
from postgres_server import PostgresServer
from sqlalchemy.exc import DBAPIError

from service.durable_jobs.database import JobsDatabase
from service.durable_jobs.errors import JobsUnavailableError
from service.durable_jobs.watcher import Watcher, WorkerLocks


def counted(journal: Path) -> list[int]:
    return [int(line) for line in journal.read_text().split()] if journal.exists() else []


def test_a_worker_that_is_killed_for_good_is_relieved_by_another_one(
    postgres_database: JobsDatabase, tmp_path: Path
) -> None:
    with open_jobs(postgres_database) as jobs:
        job = jobs.enqueue_job(REQUEST)
        victim = WorkerProcess(postgres_database, tmp_path / "journal", executor_id="victim", dies_at=9)
        assert victim.died() == -9
        with running(postgres_database, FakeWork(journal=tmp_path / "journal"), "heir"):
            assert finished(jobs, job).result == expected_result(20)
    assert sorted(counted(tmp_path / "journal")) == sorted([*range(20), 8])


@pytest.mark.soak
def test_two_workers_share_the_shards_of_one_job(postgres_database: JobsDatabase, tmp_path: Path) -> None:
    journals = [tmp_path / "a", tmp_path / "b"]
    with open_jobs(postgres_database) as jobs:
        workers = [
            WorkerProcess(postgres_database, journal, executor_id=journal.name, images=80, image_s=0.05)
            for journal in journals
        ]
        for worker in workers:
            worker.wait_until_ready()
        job = jobs.enqueue_job(REQUEST)
        assert finished(jobs, job).result == expected_result(80)
        assert [worker.stop() for worker in workers] == [0, 0]
    both = [counted(journal) for journal in journals]
    assert all(both)
    assert sorted(both[0] + both[1]) == list(range(80))


@pytest.mark.soak
@pytest.mark.parametrize("first", [0, 1])
def test_whichever_of_two_workers_dies_the_other_one_ends_the_job(
    postgres_database: JobsDatabase, tmp_path: Path, first: int
) -> None:
    with open_jobs(postgres_database) as jobs:
        workers = [
            WorkerProcess(
                postgres_database, tmp_path / name, executor_id=name, images=80, image_s=0.05
            ).wait_until_ready()
            for name in "ab"
        ]
        job = jobs.enqueue_job(REQUEST)
        when(jobs, job, lambda seen: seen.done >= 16)
        workers[first].kill()
        assert finished(jobs, job).result == expected_result(80)
        workers[1 - first].stop()


@pytest.mark.soak
def test_a_worker_that_was_only_asleep_does_no_harm_when_it_wakes_up(
    postgres: PostgresServer, postgres_database: JobsDatabase, tmp_path: Path
) -> None:
    """It sleeps, the database is restarted and with it its lock lost, another one goes on, it wakes up."""
    with open_jobs(postgres_database) as jobs:
        sleeper = WorkerProcess(
            postgres_database, tmp_path / "journal", executor_id="sleeper", image_s=0.2
        ).wait_until_ready()
        job = jobs.enqueue_job(REQUEST)
        when(jobs, job, lambda seen: seen.done >= 2)
        sleeper.pause()
        postgres.stop()
        postgres.start()
    with open_jobs(postgres_database) as jobs:
        with running(postgres_database, FakeWork(), "heir"):
            when(jobs, job, lambda seen: seen.done >= 10)
            sleeper.go_on()
            assert finished(jobs, job).result == expected_result(20)
        sleeper.stop()
        assert jobs.get_job(job.id).result == expected_result(20)


@pytest.mark.soak
def test_a_job_outlives_a_restart_of_the_database(
    postgres: PostgresServer, postgres_database: JobsDatabase
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def on_image(image: int) -> None:
        if image == 5:
            reached.set()
            assert go_on.wait(PATIENCE_S)

    with running(postgres_database, FakeWork(on_image=on_image)):
        with open_jobs(postgres_database) as jobs:
            job = jobs.enqueue_job(REQUEST)
            assert reached.wait(PATIENCE_S)
        postgres.stop()
        go_on.set()
        postgres.start()
        with open_jobs(postgres_database) as jobs:
            assert finished(jobs, job).result == expected_result(20)


def test_a_second_worker_of_the_same_name_is_refused(
    postgres_database: JobsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.durable_jobs.watcher._LOCK_TIMEOUT_S", 0.0)
    first = WorkerLocks(postgres_database.engine(), "the same")
    second = WorkerLocks(postgres_database.engine(), "the same")
    first.hold()
    with pytest.raises(JobsUnavailableError, match="'the same' runs already"):
        second.hold()
    first.close()
    second.hold()
    second.close()


class Recorder:
    """A rescuer that has work of three other workers in its database."""

    def __init__(self) -> None:
        self.rescued: list[str] = []
        self.rested = 0

    def executors_with_work(self) -> frozenset[str]:
        return frozenset({"alive", "dead", "also dead"})

    def requeue_work_of(self, executor_id: str) -> None:
        self.rescued.append(executor_id)

    def requeue_stranded(self) -> None:
        self.rescued.append("stranded")

    def release_when_idle(self) -> None:
        self.rested += 1


def test_only_the_dead_are_relieved(postgres_database: JobsDatabase) -> None:
    alive = WorkerLocks(postgres_database.engine(), "alive")
    own = WorkerLocks(postgres_database.engine(), "own")
    alive.hold()
    own.hold()
    recorder = Recorder()
    Watcher(recorder, own).check_once()
    assert recorder.rescued == ["stranded", "also dead", "dead"]
    assert recorder.rested == 1
    alive.close()
    own.close()


def cut_off(database: JobsDatabase, locks: WorkerLocks) -> None:
    """End a worker's session as a server that is restarted does."""
    assert locks._session is not None
    pid = locks._session.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
    with database.engine().connect() as session:
        session.execute(sa.text("SELECT pg_terminate_backend(:pid, 30000)"), {"pid": pid})
        session.invalidate()


def test_a_lock_that_was_lost_is_taken_again(postgres_database: JobsDatabase) -> None:
    own, other = (WorkerLocks(postgres_database.engine(), name) for name in ("own", "other"))
    own.hold()
    cut_off(postgres_database, own)
    assert own.keep()
    with other.is_dead("own") as dead:
        assert not dead
    own.close()


def test_a_lock_that_somebody_holds_for_a_moment_is_taken_afterwards(
    postgres_database: JobsDatabase,
) -> None:
    own, other = (WorkerLocks(postgres_database.engine(), name) for name in ("own", "other"))
    own.hold()
    recorder = Recorder()
    cut_off(postgres_database, own)
    with other.is_dead("own") as dead:
        assert dead
        for _ in range(20):  # more than a pool has sessions
            assert not own.keep()
        Watcher(recorder, own).check_once()
        assert recorder.rescued == ["stranded"]  # a worker that counts as dead takes over no work
    assert own.keep()
    Watcher(recorder, own).check_once()
    assert len(recorder.rescued) > 2
    own.close()


def test_a_lock_is_taken_again_when_the_database_is_back(
    postgres: PostgresServer, postgres_database: JobsDatabase
) -> None:
    own = WorkerLocks(postgres_database.engine(), "own")
    own.hold()
    postgres.stop()
    for _ in range(20):
        with pytest.raises(DBAPIError):
            own.keep()
    postgres.start()
    assert own.keep()
    own.close()


def test_the_only_worker_of_a_file_takes_over_no_work() -> None:
    recorder = Recorder()
    Watcher(recorder, None).check_once()
    assert (recorder.rescued, recorder.rested) == (["stranded"], 1)
