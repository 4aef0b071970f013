"""Assembles a worker: its lock, its executor, and the watcher that recovers jobs of dead workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError

from service.core.errors import BusyError
from service.core.jobs.job import JobSteps, JsonObject
from service.durable_jobs.client import open_client
from service.durable_jobs.database import JobsDatabase
from service.durable_jobs.errors import JobsUnavailableError
from service.durable_jobs.executor import JobExecutor
from service.durable_jobs.watcher import Watcher, WorkerLocks


@dataclass(frozen=True)
class WorkerOptions:
    """Options of a worker.

    Args:
        executor_id: unique name, equal after a restart.
        environment: libraries, processor, engine; workers with equal environments share a job.
        grace_s: time that the picture in work has to finish when the worker stops, in seconds.
        poll_s: interval at which queues and shards are read.
        watch_s: interval at which dead workers are looked for.
        keep_days: time after which ended jobs are deleted.
    """

    executor_id: str
    environment: JsonObject
    grace_s: float
    poll_s: float = 0.5
    watch_s: float = 5.0
    keep_days: float = 30.0


@contextmanager
def run_jobs(
    database: JobsDatabase, steps: Sequence[JobSteps[Any, Any]], options: WorkerOptions
) -> Iterator[None]:
    """Run queued jobs as long as the context lasts; unfinished ones go on later.

    Args:
        database: prepared, and owned by this process if it is a file.
        steps: the work of each kind of jobs.
        options: of the worker.

    Raises:
        JobsUnavailableError: the database does not answer, or another worker has this one's name.
    """
    with ExitStack() as stack:
        try:
            locks = _hold(stack, database, options.executor_id)
            client = stack.enter_context(open_client(database, waits=True))
        except (DBAPIError, BusyError) as error:
            raise JobsUnavailableError(f"jobs database {database} does not answer") from error
        executor = JobExecutor(
            database,
            client,
            steps,
            environment=options.environment,
            executor_id=options.executor_id,
            poll_s=options.poll_s,
            keep_days=options.keep_days,
        )
        stack.callback(executor.close, grace_s=options.grace_s)
        executor.start()
        watcher = Watcher(executor, locks, interval_s=options.watch_s)
        watcher.start()
        stack.callback(watcher.close)
        yield


def _hold(stack: ExitStack, database: JobsDatabase, executor_id: str) -> WorkerLocks | None:
    if database.folder is not None:
        return None
    engine = database.engine()
    stack.callback(engine.dispose)
    locks = WorkerLocks(engine, executor_id)
    locks.hold()
    stack.callback(locks.close)
    return locks
