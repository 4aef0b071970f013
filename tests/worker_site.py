"""A host whose models run in real worker processes, with engines that fail when they are told to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fakes import PATIENCE_S, write_pooling_artifact
from fault_engine import MARK_RGB, cell_classes

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.engine import EngineOptions
from service.core.device.process_runner import ProcessRunner
from service.core.device.restart_policy import RestartPolicy
from service.core.device.worker_connection import WorkerConnection
from service.core.models.model_host import ModelHost
from service.core.scheduling.dispatcher import Answer, Dispatcher
from service.telemetry import LogOptions
from service.worker_config import WORKER_MODULE, WorkerConfig

SIZE = ImageSize(64, 64)
CELLS = (8, 8)
VERSION = ModelVersion("pooling", 1)


_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
"""Of workers: they find the fault engine."""


class WorkerSite:
    """A host, with functions to ask it and to hurt its worker.

    Args:
        engine: as the settings name it.
        cache_folder: with compiled kernels.
        policy: when to start the next worker.
    """

    def __init__(self, engine: str, cache_folder: Path, *, policy: RestartPolicy | None = None) -> None:
        options = EngineOptions("cpu", "auto", cache_folder, threads=1)
        self._config = WorkerConfig(engine, options, LogOptions(level="error"))
        self.workers: list[WorkerConnection] = []
        self.before: list[
            Callable[[], WorkerConnection]
        ] = []  # started, the last one first, in place of workers
        self._ahead_s = 0.0
        self.runner = ProcessRunner(
            self._start, policy=policy, clock=lambda: time.monotonic() + self._ahead_s
        )
        self.dispatcher = Dispatcher(self.runner)
        self.host = ModelHost(self.dispatcher)

    def _start(self) -> WorkerConnection:
        if self.before:
            self.workers.append(self.before.pop()())
        else:
            self.workers.append(WorkerConnection(WORKER_MODULE, [self._config.to_json()], _ENVIRONMENT))
        return self.workers[-1]

    def submit(self, image: PreparedImage, version: ModelVersion = VERSION) -> Future[Answer]:
        """Ask for the labels of a picture."""
        deadline_s = time.monotonic() + PATIENCE_S
        reservation = self.dispatcher.reserve_picture(version, image.padded, deadline_s=deadline_s)
        return self.dispatcher.submit_picture(reservation, image)

    def labels(self, image: PreparedImage, version: ModelVersion = VERSION) -> UInt8Array:
        """Return the labels of a picture."""
        return self.submit(image, version).result(PATIENCE_S).labels_HW

    def picture(self, code: int, *, marked: bool = False) -> PreparedImage:
        """Return a picture whose cells spell a number, in shared memory."""
        canvas = self.dispatcher.canvas(SIZE, SIZE)
        canvas[...] = np.kron(red_of(code), np.ones((8, 8), np.uint8))[..., np.newaxis]
        if marked:
            canvas[0, 0] = MARK_RGB
        return PreparedImage(canvas, SIZE, SIZE)

    def kill(self) -> None:
        """End the present worker as the kernel would when there is no memory left."""
        self.workers[-1].kill()

    def let_hang_until_killed(self, worker: WorkerConnection) -> None:
        """Let time pass for the supervisor alone, until it has given up a worker."""
        given_up_s = time.monotonic() + PATIENCE_S
        while not worker.is_killed:
            assert time.monotonic() < given_up_s, "the worker is still trusted"
            self._ahead_s += 10.0
            self.runner._wake_supervisor()
            time.sleep(0.01)  # no event says so

    def wait_until_ready(self, workers: int) -> None:
        """Return when so many workers have been started and the last one is ready."""
        given_up_s = time.monotonic() + PATIENCE_S
        while len(self.workers) < workers or not self.dispatcher.is_ready:
            assert time.monotonic() < given_up_s, "there is no worker"
            time.sleep(0.01)  # no event says so


def red_of(code: int) -> UInt8Array:
    """Return red values, one for each cell, that spell a number in binary: dark is 0, bright is 1."""
    bits = np.array([code >> i & 1 for i in range(CELLS[0] * CELLS[1])], np.uint8)
    return (bits * 255).reshape(CELLS)


def spelled(labels_HW: UInt8Array, artifact: Artifact) -> int:
    """Return the number that labels of a version spell."""
    cells = labels_HW[4::8, 4::8]
    bright = int(cell_classes(np.array([255], np.uint8), artifact.manifest)[0])
    return sum(1 << i for i, label in enumerate(cells.ravel()) if label == bright)


@contextmanager
def open_worker_site(
    engine: str,
    artifacts: Sequence[Artifact],
    cache_folder: Path,
    *,
    policy: RestartPolicy | None = None,
) -> Iterator[WorkerSite]:
    """Open a host with versions 1, 2, ... of a model; whatever happens, its worker is gone in the end."""
    site = WorkerSite(engine, cache_folder, policy=policy)
    try:
        for number, artifact in enumerate(artifacts, start=1):
            site.host.load(ModelVersion("pooling", number), artifact)
        yield site
    finally:
        site.host.close()


def pooling_artifacts(folder: Path, count: int) -> list[Artifact]:
    """Write small artifacts that a fault engine tells apart: neighbours answer with other classes."""
    artifacts: list[Artifact] = []
    seed = 0
    while len(artifacts) < count:
        artifact = write_pooling_artifact(folder / str(seed), seed=seed)
        wanted = len(artifacts) % 2
        if int(cell_classes(np.array([255], np.uint8), artifact.manifest)[0]) == wanted:
            artifacts.append(artifact)
        seed += 1
    return artifacts


def wait_until(condition: Callable[[], bool]) -> None:
    given_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < given_up_s
        time.sleep(0.01)  # no event says so
