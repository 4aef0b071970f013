"""Recovers the work of dead workers: each worker of a Postgres database holds a lock that ends with it.

Source:
    Advisory locks and keep-alives: PostgreSQL's manual, 13.3.5 and 20.3.2.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError

from service.durable_jobs.errors import JobsUnavailableError

_LOCK_TIMEOUT_S = 15.0
"""Time to get a lock: that of a killed worker may outlive it, or another worker may check it."""

_RETRY_S = 0.2

# For machines that lose their power: the default keep-alive of the system takes two hours.
_KEEP_ALIVE = (
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
)

_log = structlog.get_logger()


class Recovery(Protocol):
    """What the watcher calls; implemented by ``JobExecutor``."""

    def executors_with_work(self) -> frozenset[str]:
        """Return the ids of all other workers with unfinished work."""
        ...

    def requeue_work_of(self, executor_id: str) -> None:
        """Queue the unfinished work of a dead worker again."""
        ...

    def requeue_stranded(self) -> None:
        """Queue work again that this worker has started but does not run, because the database failed."""
        ...

    def release_when_idle(self) -> None:
        """Free the models of jobs, if none has run here since the last call."""
        ...


class WorkerLocks:
    """The lock of this worker in a Postgres database, and a check of the other workers' locks.

    Args:
        engine: of the database.
        executor_id: of this worker.
    """

    def __init__(self, engine: sa.Engine, executor_id: str) -> None:
        self._engine = engine
        self._executor_id = executor_id
        self._session: sa.Connection | None = None

    def hold(self) -> None:
        """Take the lock of this worker, until ``close`` or the end of the process.

        Raises:
            JobsUnavailableError: another worker has this id.
        """
        until_s = time.monotonic() + _LOCK_TIMEOUT_S
        while not self._acquire():
            if time.monotonic() > until_s:
                raise JobsUnavailableError(
                    f"a worker called {self._executor_id!r} runs already: give each one a jobs.worker_id"
                )
            time.sleep(_RETRY_S)

    def keep(self) -> bool:
        """Check the lock, and take it again if it was lost, for example after a restart of the database.

        Returns:
            Whether the lock is held; if not, others take this worker for dead.

        Raises:
            DBAPIError: the database does not answer; the next call tries again.
        """
        if self._session is not None:
            try:
                self._session.execute(sa.text("SELECT 1"))
            except DBAPIError:
                self.close()
            else:
                return True
        _log.warning("lock of this worker lost", executor=self._executor_id)
        return self._acquire()

    @contextmanager
    def is_dead(self, executor_id: str) -> Iterator[bool]:
        """Yield whether another worker is dead; it cannot take its lock before the context is left."""
        with self._connect() as session:
            try:
                yield _try_lock(session, executor_id)
            finally:
                session.invalidate()  # ends the session, and with it the lock

    def close(self) -> None:
        """Release the lock."""
        if self._session is not None:
            self._session.invalidate()
            self._session.close()
        self._session = None

    def _acquire(self) -> bool:
        with ExitStack() as stack:
            session = stack.enter_context(self._connect())
            for setting in _KEEP_ALIVE:
                session.execute(sa.text(setting))
            if not _try_lock(session, self._executor_id):
                return False
            stack.pop_all()
        self._session = session
        return True

    def _connect(self) -> sa.Connection:
        return self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")


class Watcher:
    """Recovers unfinished work at intervals, in a thread.

    Args:
        recovery: requeues the work.
        locks: of the workers that share the database; None if this is the only one.
        interval_s: between two checks, in seconds.
    """

    def __init__(self, recovery: Recovery, locks: WorkerLocks | None, *, interval_s: float = 5.0) -> None:
        self._recovery = recovery
        self._locks = locks
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs-watcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; the locks stay."""
        self._stopping.set()
        self._thread.join()

    def check_once(self) -> None:
        """Recover the work of dead workers now.

        Raises:
            DBAPIError: the database does not answer.
        """
        self._recovery.requeue_stranded()
        if self._locks is not None and self._locks.keep():
            for executor_id in sorted(self._recovery.executors_with_work()):
                with self._locks.is_dead(executor_id) as dead:
                    if dead:
                        self._recovery.requeue_work_of(executor_id)
        self._recovery.release_when_idle()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self.check_once()
            except DBAPIError as error:
                _log.warning("jobs database does not answer", reason=str(error.orig))
            except Exception:  # noqa: BLE001 - the outermost edge of the thread: the next check must come
                _log.exception("recovery of jobs failed")


def _try_lock(session: sa.Connection, executor_id: str) -> bool:
    digest = hashlib.sha256(f"bisenet worker {executor_id}".encode()).digest()
    key = int.from_bytes(digest[:8], signed=True)
    return bool(session.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar_one())
