"""Takes up what dead workers left: each worker of a Postgres database holds a lock that dies with it.

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

_TAKE_OVER_S = 15.0
"""How long the lock of a worker that was killed may outlive it, or be held by somebody who looks after it."""

_RETRY_S = 0.2

# A machine that lost its power says no good-bye; the system's own keep-alive would notice after two hours.
_KEEP_ALIVE = (
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
)

_log = structlog.get_logger()


class Rescuer(Protocol):
    """What the watcher looks after: a ``JobExecutor``."""

    def unfinished(self) -> frozenset[str]:
        """Return the ids of the workers that have unfinished work, this one left out."""
        ...

    def rescue(self, executor_id: str) -> None:
        """Queue again what a dead worker has left unfinished."""
        ...

    def take_up_stranded(self) -> None:
        """Queue again what this worker has begun but does not run: the database failed it."""
        ...

    def rest_when_idle(self) -> None:
        """Give back what jobs needed, if none has run here since the last call."""
        ...


class WorkerLocks:
    """Shows the other workers of a Postgres database that this one lives, and tells which of them do.

    Args:
        engine: of the database; disposed of with this.
        executor_id: of this worker.
    """

    def __init__(self, engine: sa.Engine, executor_id: str) -> None:
        self._engine = engine
        self._executor_id = executor_id
        self._session: sa.Connection | None = None

    def hold(self) -> None:
        """Be the worker of this id, until ``close`` or the end of the process.

        Raises:
            JobsUnavailableError: a worker of this id lives already.
        """
        given_up_s = time.monotonic() + _TAKE_OVER_S
        while not self._acquire():
            if time.monotonic() > given_up_s:
                raise JobsUnavailableError(
                    f"a worker called {self._executor_id!r} runs already: give each one a jobs.worker_id"
                )
            time.sleep(_RETRY_S)

    def keep(self) -> bool:
        """See that the lock is held, or take it again: the database may have been restarted.

        Returns:
            Whether it is held; if not, others take this worker for dead.

        Raises:
            DBAPIError: the database does not answer; then the next call tries again.
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
        """Tell whether another worker is dead; it cannot come back before the context is left."""
        with self._connect() as session:
            try:
                yield _try_lock(session, executor_id)
            finally:
                session.invalidate()  # which ends the session, and with it the lock

    def close(self) -> None:
        """Let go."""
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
    """Looks after unfinished work from time to time, in a thread of its own.

    Args:
        rescuer: takes it up.
        locks: of the workers that share the database; None when this is the only one.
        interval_s: from look to look, in seconds.
    """

    def __init__(self, rescuer: Rescuer, locks: WorkerLocks | None, *, interval_s: float = 5.0) -> None:
        self._rescuer = rescuer
        self._locks = locks
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs-watcher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and let go of nothing."""
        self._stopping.set()
        self._thread.join()

    def look(self) -> None:
        """Look once.

        Raises:
            DBAPIError: the database does not answer.
        """
        self._rescuer.take_up_stranded()
        if self._locks is not None and self._locks.keep():
            for executor_id in sorted(self._rescuer.unfinished()):
                with self._locks.is_dead(executor_id) as dead:
                    if dead:
                        self._rescuer.rescue(executor_id)
        self._rescuer.rest_when_idle()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self.look()
            except DBAPIError as error:
                _log.warning("jobs database does not answer", reason=str(error.orig))
            except Exception:  # noqa: BLE001 - the outermost edge of the thread: the next look must come
                _log.exception("looking after jobs failed")


def _try_lock(session: sa.Connection, executor_id: str) -> bool:
    digest = hashlib.sha256(f"bisenet worker {executor_id}".encode()).digest()
    key = int.from_bytes(digest[:8], signed=True)
    return bool(session.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar_one())
