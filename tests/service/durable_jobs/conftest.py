"""Databases for jobs: a file each, or a new one on a Postgres server that the tests start themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from job_worker import open_jobs
from postgres_server import PostgresServer, find_postgres, postgres_server

from service.core.jobs.evaluation_job import EvaluationJobs
from service.durable_jobs.database import JobsDatabase


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    programs = find_postgres()
    if programs is None:
        pytest.skip("Postgres is not installed (Debian: postgresql)")
    with postgres_server(programs) as server:
        yield server


@pytest.fixture
def sqlite_database(tmp_path: Path) -> JobsDatabase:
    return JobsDatabase.at(None, tmp_path / "state")


@pytest.fixture
def postgres_database(postgres: PostgresServer) -> JobsDatabase:
    return JobsDatabase(postgres.new_database())


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.soak)])
def database(request: pytest.FixtureRequest) -> JobsDatabase:
    found: JobsDatabase = request.getfixturevalue(f"{request.param}_database")
    return found


@pytest.fixture
def jobs(database: JobsDatabase) -> Iterator[EvaluationJobs]:
    with open_jobs(database) as opened:
        yield opened
