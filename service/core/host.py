"""The models that this process serves, and the one way to have a picture answered by one of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import structlog

from model import decode
from model.artifact import Artifact
from model.manifest import ModelManifest, ModelVersion
from model.preprocess import PreparedImage
from service.core.engine import (
    EngineBuilder,
    EngineInfo,
    EngineOptions,
    InferenceEngine,
    private_folder,
)
from service.core.errors import LoadingError, ModelNotFoundError, VersionNotFoundError
from service.core.worker import Answer, InferenceWorker, Task

_log = structlog.get_logger()


@dataclass(frozen=True)
class ServedModel:
    """One version that is loaded and has proved itself."""

    version: ModelVersion
    manifest: ModelManifest
    engine: EngineInfo


@dataclass(frozen=True, eq=False)
class _Loaded:
    served: ServedModel
    engine: InferenceEngine


class ModelHost:
    """Holds engines and the worker that runs them; thread-safe.

    The caller sees versions, prepared pictures and futures only, so that the worker may be a thread here
    and a process elsewhere.

    Args:
        build: makes an engine of an artifact and proves it.
        options: how engines are built.
        worker: runs them; closed with the host.
    """

    def __init__(self, build: EngineBuilder, options: EngineOptions, worker: InferenceWorker) -> None:
        self._build = build
        self._options = options
        self._worker = worker
        self._lock = threading.Lock()
        self._expected: list[ModelVersion] = []
        self._loaded: dict[ModelVersion, _Loaded] = {}

    @property
    def ready(self) -> bool:
        """Whether there is a model, and every expected one is loaded."""
        return bool(self._expected) and len(self._loaded) == len(self._expected)

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """What is loaded, in the order in which it was expected: the first is the default."""
        with self._lock:
            return tuple(self._loaded[v].served for v in self._expected if v in self._loaded)

    def expect(self, version: ModelVersion) -> None:
        """Promise a version: until it is loaded, asking for it means "try again" and not "no such model"."""
        with self._lock:
            if version not in self._expected:
                self._expected.append(version)

    def load(self, version: ModelVersion, artifact: Artifact) -> ServedModel:
        """Build an engine for a version and serve it; nothing is compiled later, on a request.

        Raises:
            EngineUnavailableError: this machine cannot run the engine.
            model.errors.ArtifactError: the artifact must not be used, or the engine computes something else.
        """
        self.expect(version)
        started_s = time.monotonic()
        decode.warm_up(private_folder(self._options.cache_folder / "numba"))
        engine = self._build(artifact, self._options)
        served = ServedModel(version, artifact.manifest, engine.info)
        with self._lock:
            self._loaded[version] = _Loaded(served, engine)
        _log.info("model loaded", model=str(version), seconds=round(time.monotonic() - started_s, 3))
        return served

    def find(self, name: str | None = None, number: int | None = None) -> ServedModel:
        """Return the served version that a request means.

        Args:
            name: of a model; None = that of the first one.
            number: of the version; None = the first one of this name.

        Raises:
            LoadingError: it is expected, but not loaded yet.
            ModelNotFoundError: no model of this name is served.
            VersionNotFoundError: the model is served, but not in this version.
        """
        with self._lock:
            version = _pick(self._expected, name, number)
            if version not in self._loaded:
                raise LoadingError(f"{version} is not loaded yet")
            return self._loaded[version].served

    def submit(self, image: PreparedImage, *, version: ModelVersion, deadline_s: float) -> Future[Answer]:
        """Queue one picture.

        Args:
            image: prepared as the version's manifest says.
            version: what ``find`` returned.
            deadline_s: when nobody waits for the answer any more, on the clock of ``time.monotonic``.

        Returns:
            The labels to come; cancelling the future withdraws the picture unless the engine already has it.

        Raises:
            VersionNotFoundError: the version is not served (any more).
            QueueFullError: too many pictures wait, or they alone outlast the deadline.
            DrainingError: the host is about to close.
        """
        with self._lock:
            loaded = self._loaded.get(version)
        if loaded is None:
            raise VersionNotFoundError(f"{version} is not served")
        return self._worker.submit(Task(loaded.engine, loaded.served.manifest, image), deadline_s=deadline_s)

    def close(self) -> None:
        """Answer what waits, then free the device."""
        self._worker.close()
        for loaded in self._loaded.values():
            loaded.engine.close()


def _pick(expected: Sequence[ModelVersion], name: str | None, number: int | None) -> ModelVersion:
    if not expected:
        raise LoadingError("no model is loaded yet")
    name = expected[0].name if name is None else name
    named = [version for version in expected if version.name == name]
    if not named:
        raise ModelNotFoundError(f"no model {name!r} is served")
    for version in named:
        if number in (None, version.number):
            return version
    raise VersionNotFoundError(f"{name!r} is not served in version {number}")
