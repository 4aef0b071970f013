"""Queues, lists and cancels jobs in the jobs database; works from every process that reaches it."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic

from dbos import DBOSClient
from dbos import error as dbos_errors

from service.core.errors import ConflictError, NotFoundError
from service.core.jobs.job import Job, JobKind, RequestT, ResultT
from service.durable_jobs.database import APPLICATION, SCHEMA, SERIALIZER, JobsDatabase, database_errors
from service.durable_jobs.records import JOBS_QUEUE, job_of

_ID_BYTES = 10
_ID = re.compile(r"[0-9a-f]{20}", re.ASCII)
_KEY_IS_USED = "this Idempotency-Key was used for another request"


class DurableJobs(Generic[RequestT, ResultT]):
    """``Jobs`` in a database.

    Args:
        client: DBOS client of a prepared database.
        kind: of these jobs.
    """

    def __init__(self, client: DBOSClient, kind: JobKind[RequestT, ResultT]) -> None:
        self._client = client
        self._kind = kind

    def enqueue_job(self, request: RequestT, *, key: str | None = None) -> Job[RequestT, ResultT]:
        """Queue a job, or return the job of this key."""
        job_id = secrets.token_hex(_ID_BYTES) if key is None else _id_of_key(key)
        try:
            with database_errors():
                self._client.enqueue(
                    {"workflow_name": self._kind.name, "queue_name": JOBS_QUEUE, "workflow_id": job_id},
                    request.to_json(),
                )
        except dbos_errors.DBOSConflictingWorkflowError as error:  # the key belongs to a job of another kind
            raise ConflictError(_KEY_IS_USED) from error
        job = self.get_job(job_id)
        # DBOS silently drops a second row of the same id and kind, so the first request counts.
        if job.request.client_fields != request.client_fields:
            raise ConflictError(_KEY_IS_USED)
        return job

    def find_by_key(self, key: str) -> Job[RequestT, ResultT] | None:
        """Return the job that was queued with a key, or None."""
        return self._find(_id_of_key(key))

    def get_job(self, job_id: str) -> Job[RequestT, ResultT]:
        """Return a job."""
        if not _ID.fullmatch(job_id):  # the id of a shard, for example
            raise NotFoundError("there is no such job")
        job = self._find(job_id)
        if job is None:
            raise NotFoundError("there is no such job")
        return job

    def list_jobs(self) -> tuple[Job[RequestT, ResultT], ...]:
        """Return all jobs, newest first."""
        with database_errors():
            rows = self._client.list_workflows(name=self._kind.name, sort_desc=True)
        return tuple(job for row in rows if (job := job_of(row, self._kind)) is not None)

    def cancel_job(self, job_id: str) -> Job[RequestT, ResultT]:
        """Stop a job before its next step."""
        self.get_job(job_id)
        with database_errors():
            self._client.cancel_workflow(job_id, cancel_children=True)
        return self.get_job(job_id)

    def _find(self, job_id: str) -> Job[RequestT, ResultT] | None:
        with database_errors():
            rows = self._client.list_workflows(workflow_ids=[job_id], name=self._kind.name)
        return job_of(rows[0], self._kind) if rows else None


@contextmanager
def open_client(database: JobsDatabase, *, waits: bool = False) -> Iterator[DBOSClient]:
    """Connect to a prepared database.

    Args:
        database: the database.
        waits: calls wait while the database does not answer, instead of failing.

    Raises:
        BusyError: the database does not answer.
    """
    with database_errors():
        client = DBOSClient(
            system_database_url=database.url,
            dbos_system_schema=SCHEMA,
            serializer=SERIALIZER,
            application_name=APPLICATION,
            retry_connection_errors=waits,
        )
    try:
        yield client
    finally:
        client.destroy()


def _id_of_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[: 2 * _ID_BYTES]
