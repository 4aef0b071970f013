"""Runs jobs as DBOS workflows: what a step returned is stored, and a crash repeats one step at most.

A job is a workflow that plans, queues its shards and waits for them; a shard is a workflow that runs steps.
Only workers of one environment (libraries, processor, engine) share the shards of a job, or its counts
could depend on who counted what.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import ParamSpec, TypeVar

import structlog
from dbos import DBOS, DBOSClient, PortableWorkflowError, SetWorkflowID, StepOptions, WorkflowStatus
from sqlalchemy.exc import DBAPIError

from service.core.jobs.evaluation_job import (
    JobError,
    JobHeldUpError,
    JobInterruptedError,
    JobPlan,
    JobRequest,
    JobWork,
    JsonObject,
)
from service.durable_jobs.database import APPLICATION, SCHEMA, SERIALIZER, JobsDatabase
from service.durable_jobs.records import (
    JOB,
    JOBS_QUEUE,
    SHARD,
    UNFINISHED,
    ProgressNote,
    message_of,
    progress_of,
    shard_id,
)

STEPS_VERSION = 2
"""Of the steps below: raise it when they change, and jobs that had begun before fail instead of mixing."""

_APPLICATION_VERSION = "1"  # fixed: DBOS would leave what another version began lying for ever

_log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

_RETRIES = StepOptions(
    retries_allowed=True,
    max_attempts=4,
    interval_seconds=1.0,
    backoff_rate=2.0,
    should_retry=lambda error: not isinstance(error, JobError),
)
"""Of what is a defect, or looks like one."""

_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, *[60.0] * 9)
"""Before a step that is held up is tried again; ten minutes together, in which a device may come back."""

_DEFECT = "the service failed, its log tells why"
_ENDED_BADLY = ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


class _LaidDownError(BaseException):
    """Ends a workflow in this process only: DBOS stores what an ``Exception`` says, and this is none."""


class _InterruptionError(BaseException):
    """The same for a step: it is not stored, and begun again by whoever takes the workflow up."""


class JobExecutor:
    """Runs queued jobs in this process, one shard at a time; a process can have one executor.

    Args:
        database: prepared, and owned by this process when it is a file.
        client: of the same database; waits for it when it is away.
        work: what is done.
        environment: libraries, processor, engine; workers share a job only when theirs are equal.
        executor_id: of this worker: stays the same over restarts, and no other worker has it.
        poll_s: how often queues and shards are looked at.
        keep_days: how long jobs that have ended are remembered; their reports stay in the registry.
    """

    def __init__(
        self,
        database: JobsDatabase,
        client: DBOSClient,
        work: JobWork,
        *,
        environment: JsonObject,
        executor_id: str,
        poll_s: float = 0.5,
        keep_days: float = 30.0,
    ) -> None:
        self._database = database
        self._client = client
        self._work = work
        self._executor_id = executor_id
        self._poll_s = poll_s
        self._keep_days = keep_days
        self._shards_queue = f"shards-{_digest({'environment': environment, 'steps': STEPS_VERSION})[:12]}"
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._running = 0
        self._begun = 0
        self._begun_when_looked = 0
        self._stranded: frozenset[str] = frozenset()

    def start(self) -> None:
        """Go on with what was left unfinished (in a file by anybody), then take what is queued."""
        # Without a handler DBOS would write lines of its own form to stderr.
        logger = logging.getLogger("dbos")
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
        logger.addFilter(_is_news)
        _register(JOB, self._run_job)
        self._shard_workflow = _register(SHARD, self._run_shard)
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
        if self._database.folder is not None:  # the file is ours alone: who has begun anything in it is dead
            for executor_id in self.unfinished():
                self.rescue(executor_id)
        self._forget_old()

    def close(self, *, grace_s: float) -> None:
        """Lay down what runs, after the picture that is being counted; the next start takes it up.

        Args:
            grace_s: how long to wait for that.
        """
        self._stopping.set()
        self._work.stop()
        with self._changed:
            self._changed.wait_for(lambda: not self._running, grace_s)
        DBOS.destroy(destroy_registry=True)

    def unfinished(self) -> frozenset[str]:
        """Return the ids of the workers that have unfinished work, this one left out."""
        rows = self._client.list_workflows(status="PENDING", load_input=False, load_output=False)
        return frozenset(row.executor_id for row in rows if row.executor_id) - {self._executor_id}

    def rescue(self, executor_id: str) -> None:
        """Queue again what a dead worker has left unfinished."""
        rows = self._client.list_workflows(
            status="PENDING", executor_id=executor_id, load_input=False, load_output=False
        )
        for row in rows:
            self._queue_again(row.workflow_id, executor_id)

    def take_up_stranded(self) -> None:
        """Queue again what this worker has begun but does not run, as seen by two calls in a row.

        The database failed it: as a step was to be noted, or its outcome. That is no rescue, as nobody died.
        """
        rows = self._client.list_workflows(
            status="PENDING", executor_id=self._executor_id, load_input=False, load_output=False
        )
        running = self._dbos._active_workflows_set.activeList()  # noqa: SLF001 - counts what is being noted
        seen = frozenset(row.workflow_id for row in rows).difference(running)
        for workflow_id in seen & self._stranded:
            ProgressNote(self._client, workflow_id).lay_down()
            self._queue_again(workflow_id, self._executor_id)
        self._stranded = seen - self._stranded

    def rest_when_idle(self) -> None:
        """Give back what jobs needed, if none has run here since the last call."""
        with self._changed:
            is_idle = not self._running and self._begun == self._begun_when_looked
            self._begun_when_looked = self._begun
        if is_idle:
            self._work.rest()

    def _forget_old(self) -> None:
        before = dt.datetime.now(dt.UTC) - dt.timedelta(days=self._keep_days)
        rows = self._client.list_workflows(
            name=JOB, completed_before=before.isoformat(), load_input=False, load_output=False
        )
        self._client.delete_workflows([row.workflow_id for row in rows], delete_children=True)

    def _queue_again(self, workflow_id: str, executor_id: str) -> None:
        # Not the public resume_workflow: it would bring a job back to life that was cancelled meanwhile.
        database = self._dbos._sys_db  # noqa: SLF001
        if database.reenqueue_for_recovery(workflow_id, [executor_id], JOBS_QUEUE):
            _log.warning("job taken up again", workflow=workflow_id, executor=executor_id)

    def _run_job(self, document: JsonObject) -> JsonObject:
        with self._execution() as note:
            try:
                return self._planned_and_run(JobRequest.from_json(document), note)
            except JobError:
                self._cancel_shards(note.workflow_id)
                raise

    def _planned_and_run(self, request: JobRequest, note: ProgressNote) -> JsonObject:
        job_id = note.workflow_id
        planned = self._step(
            "plan", lambda: self._work.plan(request).to_json() | {"queue": self._shards_queue}
        )
        if planned.pop("queue") != self._shards_queue:
            raise JobError(
                "the job began with other libraries, or on another processor or engine: submit it again"
            )
        plan = JobPlan.from_json(planned)
        self._client.update_workflow_attributes(job_id, {"total": plan.images}, merge=True)
        shards = [shard_id(job_id, index) for index in range(len(plan.shards()))]
        for index, own_id in enumerate(shards):
            with SetWorkflowID(own_id):
                DBOS.enqueue_workflow(
                    self._shards_queue, self._shard_workflow, request.to_json(), planned, job_id, index
                )
        self._wait_for(shards, note)
        return self._step("report", functools.partial(self._finish, job_id, request, plan, shards))

    def _run_shard(
        self, document: JsonObject, planned: JsonObject, job_id: str, index: int
    ) -> list[JsonObject]:
        with self._execution() as note:
            if self._row(job_id).status not in UNFINISHED:  # it was cancelled while this was being queued
                self._client.cancel_workflow(note.workflow_id)
                raise _LaidDownError
            request, plan = JobRequest.from_json(document), JobPlan.from_json(planned)
            counts: list[JsonObject] = []
            done = 0
            for images in plan.shards()[index]:
                name = f"pictures {images.start} to {images.stop - 1}"
                counts.append(self._step(name, functools.partial(self._work.count, request, plan, images)))
                done += len(images)
                note.advance(done)
            return counts

    @contextmanager
    def _execution(self) -> Iterator[ProgressNote]:
        """Begin a workflow; what leaves this is ``JobError``, which is stored, or ends it in this process."""
        own_id = DBOS.workflow_id
        assert own_id is not None
        with self._counted():
            try:
                note = ProgressNote(self._client, own_id)
                note.begin()
                yield note
            except JobError as error:
                _log.warning("job failed", workflow=own_id, reason=str(error))
                raise
            except (JobInterruptedError, _InterruptionError):
                with suppress(DBAPIError):  # then the next beginning counts as a rescue
                    note.lay_down()
                raise _LaidDownError from None
            except PortableWorkflowError as error:  # a step failed, and the process died before the job did
                raise JobError(error.message if error.name == JobError.__name__ else _DEFECT) from error
            except DBAPIError as error:
                _log.warning("jobs database failed", workflow=own_id, reason=str(error.orig))
                raise _LaidDownError from None
            except Exception as error:
                _log.exception("job failed", workflow=own_id)
                raise JobError(_DEFECT) from error

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._changed:
            self._running += 1
            self._begun += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _step(self, name: str, run: Callable[[], T]) -> T:
        """Return what a step returned, now or before a crash."""
        own_id = DBOS.workflow_id
        assert own_id is not None
        return DBOS.run_step(StepOptions(name=name, **_RETRIES), self._patiently, own_id, run)

    def _patiently(self, own_id: str, run: Callable[[], T]) -> T:
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
        """Wait, unless this process is about to stop, or the workflow is not ours any more."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s and not self._stopping.wait(self._poll_s):
            with suppress(DBAPIError):
                self._check_is_ours(own_id)

    def _unless_stopping(self, run: Callable[[], T]) -> T:
        if self._stopping.is_set():
            raise _InterruptionError
        try:
            return run()
        except JobInterruptedError:
            raise _InterruptionError from None

    def _wait_for(self, shards: list[str], note: ProgressNote) -> None:
        """Return when all shards have succeeded; note meanwhile how far they are.

        Raises:
            JobError: one failed.
        """
        while True:
            rows = self._client.list_workflows(workflow_ids=shards, load_input=False, load_output=False)
            note.advance(sum(progress_of(row).done for row in rows))
            self._check_is_ours(note.workflow_id)
            if failed := [row.workflow_id for row in rows if row.status in _ENDED_BADLY]:
                raise JobError(message_of(self._row(failed[0]).error) or "a part of the job was cancelled")
            if all(row.status == "SUCCESS" for row in rows):
                return
            if self._stopping.wait(self._poll_s):
                raise JobInterruptedError

    def _check_is_ours(self, job_id: str) -> None:
        row = self._row(job_id)
        if row.status != "PENDING" or row.executor_id != self._executor_id:
            raise _LaidDownError  # cancelled; or this process was thought to be dead, and another one goes on

    def _cancel_shards(self, job_id: str) -> None:
        rows = self._client.list_workflows(
            parent_workflow_id=job_id, status=list(UNFINISHED), load_input=False, load_output=False
        )
        self._client.cancel_workflows([row.workflow_id for row in rows])

    def _row(self, workflow_id: str) -> WorkflowStatus:
        (row,) = self._client.list_workflows(workflow_ids=[workflow_id], load_input=False)
        return row

    def _finish(self, job_id: str, request: JobRequest, plan: JobPlan, shards: list[str]) -> JsonObject:
        rows = self._client.list_workflows(workflow_ids=shards, load_input=False)
        counts = {row.workflow_id: row.output for row in rows}
        in_order = [document for own_id in shards for document in counts[own_id] or ()]
        confirm = functools.partial(self._check_is_ours, job_id)
        return self._work.finish(job_id, request, plan, in_order, confirm=confirm).to_json()


def _register(name: str, run: Callable[P, T]) -> Callable[P, T]:
    def workflow(*args: P.args, **kwargs: P.kwargs) -> T:  # DBOS marks functions; methods cannot be marked
        return run(*args, **kwargs)

    return DBOS.workflow(name=name, max_recovery_attempts=None)(workflow)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop what DBOS says of a job that failed, was cancelled or taken over: that has been logged here."""
    message = record.getMessage()
    return "background workflow" not in message and "no longer owned" not in message


def _digest(document: JsonObject) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
