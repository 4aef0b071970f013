"""How a job looks in the database: one row for the job, one for each shard, and what is noted beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dbos import DBOSClient, PortableWorkflowError, WorkflowStatus

from service.core.jobs.evaluation_job import EvaluationJob, JobRequest, JobResult, JobState, Progress

JOBS_QUEUE = "jobs"
JOB = "evaluate"
"""Name of the workflow of a job."""

SHARD = "evaluate_shard"
"""Name of the workflow of a shard."""

UNFINISHED = ("ENQUEUED", "PENDING")
"""Status of what is still to be done."""

_STATES: Mapping[str, JobState] = {
    "ENQUEUED": JobState.QUEUED,
    "DELAYED": JobState.QUEUED,
    "PENDING": JobState.RUNNING,
    "SUCCESS": JobState.SUCCEEDED,
    "ERROR": JobState.FAILED,
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
}


def shard_id(job_id: str, index: int) -> str:
    """Return the id of one shard of a job."""
    return f"{job_id}-s{index}"


def job_of(row: WorkflowStatus) -> EvaluationJob | None:
    """Return what a row means; None when somebody else has written it."""
    if not isinstance(row.input, dict):  # DBOS returns what it cannot read as it is
        return None
    noted = row.attributes or {}
    state = job_state(row.status, has_begun=bool(row.recovery_attempts) or "begun_at" in noted)
    result = JobResult.from_json(row.output) if row.output is not None else None
    return EvaluationJob(
        id=row.workflow_id,
        request=JobRequest.from_json(row.input["args"][0]),
        state=state,
        done=noted.get("done", 0) if result is None else noted["total"],
        total=noted.get("total"),
        error=message_of(row.error),
        result=result,
    )


def job_state(status: str, *, has_begun: bool) -> JobState:
    """Return where a job stands: one whose worker died waits for another one, but is not queued again."""
    state = _STATES[status]
    return JobState.RUNNING if state is JobState.QUEUED and has_begun else state


def progress_of(row: WorkflowStatus) -> Progress:
    """Return how far a job or shard is."""
    noted: Mapping[str, Any] = row.attributes or {}
    return Progress(noted.get("done", 0), noted.get("begun_at"), noted.get("rescues", 0))


def message_of(error: Exception | None) -> str | None:
    """Return why a job or shard failed."""
    if error is None:
        return None
    return error.message if isinstance(error, PortableWorkflowError) else str(error)


class ProgressNote:
    """The progress of a job or shard, noted beside its row: in the database before anything relies on it.

    Args:
        client: of the database.
        workflow_id: of the row.
    """

    def __init__(self, client: DBOSClient, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        self._client = client
        (row,) = client.list_workflows(workflow_ids=[workflow_id], load_input=False, load_output=False)
        self._progress = progress_of(row)

    def begin(self) -> None:
        """Begin, or begin again; see ``Progress``.

        Raises:
            JobError: it was begun again at this place too often.
        """
        self._write(self._progress.begin())

    def advance(self, done: int) -> None:
        """Note that so many pictures are stored."""
        self._write(self._progress.advance(done))

    def lay_down(self) -> None:
        """Note that the worker stopped on purpose."""
        self._write(self._progress.lay_down())

    def _write(self, progress: Progress) -> None:
        if progress != self._progress:
            self._client.update_workflow_attributes(self.workflow_id, asdict(progress), merge=True)
        self._progress = progress
