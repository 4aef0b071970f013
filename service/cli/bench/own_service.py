"""A service that a benchmark starts on this machine; its processor time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

from service.cli.bench.load import RefusedError
from service.telemetry import PICTURE_CPU

_STOP_S = 30.0
_METRICS_TIMEOUT_S = 30.0
_ALONE = {
    "BISENET_SERVER__ADMIN_PORT": "0",
    "BISENET_SERVER__GRPC_PORT": "0",
    "BISENET_SERVER__LAME_DUCK_S": "0",
    "BISENET_JOBS__MODE": "off",
    "BISENET_LOG__LEVEL": "warning",
}
"""Settings of a service with one client; the cost of log lines is not measured."""


@dataclass(frozen=True)
class OwnService:
    """A running service.

    Attributes:
        url: of HTTP.
        grpc_address: ``HOST:PORT``.
        admin_url: of administration and metrics.
        admin_token_file: holds the token for ``admin_url``.
        pid: of its process.
    """

    url: str
    grpc_address: str
    admin_url: str
    admin_token_file: Path
    pid: int


@contextmanager
def own_service(arguments: Sequence[str]) -> Iterator[OwnService]:
    """Run ``bisenet serve`` on free ports as long as the context lasts.

    Args:
        arguments: further flags.

    Raises:
        RefusedError: it does not start; its stderr says why.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ready_file, token_file = folder / "ready.json", folder / "admin-token"
        environment = {**os.environ, **_ALONE, "BISENET_AUTH__ADMIN_TOKEN_FILE": str(token_file)}
        command = [sys.executable, "-m", "service", "--http-port", "0", "--ready-file", str(ready_file)]
        with subprocess.Popen(  # noqa: S603 - our own program
            [*command, *arguments], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()  # comes when the file is there, or at the end of the process
                if not ready_file.exists():
                    raise RefusedError("it did not start")
                said = json.loads(ready_file.read_text("utf-8"))
                addresses = said["url"], said["grpc_address"], said["admin_url"]
                yield OwnService(*addresses, token_file, process.pid)
            finally:
                process.terminate()
                _wait(process)


def _wait(process: subprocess.Popen[Any]) -> None:
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


@dataclass(frozen=True)
class ProcessorTimes:
    """Time that a service has spent on processors since its start, in seconds.

    Attributes:
        service_s: of its own process.
        workers_s: of its worker processes.
        decode_s: of ``service_s``, from a picture's file to the pixels that the network sees.
        encode_s: of ``service_s``, from labels to the encoded mask.
    """

    service_s: float
    workers_s: float
    decode_s: float
    encode_s: float

    def __sub__(self, earlier: ProcessorTimes) -> ProcessorTimes:
        """Return the time spent since an earlier look."""
        return ProcessorTimes(
            self.service_s - earlier.service_s,
            self.workers_s - earlier.workers_s,
            self.decode_s - earlier.decode_s,
            self.encode_s - earlier.encode_s,
        )

    @property
    def overhead_s(self) -> float:
        """Time of the service's process outside decoding and encoding."""
        return self.service_s - self.decode_s - self.encode_s


class ServiceWatch:
    """Looks at the processor time and the memory of a service.

    Args:
        service: runs on this machine.
    """

    def __init__(self, service: OwnService) -> None:
        self._pid = service.pid
        token = service.admin_token_file.read_text("utf-8").strip()
        self._metrics = Request(  # noqa: S310 - an address that the service itself has written
            f"{service.admin_url}/metrics", headers={"Authorization": f"Bearer {token}"}
        )

    def processor_times(self) -> ProcessorTimes:
        """Return the processor times until now.

        Raises:
            RefusedError: the service does not answer.
        """
        pictures_s = self._picture_cpu_s()
        workers_s = sum(map(process_cpu_s, _children(self._pid)))
        service_s = process_cpu_s(self._pid)
        return ProcessorTimes(service_s, workers_s, pictures_s["decode"], pictures_s["encode"])

    def rss_mb(self) -> float:
        """Return the memory of the process and its workers, in megabytes."""
        return sum(_rss_mb(pid) for pid in (self._pid, *_children(self._pid)))

    def _picture_cpu_s(self) -> dict[str, float]:
        try:
            with urlopen(self._metrics, timeout=_METRICS_TIMEOUT_S) as answer:  # noqa: S310 - as above
                families = text_string_to_metric_families(answer.read().decode())
        except OSError as error:
            raise RefusedError(f"no metrics: {error}") from error
        samples = (sample for family in families for sample in family.samples)
        return {sample.labels["stage"]: sample.value for sample in samples if sample.name == PICTURE_CPU}


def process_cpu_s(pid: int) -> float:
    """Return the time that a process of this machine has spent on processors, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
