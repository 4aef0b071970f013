"""The jobs database: its location, its owner, and the guard against pickles in it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from dbos import DBOS, DBOSPortableJSONSerializer
from sqlalchemy.exc import DatabaseError, DBAPIError

from service.core.errors import BusyError, StorageFullError
from service.durable_jobs.dbos_internals import refuse_pickles
from service.durable_jobs.errors import JobsUnavailableError

APPLICATION = "bisenet"
SCHEMA = "bisenet_jobs"
"""Schema in a Postgres database, which other programs may share."""

SERIALIZER = DBOSPortableJSONSerializer()

_FILE = "jobs.sqlite"
_LOCK_FILE = "lock"
_PICKLE = "py_pickle"
_LOCKED_S = 5.0  # time that another process may keep the file locked
_GUARD_LOCK = 0x62697365_6E657400  # "bisenet" in ASCII, so that other programs hardly use it
_CHECK_VIOLATION = "23514"
_DISK_FULL = ("database or disk is full", "No space left on device")


@dataclass(frozen=True)
class JobsDatabase:
    """Location of the jobs.

    Args:
        url: of SQLAlchemy.
        folder: of the SQLite file; None for Postgres, which several machines may share.
    """

    url: str
    folder: Path | None = None

    @classmethod
    def at(cls, url: str | None, folder: Path) -> JobsDatabase:
        """Return the database at a ``postgresql://`` URL; without a URL the SQLite file in a folder."""
        return cls(f"sqlite:///{folder / _FILE}", folder) if url is None else cls(url)

    def __str__(self) -> str:
        """Return the URL without its password, for logs."""
        return sa.make_url(self.url).render_as_string(hide_password=True)

    def prepare(self) -> None:
        """Create or migrate the tables, and let the database refuse pickles.

        DBOS unpickles every row that is marked as a pickle, with any configured serializer, so write access
        to the database would allow to run code in the service.

        Raises:
            JobsUnavailableError: the database is damaged, not reachable, or holds a pickle.
        """
        refuse_pickles()
        with _as_unavailable(self):
            if self.folder is not None:
                _check_file(self.folder)
            DBOS.migrate(self.url, schema=SCHEMA)
            engine = self.engine()
            try:
                with engine.begin() as connection:
                    _guard(connection)
            finally:
                engine.dispose()

    def engine(self) -> sa.Engine:
        """Return a new engine of SQLAlchemy; the caller disposes of it."""
        url = sa.make_url(self.url)
        if url.get_backend_name() == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        return sa.create_engine(url)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Lock an SQLite file for this process, the only one that runs its jobs; Postgres needs no lock.

        Raises:
            JobsUnavailableError: another process has the lock.
        """
        with ExitStack() as stack:
            if self.folder is not None:
                stack.enter_context(_locked(self.folder))
            yield


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn errors of the database into errors of the core.

    Raises:
        StorageFullError: there is no space left to write.
        BusyError: the database is locked or not reachable.
    """
    try:
        yield
    except DBAPIError as error:
        if any(text in str(error.orig) for text in _DISK_FULL):
            raise StorageFullError("there is no space left for the jobs database") from error
        raise BusyError("the jobs database does not answer", retry_after_s=5.0) from error


@contextmanager
def _as_unavailable(database: JobsDatabase) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:  # locked by another process, or the disk fails
        raise JobsUnavailableError(f"jobs database {database} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise JobsUnavailableError(_damaged(database, str(error))) from error
    except DatabaseError as error:
        reason = str(error.orig).partition("\n")[0]
        if getattr(error.orig, "sqlstate", None) == _CHECK_VIOLATION:
            reason = "it holds a pickle"
        raise JobsUnavailableError(f"jobs database {database} cannot be used: {reason}") from error
    except OSError as error:
        raise JobsUnavailableError(f"jobs database {database} cannot be used: {error.strerror}") from error


def _damaged(database: JobsDatabase, reason: str) -> str:
    return (
        f"jobs database {database} is damaged ({reason}): move the file away to start with no jobs; "
        "reports of finished ones are in the registry"
    )


def _check_file(folder: Path) -> None:
    """Create the file, for its owner only, or check the existing one."""
    _private(folder)
    path = folder / _FILE
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    connection = sqlite3.connect(path, timeout=_LOCKED_S)
    try:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    finally:
        connection.close()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict.splitlines()[-1])


def _private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise PermissionError(0, "its folder belongs to another user")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        _private(folder)
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JobsUnavailableError(f"state folder {folder} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise JobsUnavailableError(
            f"another process runs the jobs of {folder}: stop it, name another jobs.state_folder, "
            "share a Postgres database, or say --jobs off"
        ) from None
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _tables_with_values(connection: sa.Connection) -> list[sa.Table]:
    schema = None if connection.dialect.name == "sqlite" else SCHEMA
    metadata = sa.MetaData()
    metadata.reflect(connection, schema=schema)
    return [table for table in metadata.sorted_tables if "serialization" in table.columns]


def _guard(connection: sa.Connection) -> None:
    """Make the database refuse rows that are marked as pickles; fail if there is one already."""
    if connection.dialect.name == "sqlite":
        for table in _tables_with_values(connection):
            _guard_sqlite(connection, table.name)
        return
    # Lock until the transaction ends: of two processes that find a guard missing, one would fail to add it.
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _GUARD_LOCK})
    for table in _tables_with_values(connection):
        _guard_postgres(connection, table)


def _guard_sqlite(connection: sa.Connection, table: str) -> None:
    claims = f"serialization = '{_PICKLE}'"
    if connection.execute(sa.text(f'SELECT 1 FROM "{table}" WHERE {claims} LIMIT 1')).first():  # noqa: S608
        raise sqlite3.DatabaseError(f"{table} holds a pickle")
    for event in ("INSERT", "UPDATE OF serialization"):
        name = f"no_pickle_{event.partition(' ')[0].lower()}_{table}"
        connection.execute(
            sa.text(
                f'CREATE TRIGGER IF NOT EXISTS "{name}" BEFORE {event} ON "{table}" '
                f"WHEN NEW.{claims} BEGIN SELECT RAISE(ABORT, 'no pickles'); END"
            )
        )


def _guard_postgres(connection: sa.Connection, table: sa.Table) -> None:
    name = f"no_pickle_{table.name}"
    checks = sa.inspect(connection).get_check_constraints(table.name, schema=table.schema)
    if name not in {check["name"] for check in checks}:
        connection.execute(
            sa.text(
                f'ALTER TABLE "{table.schema}"."{table.name}" ADD CONSTRAINT "{name}" '
                f"CHECK (serialization IS DISTINCT FROM '{_PICKLE}')"
            )
        )
