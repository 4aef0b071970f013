"""The versions that are loaded in this process, and the version that each name means."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import structlog

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelManifest, ModelVersion
from service.core.device.engine import DEFAULT_TUNING, EngineTuning, Precision
from service.core.errors import ConflictError, LoadingError, ModelNotFoundError, VersionNotFoundError
from service.core.models.loaded_model import LoadedModel
from service.core.scheduling.dispatcher import Dispatcher
from service.telemetry import Metrics, ModelLabels

_log = structlog.get_logger()

_VERSION_NUMBER = re.compile(r"[1-9][0-9]{0,8}")

TuningOf = Callable[[ModelVersion, ModelManifest], EngineTuning]
"""Returns the tuning of a version's engine."""


def _default_tuning(_: ModelVersion, __: ModelManifest) -> EngineTuning:
    return DEFAULT_TUNING


class ModelHost:
    """Loads versions and finds the version that a name means; thread-safe.

    A version is loaded beside the served ones. ``serve`` then lets the bare name mean the new version, in one
    step, and ``unload`` frees the old one after its last holder.

    Args:
        dispatcher: queues pictures for the versions; closed with the host.
        metrics: counts the served versions.
        tuning_of: returns the tuning of a version's engine.
    """

    def __init__(
        self, dispatcher: Dispatcher, metrics: Metrics | None = None, *, tuning_of: TuningOf = _default_tuning
    ) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics or Metrics()
        self._tuning_of = tuning_of
        self._changed = threading.Condition(threading.RLock())
        self._loading = threading.Lock()  # one at a time: compilers take all cores
        self._meant: dict[str, ModelVersion] = {}  # by the bare name; the first is the default model
        self._expected: list[ModelVersion] = []
        self._loaded: dict[ModelVersion, LoadedModel] = {}
        self._borrowed: set[ModelVersion] = set()  # of the loaded ones: borrowed and not served
        self._holders: Counter[ModelVersion] = Counter()

    @property
    def ready(self) -> bool:
        """Whether there is a model, every expected one is loaded, and a worker runs them."""
        with self._changed:
            all_loaded = all(version in self._loaded for version in self._expected)
            return bool(self._loaded) and all_loaded and self._dispatcher.is_ready

    @property
    def models(self) -> tuple[LoadedModel, ...]:
        """The served versions: the default model first, and in each model first the one of its bare name."""
        with self._changed:
            rank = {name: i for i, name in enumerate(self._meant)}
            served = (one for version, one in self._loaded.items() if version not in self._borrowed)
            return tuple(sorted(served, key=lambda m: (rank[m.version.name], not self._is_meant(m.version))))

    @property
    def missing(self) -> tuple[ModelVersion, ...]:
        """What is expected and not loaded yet."""
        with self._changed:
            return tuple(version for version in self._expected if version not in self._loaded)

    def expect(self, version: ModelVersion) -> None:
        """Announce a version: until it is loaded, requests for it get ``loading`` and not ``not_found``."""
        with self._changed:
            self._meant.setdefault(version.name, version)
            if version not in self._expected:
                self._expected.append(version)

    def load(self, version: ModelVersion, artifact: Artifact) -> LoadedModel:
        """Load a version beside the served ones; takes seconds, in which the others go on answering.

        Its engine is built, must reproduce the golden sample, and runs once at each picture size in use. Then
        the version is served under its number. The bare name keeps its meaning, unless the model has no other
        version. If a step fails, nothing changes.

        Args:
            version: not loaded again if it is loaded.
            artifact: of the version.

        Raises:
            EngineUnavailableError: this machine cannot run the engine.
            model.errors.ArtifactError: the artifact must not be used, or the engine computes something else.
            NoWorkerError: the worker died of it.
        """
        with self._loading:
            return self._load(version, artifact)

    def borrow(
        self, version: ModelVersion, artifact: Artifact, *, precision: Precision | None = None
    ) -> None:
        """Load a version that is not served, until ``give_back``.

        It is not among ``models``, and no request finds it, unless ``load`` serves it as well.

        Args:
            version: not loaded again if it is loaded.
            artifact: of the version.
            precision: of its engine; None = the choice for this machine.

        Raises:
            EngineUnavailableError: this machine cannot run the engine.
            model.errors.ArtifactError: the artifact must not be used, or the engine computes something else.
            NoWorkerError: the worker died of it.
        """
        with self._loading:
            self._load(version, artifact, is_borrowed=True, precision=precision)

    def give_back(self, version: ModelVersion) -> None:
        """Free a borrowed version, unless it is served or unloaded by now."""
        with self._changed:
            is_unwanted = version in self._borrowed
        if is_unwanted:
            with suppress(ConflictError, VersionNotFoundError):  # another thread was faster
                self.unload(version)

    def has(self, version: ModelVersion) -> bool:
        """Return whether a version is loaded, borrowed or served."""
        with self._changed:
            return version in self._loaded

    def serve(self, version: ModelVersion) -> ModelVersion | None:
        """Let the bare name mean this version; pictures that have begun keep their version.

        Returns:
            The version that the name meant before; None if it meant this one.

        Raises:
            VersionNotFoundError: the version is not loaded.
        """
        with self._changed:
            self._served(version)
            self._want(version)
            previous, self._meant[version.name] = self._meant[version.name], version
        if previous == version:
            return None
        _log.info("model served", model=str(version), previous=str(previous))
        return previous

    def unload(self, version: ModelVersion, *, drain_s: float = 60.0) -> None:
        """Free a version when it has no holder and none of its pictures waits.

        Args:
            version: not the one that a bare name means.
            drain_s: time in which its holders may finish, in seconds; then their requests fail with
                ``version_not_found``.

        Raises:
            VersionNotFoundError: the version is not loaded.
            ConflictError: the bare name means this version.
        """
        with self._changed:
            served = self._served(version)
            if self._is_meant(version):
                raise ConflictError(f"{version} is what {version.name!r} means: serve another version first")
            self._expected = [expected for expected in self._expected if expected != version]
            self._changed.wait_for(lambda: not self._holders[version], timeout=drain_s)
            if self._loaded.pop(version, None) is None:
                raise VersionNotFoundError(f"{version} is not loaded")  # another thread was faster
            self._borrowed.discard(version)
        self._dispatcher.unload(version)
        self._metrics.model_unloaded(_labels(served))
        _log.info("model unloaded", model=str(version))

    def find(self, name: str | None = None, number: int | None = None) -> LoadedModel:
        """Return the served version that a request means.

        Args:
            name: of a model; None = the default model.
            number: of the version; None = the version of the bare name.

        Raises:
            LoadingError: the version is announced, but not loaded yet.
            ModelNotFoundError: no model of this name is served.
            VersionNotFoundError: the model is served, but not in this version.
        """
        with self._changed:
            if not self._meant:
                raise LoadingError("no model is loaded yet")
            name = next(iter(self._meant)) if name is None else name
            if name not in self._meant:
                raise ModelNotFoundError(f"no model {name!r} is served")
            version = self._meant[name] if number is None else ModelVersion(name, number)
            if version in self._expected and version not in self._loaded:
                raise LoadingError(f"{version} is not loaded yet")
            if version not in self._loaded or version in self._borrowed:
                raise VersionNotFoundError(f"{version} is not served")
            return self._loaded[version]

    @contextmanager
    def hold(self, name: str | None = None, number: int | None = None) -> Iterator[LoadedModel]:
        """Find the served version that a request means, and keep it loaded until the context is left.

        Args:
            name: of a model; None = the default model.
            number: of the version; None = the version of the bare name.

        Raises:
            LoadingError: the version is announced, but not loaded yet.
            ModelNotFoundError: no model of this name is served.
            VersionNotFoundError: the model is served, but not in this version.
        """
        with self._changed:
            served = self.find(name, number)
            self._holders[served.version] += 1
        try:
            yield served
        finally:
            self._let_go(served.version)

    @contextmanager
    def hold_loaded(self, version: ModelVersion) -> Iterator[LoadedModel]:
        """Return a loaded version, borrowed or served, and keep it loaded until the context is left.

        Raises:
            VersionNotFoundError: the version is not loaded.
        """
        with self._changed:
            served = self._served(version)
            self._holders[version] += 1
        try:
            yield served
        finally:
            self._let_go(version)

    def close(self) -> None:
        """Answer the waiting pictures, then free the device."""
        self._dispatcher.close()

    def _load(
        self,
        version: ModelVersion,
        artifact: Artifact,
        *,
        is_borrowed: bool = False,
        precision: Precision | None = None,
    ) -> LoadedModel:
        with self._changed:
            if version in self._loaded:
                if not is_borrowed:
                    self._want(version)
                return self._loaded[version]
        started_s = time.monotonic()
        tuning = self._tuning_of(version, artifact.manifest)
        if precision not in (None, tuning.precision):
            tuning = EngineTuning(precision)
        engine = self._dispatcher.load(version, artifact, self._dispatcher.recent_sizes, tuning)
        seconds = time.monotonic() - started_s
        served = LoadedModel(version, artifact.manifest, engine, self._dispatcher, tuning.choice)
        with self._changed:
            self._loaded[version] = served
            if is_borrowed:
                self._borrowed.add(version)
            else:
                self._want(version)
        self._metrics.model_loaded(_labels(served), seconds=seconds)
        _log.info("model loaded", model=str(version), seconds=round(seconds, 3))
        return served

    def _let_go(self, version: ModelVersion) -> None:
        with self._changed:
            self._holders[version] -= 1
            self._changed.notify_all()

    def _want(self, version: ModelVersion) -> None:
        self._meant.setdefault(version.name, version)
        self._borrowed.discard(version)

    def _is_meant(self, version: ModelVersion) -> bool:
        return self._meant.get(version.name) == version

    def _served(self, version: ModelVersion) -> LoadedModel:
        if version not in self._loaded:
            raise VersionNotFoundError(f"{version} is not served")
        return self._loaded[version]


def _labels(served: LoadedModel) -> ModelLabels:
    version, engine = served.version, served.engine
    return ModelLabels(version.name, version.number, engine.engine, engine.device, engine.precision)


def version_number(text: str) -> int:
    """Return the number of a version that a client names.

    Raises:
        VersionNotFoundError: the text is none.
    """
    if not _VERSION_NUMBER.fullmatch(text):
        raise VersionNotFoundError("a version is a number from 1")
    return int(text)
