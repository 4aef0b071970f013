"""Runs jobs as DBOS workflows: results of steps are stored, and a crash repeats at most one step.

The workflow of a job plans, queues shards and waits for them; the workflow of a shard runs steps. Only
workers with equal environments (libraries, processor, engine) share the shards of a job, since outcomes
may depend on them.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

import structlog
from dbos import DBOS, DBOSClient, PortableWorkflowError, SetWorkflowID, StepOptions, WorkflowStatus
from sqlalchemy.exc import DBAPIError

from service.core.jobs.job import (
    JobError,
    JobHeldUpError,
    JobInterruptedError,
    JobPlan,
    JobRequest,
    JobResult,
    JobSteps,
    JsonObject,
    Pace,
)
from service.durable_jobs.database import APPLICATION, SCHEMA, SERIALIZER, JobsDatabase
from service.durable_jobs.dbos_internals import active_workflows, requeue_workflow
from service.durable_jobs.records import (
    JOBS_QUEUE,
    UNFINISHED,
    StoredProgress,
    error_message,
    progress_of,
    shard_id,
    shard_workflow,
)

STEPS_VERSION = 2
"""Version of the steps below. Raise it when they change; jobs that began before then fail."""

_APPLICATION_VERSION = "1"  # fixed: DBOS does not recover workflows of another version

_log = structlog.get_logger()

AnySteps = JobSteps[Any, Any]

P = ParamSpec("P")
T = TypeVar("T")

_RETRIES = StepOptions(
    retries_allowed=True,
    max_attempts=4,
    interval_seconds=1.0,
    backoff_rate=2.0,
    should_retry=lambda error: not isinstance(error, JobError),
)
"""Of steps that end with an unexpected exception."""

_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, *[60.0] * 9)
"""Pauses before a step that is held up runs again; ten minutes together."""

_DEFECT = "the service failed, its log tells why"
_ENDED_BADLY = ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


class _WorkflowSuspendedError(BaseException):
    """Ends a workflow in this process without a result: DBOS stores an ``Exception``, which this is not."""


class _StepInterruptedError(BaseException):
    """Ends a step without a result, in the same way; it runs again when the workflow is recovered."""


class JobExecutor:
    """Runs queued jobs in this process, one shard at a time; a ``Recovery``. At most one per process.

    Args:
        database: prepared, and owned by this process if it is a file.
        client: of the same database; waits while it does not answer.
        steps: the work of each kind of jobs.
        environment: libraries, processor, engine; workers with equal environments share a job.
        executor_id: unique name of this worker, equal after a restart.
        poll_s: interval at which queues and shards are read.
        keep_days: time after which ended jobs are deleted; what they made stays.
    """

    def __init__(
        self,
        database: JobsDatabase,
        client: DBOSClient,
        steps: Sequence[AnySteps],
        *,
        environment: JsonObject,
        executor_id: str,
        poll_s: float = 0.5,
        keep_days: float = 30.0,
    ) -> None:
        self._database = database
        self._client = client
        self._steps = steps
        self._shard_workflows: dict[str, Callable[[JsonObject, JsonObject, str, int], list[JsonObject]]] = {}
        self._executor_id = executor_id
        self._poll_s = poll_s
        self._keep_days = keep_days
        self._shards_queue = f"shards-{_digest({'environment': environment, 'steps': STEPS_VERSION})[:12]}"
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._running = 0
        self._started = 0
        self._started_at_last_check = 0
        self._stranded: frozenset[str] = frozenset()

    def start(self) -> None:
        """Continue unfinished work, in a file that of all workers, then run queued jobs."""
        # Without a handler DBOS writes its own lines to stderr.
        logger = logging.getLogger("dbos")
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
        logger.addFilter(_is_news)
        for steps in self._steps:
            kind = steps.kind
            _register(kind.name, functools.partial(self._run_job, steps))
            self._shard_workflows[kind.name] = _register(
                shard_workflow(kind), functools.partial(self._run_shard, steps)
            )
        self._dbos = DBOS(
            config={
                "name": APPLICATION,
                "system_database_url": self._database.url,
                "dbos_system_schema": SCHEMA,
                "serializer": SERIALIZER,
                "application_version": _APPLICATION_VERSION,
                "executor_id": self._executor_id,
                "run_migrations": False,
                "log_level": "WARNING",
            }
        )
        DBOS.listen_queues([JOBS_QUEUE, self._shards_queue])
        DBOS.launch()
        DBOS.register_queue(
            JOBS_QUEUE, global_concurrency=1, worker_concurrency=1, polling_interval_sec=self._poll_s
        )
        DBOS.register_queue(self._shards_queue, worker_concurrency=1, polling_interval_sec=self._poll_s)
        if self._database.folder is not None:  # this process owns the file, so all other workers are dead
            for executor_id in self.executors_with_work():
                self.requeue_work_of(executor_id)
        self._delete_old_jobs()

    def close(self, *, grace_s: float) -> None:
        """Suspend what runs, after the picture in work; the next start continues it.

        Args:
            grace_s: time for that picture, in seconds.
        """
        self._stopping.set()
        for steps in self._steps:
            steps.stop()
        with self._changed:
            self._changed.wait_for(lambda: not self._running, grace_s)
        DBOS.destroy(destroy_registry=True)

    def executors_with_work(self) -> frozenset[str]:
        """Return the ids of all other workers with unfinished work."""
        rows = self._client.list_workflows(status="PENDING", load_input=False, load_output=False)
        return frozenset(row.executor_id for row in rows if row.executor_id) - {self._executor_id}

    def requeue_work_of(self, executor_id: str) -> None:
        """Queue the unfinished work of a dead worker again."""
        rows = self._client.list_workflows(
            status="PENDING", executor_id=executor_id, load_input=False, load_output=False
        )
        for row in rows:
            self._requeue(row.workflow_id, executor_id)

    def requeue_stranded(self) -> None:
        """Queue work again that this worker has started but does not run, as found by two calls in a row.

        The database failed when a step or its result was to be stored. No worker died, so it counts as no
        restart.
        """
        rows = self._client.list_workflows(
            status="PENDING", executor_id=self._executor_id, load_input=False, load_output=False
        )
        running = active_workflows(self._dbos)
        seen = frozenset(row.workflow_id for row in rows).difference(running)
        for workflow_id in seen & self._stranded:
            StoredProgress(self._client, workflow_id).record_suspension()
            self._requeue(workflow_id, self._executor_id)
        self._stranded = seen - self._stranded

    def release_when_idle(self) -> None:
        """Free the models of jobs, if none has run here since the last call."""
        with self._changed:
            is_idle = not self._running and self._started == self._started_at_last_check
            self._started_at_last_check = self._started
        if is_idle:
            for steps in self._steps:
                steps.release_idle()

    def _delete_old_jobs(self) -> None:
        before = dt.datetime.now(dt.UTC) - dt.timedelta(days=self._keep_days)
        rows = self._client.list_workflows(
            name=[steps.kind.name for steps in self._steps],
            completed_before=before.isoformat(),
            load_input=False,
            load_output=False,
        )
        self._client.delete_workflows([row.workflow_id for row in rows], delete_children=True)

    def _requeue(self, workflow_id: str, executor_id: str) -> None:
        if requeue_workflow(self._dbos, workflow_id, executor_id, JOBS_QUEUE):
            _log.warning("job requeued", workflow=workflow_id, executor=executor_id)

    def _run_job(self, steps: AnySteps, document: JsonObject) -> JsonObject:
        with self._execution() as progress:
            try:
                return self._plan_and_run(steps, steps.kind.request_of(document), progress)
            except JobError:
                self._cancel_shards(progress.workflow_id)
                raise

    def _plan_and_run(self, steps: AnySteps, request: JobRequest, progress: StoredProgress) -> JsonObject:
        job_id = progress.workflow_id
        planned = self._step(
            "plan", lambda: steps.plan_job(request).to_json() | {"queue": self._shards_queue}
        )
        if planned.pop("queue") != self._shards_queue:
            raise JobError(
                "the job began with other libraries, or on another processor or engine: submit it again"
            )
        plan = JobPlan.from_json(planned)
        self._client.update_workflow_attributes(job_id, {"total": plan.images}, merge=True)
        run_shard = self._shard_workflows[steps.kind.name]
        shards = [shard_id(job_id, index) for index in range(len(plan.shards()))]
        for index, workflow_id in enumerate(shards):
            with SetWorkflowID(workflow_id):
                DBOS.enqueue_workflow(
                    self._shards_queue, run_shard, request.to_json(), planned, job_id, index
                )
        self._wait_for(shards, progress)
        return self._step("report", functools.partial(self._finish_job, steps, job_id, request, plan, shards))

    def _run_shard(
        self, steps: AnySteps, document: JsonObject, planned: JsonObject, job_id: str, index: int
    ) -> list[JsonObject]:
        with self._execution() as progress:
            if self._row(job_id).status not in UNFINISHED:  # it was cancelled while this was being queued
                self._client.cancel_workflow(progress.workflow_id)
                raise _WorkflowSuspendedError
            request, plan = steps.kind.request_of(document), JobPlan.from_json(planned)
            outcomes: list[JsonObject] = []
            done = 0
            for images in plan.shards()[index]:
                name = f"pictures {images.start} to {images.stop - 1}"
                process = functools.partial(steps.process_images, request, plan, images)
                outcomes.append(self._step(name, process))
                done += len(images)
                progress.record_done(done)
            return outcomes

    @contextmanager
    def _execution(self) -> Iterator[StoredProgress]:
        """Start a workflow, and turn its exceptions into ``JobError``, which is stored, or a suspension."""
        own_id = DBOS.workflow_id
        assert own_id is not None
        with self._counted():
            try:
                progress = StoredProgress(self._client, own_id)
                progress.record_start()
                yield progress
            except JobError as error:
                _log.warning("job failed", workflow=own_id, reason=str(error))
                raise
            except (JobInterruptedError, _StepInterruptedError):
                with suppress(DBAPIError):  # then the next start counts as a restart
                    progress.record_suspension()
                raise _WorkflowSuspendedError from None
            except PortableWorkflowError as error:  # a step failed, and the process died before the job did
                raise JobError(error.message if error.name == JobError.__name__ else _DEFECT) from error
            except DBAPIError as error:
                _log.warning("jobs database failed", workflow=own_id, reason=str(error.orig))
                raise _WorkflowSuspendedError from None
            except Exception as error:
                _log.exception("job failed", workflow=own_id)
                raise JobError(_DEFECT) from error

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._changed:
            self._running += 1
            self._started += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _step(self, name: str, run: Callable[[], T]) -> T:
        """Return the result of a step, from now or from before a crash."""
        own_id = DBOS.workflow_id
        assert own_id is not None
        return DBOS.run_step(StepOptions(name=name, **_RETRIES), self._run_with_pauses, own_id, run)

    def _run_with_pauses(self, own_id: str, run: Callable[[], T]) -> T:
        for pause_s in _PAUSES_S:
            try:
                return self._unless_stopping(run)
            except JobHeldUpError as error:
                _log.warning("job held up", workflow=own_id, reason=str(error), cause=repr(error.__cause__))
            self._pause(own_id, pause_s)
        try:
            return self._unless_stopping(run)
        except JobHeldUpError as error:
            raise JobError(f"given up after {sum(_PAUSES_S):.0f} s: {error}") from error

    def _pause(self, own_id: str, seconds: float) -> None:
        """Wait, unless this process is about to stop or has lost the workflow."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s and not self._stopping.wait(self._poll_s):
            with suppress(DBAPIError):
                self._check_is_ours(own_id)

    def _unless_stopping(self, run: Callable[[], T]) -> T:
        if self._stopping.is_set():
            raise _StepInterruptedError
        try:
            return run()
        except JobInterruptedError:
            raise _StepInterruptedError from None

    def _wait_for(self, shards: list[str], progress: StoredProgress) -> None:
        """Wait until all shards have succeeded, and record their progress meanwhile.

        Raises:
            JobError: a shard failed or was cancelled.
        """
        if not shards:  # an empty list of ids would mean every row
            return
        pace: Pace | None = None
        while True:
            rows = self._client.list_workflows(workflow_ids=shards, load_input=False, load_output=False)
            done = sum(progress_of(row).done for row in rows)
            pace = pace or Pace(time.monotonic(), done)
            progress.record_done(done, pace.pictures_per_s(time.monotonic(), done))
            self._check_is_ours(progress.workflow_id)
            if failed := [row.workflow_id for row in rows if row.status in _ENDED_BADLY]:
                raise JobError(error_message(self._row(failed[0]).error) or "a part of the job was cancelled")
            if all(row.status == "SUCCESS" for row in rows):
                return
            if self._stopping.wait(self._poll_s):
                raise JobInterruptedError

    def _check_is_ours(self, job_id: str) -> None:
        row = self._row(job_id)
        if row.status != "PENDING" or row.executor_id != self._executor_id:
            raise _WorkflowSuspendedError  # cancelled, or requeued because this process was taken for dead

    def _cancel_shards(self, job_id: str) -> None:
        rows = self._client.list_workflows(
            parent_workflow_id=job_id, status=list(UNFINISHED), load_input=False, load_output=False
        )
        self._client.cancel_workflows([row.workflow_id for row in rows])

    def _row(self, workflow_id: str) -> WorkflowStatus:
        (row,) = self._client.list_workflows(workflow_ids=[workflow_id], load_input=False)
        return row

    def _finish_job(
        self, steps: AnySteps, job_id: str, request: JobRequest, plan: JobPlan, shards: list[str]
    ) -> JsonObject:
        rows = self._client.list_workflows(workflow_ids=shards, load_input=False) if shards else []
        outcomes = {row.workflow_id: row.output for row in rows}
        in_order = [document for workflow_id in shards for document in outcomes[workflow_id] or ()]
        confirm = functools.partial(self._check_is_ours, job_id)
        result: JobResult = steps.finish_job(job_id, request, plan, in_order, confirm=confirm)
        return result.to_json()


def _register(name: str, run: Callable[P, T]) -> Callable[P, T]:
    def workflow(*args: P.args, **kwargs: P.kwargs) -> T:  # DBOS sets attributes, which methods do not have
        return run(*args, **kwargs)

    return DBOS.workflow(name=name, max_recovery_attempts=None)(workflow)


def _is_news(record: logging.LogRecord) -> bool:
    """Filter lines of DBOS about jobs that failed, were cancelled or requeued; this module logs those."""
    message = record.getMessage()
    return "background workflow" not in message and "no longer owned" not in message


def _digest(document: JsonObject) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
