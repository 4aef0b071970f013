"""Whose the database is, what it refuses, and how it fails."""

from __future__ import annotations

import base64
import os
import pickle
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from job_worker import PATIENCE_S, REQUEST, FakeWork, expected_result, finished, open_jobs, running
from sqlalchemy.exc import DBAPIError

from service.core.errors import BusyError, NotFoundError, StorageFullError
from service.core.jobs.evaluation_job import EVALUATIONS, EvaluationJobs
from service.core.jobs.job import JobState
from service.durable_jobs.database import SCHEMA, JobsDatabase, database_errors
from service.durable_jobs.errors import JobsUnavailableError
from service.durable_jobs.executor import JobExecutor
from service.durable_jobs.records import shard_workflow


class Marker:
    """Whose unpickling would leave a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self._path),)


def pickled(path: Path) -> str:
    return base64.b64encode(pickle.dumps(Marker(path))).decode()


def table_of(database: JobsDatabase, name: str = "workflow_status") -> str:
    return name if database.folder else f"{SCHEMA}.{name}"


def make_pickle(database: JobsDatabase, job_id: str, value: str) -> None:
    statements = (
        f"UPDATE {table_of(database, 'workflow_input')} SET inputs = :value WHERE workflow_uuid = :id",
        f"UPDATE {table_of(database)} SET serialization = 'py_pickle' WHERE workflow_uuid = :id",
    )
    engine = database.engine()
    try:
        with engine.begin() as connection:
            for statement in statements:
                assert connection.execute(sa.text(statement), {"value": value, "id": job_id}).rowcount == 1
    finally:
        engine.dispose()


def drop_guards(database: JobsDatabase) -> None:
    """Do what somebody does who can write to the database at will."""
    engine = database.engine()
    try:
        with engine.begin() as connection:
            if database.folder:
                connection.execute(sa.text("DROP TRIGGER no_pickle_update_workflow_status"))
            else:
                connection.execute(
                    sa.text(f"ALTER TABLE {table_of(database)} DROP CONSTRAINT no_pickle_workflow_status")
                )
    finally:
        engine.dispose()


def test_the_database_refuses_a_row_that_claims_to_be_a_pickle(
    database: JobsDatabase, jobs: EvaluationJobs, tmp_path: Path
) -> None:
    job = jobs.enqueue_job(REQUEST)
    with pytest.raises(DBAPIError, match=r"no_pickle|no pickles"):
        make_pickle(database, job.id, pickled(tmp_path / "marker"))


def test_a_worker_refuses_a_database_that_holds_a_pickle(
    database: JobsDatabase, jobs: EvaluationJobs, tmp_path: Path
) -> None:
    job = jobs.enqueue_job(REQUEST)
    drop_guards(database)
    make_pickle(database, job.id, pickled(tmp_path / "marker"))
    with pytest.raises(JobsUnavailableError, match="holds a pickle"), running(database, FakeWork()):
        pass
    assert not (tmp_path / "marker").exists()


def test_a_pickle_that_appears_under_a_running_worker_is_not_unpickled(
    sqlite_database: JobsDatabase, tmp_path: Path
) -> None:
    go_on = threading.Event()
    work = FakeWork(on_image=lambda _image: go_on.wait(PATIENCE_S))
    with open_jobs(sqlite_database) as jobs, running(sqlite_database, work):
        drop_guards(sqlite_database)
        first, second = jobs.enqueue_job(REQUEST), jobs.enqueue_job(REQUEST)  # which waits for the first one
        make_pickle(sqlite_database, second.id, pickled(tmp_path / "marker"))
        go_on.set()
        assert finished(jobs, first).state is JobState.SUCCEEDED
        assert finished(jobs, jobs.enqueue_job(REQUEST)).state is JobState.SUCCEEDED
        assert second.id not in {job.id for job in jobs.list_jobs()}
        with pytest.raises(NotFoundError):
            jobs.get_job(second.id)
    assert not (tmp_path / "marker").exists()


def test_only_the_owner_can_read_the_file(sqlite_database: JobsDatabase) -> None:
    sqlite_database.prepare()
    folder = sqlite_database.folder
    assert folder is not None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_preparing_twice_changes_nothing(database: JobsDatabase) -> None:
    database.prepare()
    database.prepare()


def test_two_processes_can_prepare_a_database_at_once(
    postgres_database: JobsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they take turns, both see that a guard is missing before one of them adds it."""
    look, both_have_looked = sa.Inspector.get_check_constraints, threading.Barrier(2)

    def look_together(self: sa.Inspector, *args: Any, **kwargs: Any) -> Any:
        seen = look(self, *args, **kwargs)
        with suppress(threading.BrokenBarrierError):
            both_have_looked.wait(0.2)
        return seen

    postgres_database.prepare()
    drop_guards(postgres_database)
    monkeypatch.setattr(sa.Inspector, "get_check_constraints", look_together)
    with ThreadPoolExecutor(2) as pool:
        for preparing in [pool.submit(postgres_database.prepare) for _ in range(2)]:
            preparing.result()


def test_a_second_process_on_the_same_folder_is_refused(sqlite_database: JobsDatabase) -> None:
    with (
        sqlite_database.owned(),
        pytest.raises(JobsUnavailableError, match="another process runs the jobs of"),
        sqlite_database.owned(),
    ):
        pass
    with sqlite_database.owned():
        pass


@pytest.mark.parametrize("damage", ["no database at all, but long enough", None])
def test_a_damaged_file_is_named_with_what_to_do(sqlite_database: JobsDatabase, damage: str | None) -> None:
    with open_jobs(sqlite_database) as jobs:
        for _ in range(50):
            jobs.enqueue_job(REQUEST)
    folder = sqlite_database.folder
    assert folder is not None
    path = folder / "jobs.sqlite"
    if damage is not None:
        path.write_text(damage * 100)
    else:
        content = bytearray(path.read_bytes())
        content[4096 : 2 * 4096] = b"\xff" * 4096
        path.write_bytes(content)
    with pytest.raises(JobsUnavailableError, match=r"is damaged .*: move the file away"):
        sqlite_database.prepare()


def test_a_file_that_somebody_keeps_locked_is_not_called_damaged(
    sqlite_database: JobsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.durable_jobs.database._LOCKED_S", 0.0)
    folder = sqlite_database.folder
    assert folder is not None
    folder.mkdir(mode=0o700)
    with closing(sqlite3.connect(folder / "jobs.sqlite")) as somebody:
        somebody.execute("CREATE TABLE other (x)")
        somebody.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JobsUnavailableError, match="cannot be used: database is locked"):
            sqlite_database.prepare()


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    database = JobsDatabase("postgresql://user:secret@127.0.0.1:1/jobs")
    with pytest.raises(JobsUnavailableError) as failure:
        database.prepare()
    assert "127.0.0.1:1/jobs" in str(failure.value)
    assert "secret" not in str(failure.value)


def test_a_full_disk_is_told_from_a_database_that_is_away() -> None:
    for reason, expected in (("database or disk is full", StorageFullError), ("disk I/O error", BusyError)):
        with pytest.raises(expected), database_errors():
            raise DBAPIError("INSERT", {}, sqlite3.OperationalError(reason))


class Disk:
    """What a database's disk has room for.

    Args:
        database: an SQLite file.
    """

    def __init__(self, database: JobsDatabase) -> None:
        self._database = database

    def fill(self, event: str, *, when: str = "TRUE") -> None:
        """Have no room for a kind of statement any more."""
        self._execute(
            f"CREATE TRIGGER full BEFORE {event} WHEN {when} "
            "BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        )

    def make_room(self) -> None:
        """Have room again."""
        self._execute("DROP TRIGGER full")

    def _execute(self, statement: str) -> None:
        engine = self._database.engine()
        try:
            with engine.begin() as connection:
                connection.execute(sa.text(statement))
        finally:
            engine.dispose()


def test_a_worker_that_the_database_failed_takes_its_job_up_again_however_often(
    sqlite_database: JobsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for a step and later is not; no process died of that."""
    monkeypatch.setattr("service.core.jobs.job.MAX_RESCUES", 0)
    disk, failures = Disk(sqlite_database), threading.Semaphore(0)
    filled: list[int] = []

    def on_image(image: int) -> None:
        if image == 3:
            if not filled:
                disk.fill("INSERT ON operation_outputs")
                filled.append(image)
            failures.release()

    with open_jobs(sqlite_database) as jobs, running(sqlite_database, FakeWork(on_image=on_image)):
        job = jobs.enqueue_job(REQUEST)
        for _ in range(3):
            assert failures.acquire(timeout=PATIENCE_S)
        disk.make_room()
        assert finished(jobs, job).result == expected_result(20)


@pytest.mark.parametrize("name", [EVALUATIONS.name, shard_workflow(EVALUATIONS)])
def test_an_outcome_that_could_not_be_noted_is_noted_later(
    sqlite_database: JobsDatabase, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("service.core.jobs.job.MAX_RESCUES", 0)
    disk, queued_again = Disk(sqlite_database), threading.Semaphore(0)
    queue_again = JobExecutor._requeue

    def tell(self: JobExecutor, workflow_id: str, executor_id: str) -> None:
        queue_again(self, workflow_id, executor_id)
        queued_again.release()

    monkeypatch.setattr(JobExecutor, "_requeue", tell)
    sqlite_database.prepare()
    disk.fill("UPDATE ON workflow_status", when=f"NEW.status = 'SUCCESS' AND NEW.name = '{name}'")
    with open_jobs(sqlite_database) as jobs, running(sqlite_database, FakeWork()):
        job = jobs.enqueue_job(REQUEST)
        for _ in range(2):
            assert queued_again.acquire(timeout=PATIENCE_S)
        disk.make_room()
        assert finished(jobs, job).result == expected_result(20)
