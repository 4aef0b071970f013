"""``bisenet serve`` as users start it: a process of its own, in which importing torch fails."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
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

    def rss_bytes(self) -> int:
        return self._memory("VmRSS")

    def peak_rss_bytes(self) -> int:
        """Return the most since the start, or since ``forget_peak``."""
        return self._memory("VmHWM")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _memory(self, key: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def serving_environment(registry: Path, cache_folder: Path, home: Path, model: str) -> dict[str, str]:
    """Return all that the process gets to know of its surroundings."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "BISENET_REGISTRY": str(registry),
        "BISENET_MODELS__CACHE_FOLDER": str(cache_folder),
        "BISENET_MODELS__SERVE": model,
    }


@contextmanager
def started(environment: Mapping[str, str], log: Path, *arguments: str) -> Iterator[Server]:
    """Start a service on a free port, wait until it is ready, and kill it if it still runs in the end."""
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [*BISENET, "serve", "--http-port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
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
