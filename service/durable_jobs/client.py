"""The jobs as seen from outside: whoever can reach the database can submit, list and cancel them."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dbos import DBOSClient

from service.core.errors import ConflictError, NotFoundError
from service.core.jobs.evaluation_job import EvaluationJob, JobRequest
from service.durable_jobs.database import APPLICATION, SCHEMA, SERIALIZER, JobsDatabase, database_errors
from service.durable_jobs.records import JOB, JOBS_QUEUE, job_of

_ID_BYTES = 10
_ID = re.compile(r"[0-9a-f]{20}", re.ASCII)


class DurableJobs:
    """The core's ``EvaluationJobs`` in a database; see there for what the methods do.

    Args:
        client: DBOS's view of a prepared database.
    """

    def __init__(self, client: DBOSClient) -> None:
        self._client = client

    def submit(self, request: JobRequest, *, key: str | None = None) -> EvaluationJob:
        """Queue a job, or return the one of this key."""
        job_id = secrets.token_hex(_ID_BYTES) if key is None else _id_of_key(key)
        with database_errors():
            self._client.enqueue(
                {"workflow_name": JOB, "queue_name": JOBS_QUEUE, "workflow_id": job_id}, request.to_json()
            )
        job = self.get(job_id)
        # A second row of one id is silently dropped, whatever was in it: the first one decides.
        if job.request.said != request.said:
            raise ConflictError("this Idempotency-Key was used for another request")
        return job

    def of_key(self, key: str) -> EvaluationJob | None:
        """Return the job of a key."""
        with suppress(NotFoundError):
            return self.get(_id_of_key(key))
        return None

    def get(self, job_id: str) -> EvaluationJob:
        """Return a job."""
        if not _ID.fullmatch(job_id):  # shards have rows, too
            raise NotFoundError("there is no such job")
        with database_errors():
            rows = self._client.list_workflows(workflow_ids=[job_id], name=JOB)
        job = job_of(rows[0]) if rows else None
        if job is None:
            raise NotFoundError("there is no such job")
        return job

    def list(self) -> tuple[EvaluationJob, ...]:
        """Return all jobs, the newest first."""
        with database_errors():
            rows = self._client.list_workflows(name=JOB, sort_desc=True)
        return tuple(job for row in rows if (job := job_of(row)) is not None)

    def cancel(self, job_id: str) -> EvaluationJob:
        """Stop a job before its next step."""
        self.get(job_id)
        with database_errors():
            self._client.cancel_workflow(job_id, cancel_children=True)
        return self.get(job_id)


@contextmanager
def open_client(database: JobsDatabase, *, patient: bool = False) -> Iterator[DBOSClient]:
    """Connect to a prepared database.

    Args:
        database: the database.
        patient: a call waits as long as the database is away, instead of failing.

    Raises:
        BusyError: it does not answer.
    """
    with database_errors():
        client = DBOSClient(
            system_database_url=database.url,
            dbos_system_schema=SCHEMA,
            serializer=SERIALIZER,
            application_name=APPLICATION,
            retry_connection_errors=patient,
        )
    try:
        yield client
    finally:
        client.destroy()


def _id_of_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[: 2 * _ID_BYTES]
