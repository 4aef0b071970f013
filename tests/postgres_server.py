"""A Postgres server for tests, from the system's own package, in a temporary folder and on a socket there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_USERS = ("postgres", "nobody")  # it refuses to run as root


def find_postgres() -> Path | None:
    """Return the folder of the server's programs; None where it is not installed."""
    on_path = shutil.which("pg_ctl")
    folders = [
        *Path("/usr/lib/postgresql").glob("*/bin"),
        *([Path(on_path).resolve().parent] if on_path else []),
    ]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class PostgresServer:
    """A running server.

    Args:
        programs: where ``postgres`` is.
        folder: of the data, and of the socket.
        user: under whom it runs; None = under ours.
    """

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs = programs
        self._folder = folder
        self._user = user
        self._databases = 0
        self._run("initdb", "-D", str(folder / "data"), "-U", "tests", "-A", "trust", "--no-sync")

    def start(self) -> None:
        """Start it, and return when it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c fsync=off"
        self._control("start", "-l", str(self._folder / "log"), "-o", options)

    def stop(self) -> None:
        """Cut off who is connected, and stop it."""
        self._control("stop", "-m", "fast")

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-w", "-t", "120", "-D", str(self._folder / "data"), *arguments)

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        self._databases += 1
        name = f"jobs{self._databases}"
        self._run("createdb", "-h", str(self._folder), "-U", "tests", name)
        return f"postgresql://tests@/{name}?host={self._folder}"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )


@contextmanager
def postgres_server(programs: Path) -> Iterator[PostgresServer]:
    """Run a server as long as the context lasts."""
    user = None
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # not pytest's own, which only root may enter
    if os.geteuid() == 0:
        user = next(name for name in _USERS if _exists(name))
        shutil.chown(folder, user)
    try:
        server = PostgresServer(programs, folder, user)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _exists(user: str) -> bool:
    return subprocess.run(["/usr/bin/id", user], capture_output=True, check=False).returncode == 0
