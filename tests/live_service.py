"""``bisenet serve`` as users start it: a process of its own, in which importing torch fails."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx2
from fakes import PATIENCE_S

ROOT = Path(__file__).parents[1]
_WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("this test has no torch")
sys.meta_path.insert(0, NoTorch())
import bisenet
bisenet.main()
"""
BISENET = [sys.executable, "-c", _WITHOUT_TORCH]


@dataclass(frozen=True)
class Server:
    """A running service."""

    process: subprocess.Popen[str]
    client: httpx2.Client
    log: Path

    @property
    def grpc_address(self) -> str:
        """Return ``HOST:PORT`` as the service has logged it."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return str(next(line["grpc_address"] for line in lines if line["event"] == "listening"))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    @contextmanager
    def connection(self) -> Iterator[tuple[socket.socket, IO[bytes]]]:
        """Open a connection of one's own, to write to and to read from."""
        url = self.client.base_url
        with (
            socket.create_connection((url.host, url.port), timeout=PATIENCE_S) as raw,
            raw.makefile("rb") as reader,
        ):
            yield raw, reader

    def wait_until_logged(self, text: str) -> None:
        """Return when the log contains a text and the end of its line: it is written in the background."""
        given_up_s = time.monotonic() + PATIENCE_S
        while "\n" not in self.log.read_text().partition(text)[2]:
            assert time.monotonic() < given_up_s, f"never logged: {text}"
            time.sleep(0.01)

    def memory_bytes(self) -> int:
        """Return what the service and its workers have in memory; what they share counts once."""
        return sum(map(_proportional_bytes, processes_of(self.process.pid)))

    @contextmanager
    def peak_memory(self) -> Iterator[list[int]]:
        """Look at the memory again and again; the list's only item is the most that was seen."""
        peak, done = [self.memory_bytes()], threading.Event()

        def look() -> None:
            while not done.wait(0.1):
                peak[0] = max(peak[0], self.memory_bytes())

        watching = threading.Thread(target=look)
        watching.start()
        try:
            yield peak
        finally:
            done.set()
            watching.join()


def processes_of(pid: int) -> list[int]:
    """Return a process and all that come from it."""
    return [pid, *_descendants(pid)]


def workers_of(server: Server) -> list[int]:
    """Return the processes that hold models."""
    return [
        pid
        for pid in _descendants(server.process.pid)
        if b"service.worker_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def _descendants(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield int(child)
            yield from _descendants(int(child))


def _proportional_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def serving_environment(registry: Path, cache_folder: Path, home: Path, model: str) -> dict[str, str]:
    """Return all that the process gets to know of its surroundings."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "BISENET_REGISTRY": str(registry),
        "BISENET_MODELS__CACHE_FOLDER": str(cache_folder),
        "BISENET_MODELS__SERVE": model,
        "BISENET_MODELS__PRECISION": "f32",  # "auto" compiles and times several engines first
        "BISENET_JOBS__MODE": "off",  # several services of one home would need a folder each
        "BISENET_SERVER__ADMIN_PORT": "0",
        "BISENET_SERVER__GRPC_PORT": "0",
        "BISENET_SERVER__LAME_DUCK_S": "0",
    }


@contextmanager
def started(
    environment: Mapping[str, str],
    log: Path,
    *arguments: str,
    stderr: int | None = None,
    files: int | None = None,
) -> Iterator[Server]:
    """Start a service on a free port, wait until it is ready, and kill it if it still runs in the end.

    Args:
        environment: of the process.
        log: where its stderr goes, unless ``stderr`` is a descriptor for it.
        arguments: of ``bisenet serve``.
        stderr: see ``log``.
        files: how many the process may have open; None = as many as this one.
    """
    limit = [] if files is None else ["bash", "-c", f'ulimit -n {files}; exec "$0" "$@"']
    with (
        log.open("w") as log_file,
        subprocess.Popen(
            [*limit, *BISENET, "serve", "--http-port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=log_file if stderr is None else stderr,
            text=True,
            env=dict(environment),
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+(?=/v1/segment)", line)
            assert address, f"{line!r}, and on stderr: {log.read_text()}"
            with httpx2.Client(base_url=address[0], timeout=PATIENCE_S) as client:
                yield Server(process, client, log)
        finally:
            process.kill()
