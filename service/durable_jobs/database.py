"""The jobs database: where it is, whose it is, and that nothing in it is ever unpickled."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import sqlalchemy as sa
from dbos import DBOS, DBOSPortableJSONSerializer
from dbos._serialization import DefaultSerializer
from sqlalchemy.exc import DatabaseError, DBAPIError

from service.core.errors import BusyError, StorageFullError
from service.durable_jobs.errors import JobsUnavailableError

APPLICATION = "bisenet"
SCHEMA = "bisenet_jobs"
"""Of a Postgres database, so that it may be shared with others."""

SERIALIZER = DBOSPortableJSONSerializer()

_FILE = "jobs.sqlite"
_LOCK_FILE = "lock"
_PICKLE = "py_pickle"
_LOCKED_S = 5.0  # how long somebody else may keep the file locked
_GUARDING_KEY = 0x62697365_6E657400  # "bisenet" in ASCII: a number that others hardly take
_CHECK_VIOLATION = "23514"
_DISK_FULL = ("database or disk is full", "No space left on device")


@dataclass(frozen=True)
class JobsDatabase:
    """Where jobs are kept.

    Args:
        url: of SQLAlchemy.
        folder: of the SQLite file; None on Postgres, which several machines may share.
    """

    url: str
    folder: Path | None = None

    @classmethod
    def at(cls, url: str | None, folder: Path) -> JobsDatabase:
        """Return the database at a ``postgresql://`` URL, or the file in a folder when there is none."""
        return cls(f"sqlite:///{folder / _FILE}", folder) if url is None else cls(url)

    def __str__(self) -> str:
        """Return what may be logged: no password."""
        return sa.make_url(self.url).render_as_string(hide_password=True)

    def prepare(self) -> None:
        """Create or migrate the tables, and see that no row is a pickle, nor can become one.

        DBOS unpickles every row that says that it is one, whatever serializer is configured: who can write
        to the database could run code in the service.

        Raises:
            JobsUnavailableError: it is damaged, not reachable, or holds a pickle.
        """
        DefaultSerializer.deserialize = _refuse_pickle  # type: ignore[assignment, method-assign]
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
        """Return connections of our own; the caller disposes of them."""
        url = sa.make_url(self.url)
        if url.get_backend_name() == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        return sa.create_engine(url)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Be the only process that runs the jobs of an SQLite file; the lock ends with the process.

        Raises:
            JobsUnavailableError: another process runs them.
        """
        with ExitStack() as stack:
            if self.folder is not None:
                stack.enter_context(_locked(self.folder))
            yield


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn a database that does not answer into what the core calls it.

    Raises:
        StorageFullError: there is no room left to write.
        BusyError: it is locked by somebody, or away.
    """
    try:
        yield
    except DBAPIError as error:
        if any(text in str(error.orig) for text in _DISK_FULL):
            raise StorageFullError("there is no room left for the jobs database") from error
        raise BusyError("the jobs database does not answer", retry_after_s=5.0) from error


def _refuse_pickle(_self: object, _serialized: str) -> NoReturn:
    raise ValueError("a row of the jobs database claims to be a pickle")


@contextmanager
def _as_unavailable(database: JobsDatabase) -> Iterator[None]:
    try:
        yield
    except (
        sqlite3.OperationalError
    ) as error:  # it may be in order, but somebody keeps it locked, or the disk fails
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
    """Make the file, for its owner only, or look through the one that is there."""
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
        raise PermissionError(0, "its folder belongs to somebody else")


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
    """Let the database itself refuse rows that claim to be pickles; fail when there is one already."""
    if connection.dialect.name == "sqlite":
        for table in _tables_with_values(connection):
            _guard_sqlite(connection, table.name)
        return
    # One at a time, until the transaction ends: of two that find a guard missing, one would fail to add it.
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _GUARDING_KEY})
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
