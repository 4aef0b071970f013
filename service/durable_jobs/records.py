"""Rows of the jobs database: one for each job and one for each shard, with attributes for the progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dbos import DBOSClient, PortableWorkflowError, WorkflowStatus

from service.core.jobs.job import Job, JobKind, JobProgress, JobState, RequestT, ResultT

AnyKind = JobKind[Any, Any]

JOBS_QUEUE = "jobs"
UNFINISHED = ("ENQUEUED", "PENDING")
"""Statuses of workflows that are not done."""

_STATES: Mapping[str, JobState] = {
    "ENQUEUED": JobState.QUEUED,
    "DELAYED": JobState.QUEUED,
    "PENDING": JobState.RUNNING,
    "SUCCESS": JobState.SUCCEEDED,
    "ERROR": JobState.FAILED,
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
}


def shard_workflow(kind: AnyKind) -> str:
    """Return the workflow name of the shards of a kind of jobs; that of the jobs is the kind's own name."""
    return f"{kind.name}_shard"


def shard_id(job_id: str, index: int) -> str:
    """Return the id of one shard of a job."""
    return f"{job_id}-s{index}"


def job_of(row: WorkflowStatus, kind: JobKind[RequestT, ResultT]) -> Job[RequestT, ResultT] | None:
    """Return the job of a row; None if the row is not of this program."""
    if not isinstance(row.input, dict):  # DBOS returns unreadable input unchanged
        return None
    attributes = row.attributes or {}
    state = job_state(row.status, has_begun=bool(row.recovery_attempts) or "begun_at" in attributes)
    result = kind.result_of(row.output) if row.output is not None else None
    return Job(
        id=row.workflow_id,
        request=kind.request_of(row.input["args"][0]),
        state=state,
        done=attributes.get("done", 0) if result is None else attributes["total"],
        total=attributes.get("total"),
        error=error_message(row.error),
        result=result,
        pictures_per_s=attributes.get("pictures_per_s"),
    )


def job_state(status: str, *, has_begun: bool) -> JobState:
    """Return the state of a job; one that waits for another worker after the death of its own is running."""
    state = _STATES[status]
    return JobState.RUNNING if state is JobState.QUEUED and has_begun else state


def progress_of(row: WorkflowStatus) -> JobProgress:
    """Return the progress of a job or shard."""
    attributes: Mapping[str, Any] = row.attributes or {}
    return JobProgress(
        attributes.get("done", 0),
        attributes.get("begun_at"),
        attributes.get("rescues", 0),
        attributes.get("pictures_per_s"),
    )


def error_message(error: Exception | None) -> str | None:
    """Return the reason of a failure."""
    if error is None:
        return None
    return error.message if isinstance(error, PortableWorkflowError) else str(error)


class StoredProgress:
    """The progress of a job or shard in the attributes of its row; written before the work goes on.

    Args:
        client: of the database.
        workflow_id: of the row.
    """

    def __init__(self, client: DBOSClient, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        self._client = client
        (row,) = client.list_workflows(workflow_ids=[workflow_id], load_input=False, load_output=False)
        self._progress = progress_of(row)

    def record_start(self) -> None:
        """Record a start or restart.

        Raises:
            JobError: too many workers died at the same picture.
        """
        self._write(self._progress.started())

    def record_done(self, images: int, pictures_per_s: float | None = None) -> None:
        """Record that ``images`` pictures are stored, and the pace."""
        self._write(self._progress.advanced(images, pictures_per_s))

    def record_suspension(self) -> None:
        """Record a planned stop."""
        self._write(self._progress.suspended())

    def _write(self, progress: JobProgress) -> None:
        if progress != self._progress:
            self._client.update_workflow_attributes(self.workflow_id, asdict(progress), merge=True)
        self._progress = progress
