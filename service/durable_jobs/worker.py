"""A worker, put together: its locks are held, its jobs run, and those of dead workers are taken up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from service.core.errors import BusyError
from service.core.jobs.evaluation_job import JobWork, JsonObject
from service.durable_jobs.client import open_client
from service.durable_jobs.database import JobsDatabase
from service.durable_jobs.errors import JobsUnavailableError
from service.durable_jobs.executor import JobExecutor
from service.durable_jobs.watcher import Watcher, WorkerLocks


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker behaves.

    Args:
        executor_id: its name: stays the same over restarts, and no other worker has it.
        environment: libraries, processor, engine; workers share a job only when theirs are equal.
        grace_s: how long the picture that is being counted may take when the worker is stopped.
        poll_s: how often queues and shards are looked at.
        watch_s: how often dead workers are looked for.
        keep_days: how long jobs that have ended are remembered.
    """

    executor_id: str
    environment: JsonObject
    grace_s: float
    poll_s: float = 0.5
    watch_s: float = 5.0
    keep_days: float = 30.0


@contextmanager
def run_jobs(database: JobsDatabase, work: JobWork, options: WorkerOptions) -> Iterator[None]:
    """Run queued jobs as long as the context lasts; what is unfinished then is taken up later.

    Args:
        database: prepared, and owned by this process when it is a file.
        work: what is done.
        options: how.

    Raises:
        JobsUnavailableError: the database does not answer, or another worker has this one's name.
    """
    with ExitStack() as stack:
        try:
            locks = _hold(stack, database, options.executor_id)
            client = stack.enter_context(open_client(database, patient=True))
        except (DBAPIError, BusyError) as error:
            raise JobsUnavailableError(f"jobs database {database} does not answer") from error
        executor = JobExecutor(
            database,
            client,
            work,
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
