"""Changes the served versions while they are served, in the registry and in the host together.

A version is loaded and proved beside the old one. Then the alias is moved, and the bare name means the new
version. The old version is unloaded after its last picture is answered. If a step fails, the old one stays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog

import model.errors as model_errors
from model.artifacts.aliases import Alias
from model.artifacts.manifest import ModelReference, ModelVersion
from model.artifacts.registry import DEFAULT_ALIAS, ModelRegistry
from service.core.device.engine import EngineUnavailableError
from service.core.errors import (
    BusyError,
    ConflictError,
    InvalidArgumentError,
    ModelNotFoundError,
    ServiceError,
    VersionNotFoundError,
)
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost

_log = structlog.get_logger()

REFUSED_S = 60.0
"""After which a version that could not be loaded is tried again: loading takes all cores for seconds."""

_SERVICE_ERRORS: Mapping[type[model_errors.ModelError], type[ServiceError]] = {
    model_errors.InvalidReferenceError: InvalidArgumentError,
    model_errors.ModelNotFoundError: ModelNotFoundError,
    model_errors.VersionNotFoundError: VersionNotFoundError,
    model_errors.VersionConflictError: ConflictError,
}
"""Registry errors whose message is for the client; the messages of others are only logged."""


@dataclass(frozen=True)
class RegisteredModel:
    """A model of the registry.

    Attributes:
        name: of the model.
        versions: number -> whether this service serves it.
        aliases: where each alias points.
        bare_version: the served version that the bare name means; None = no version of the model is served.
    """

    name: str
    versions: Mapping[int, bool]
    aliases: Mapping[str, Alias]
    bare_version: int | None


class LiveVersions:
    """Changes the served versions; thread-safe, one change at a time; each takes seconds.

    Args:
        registry: has versions and aliases.
        host: has the loaded versions.
        references: of the settings; those without a number follow their alias.
    """

    def __init__(
        self, registry: ModelRegistry, host: ModelHost, references: Sequence[ModelReference]
    ) -> None:
        self._registry = registry
        self._host = host
        self._references = references
        self._lock = threading.Lock()
        self._refused: dict[ModelReference, tuple[ModelVersion, float]] = {}

    def overview(self) -> list[RegisteredModel]:
        """Return all models of the registry, sorted by name; each with its versions and aliases.

        Raises:
            BusyError: the registry does not answer.
        """
        served = {model.version for model in self._host.models}
        with _service_errors():
            return [self._registered(name, served) for name in self._registry.models()]

    def load(self, name: str, number: int | None = None) -> LoadedModel:
        """Serve a version under its number, beside the others.

        Args:
            name: of the model.
            number: of the version; None = its alias ``production``, else its highest version.

        Raises:
            InvalidArgumentError: the name or the number is malformed.
            ModelNotFoundError: there is no such model in the registry.
            VersionNotFoundError: there is no such version.
            ConflictError: its proof on this machine fails.
            BusyError: the registry does not answer.
        """
        with self._lock, _service_errors():
            return self._load(self._existing(name, number))

    def unload(self, name: str, number: int | None = None) -> None:
        """Unload a version; pictures that have begun are answered.

        Args:
            name: of the model.
            number: of the version; None = the one that the bare name means, which stays.

        Raises:
            InvalidArgumentError: the name or the number is malformed.
            ModelNotFoundError: no version of the model is served.
            VersionNotFoundError: the version is not served.
            ConflictError: the bare name means this version.
        """
        with self._lock, _service_errors():
            meant = self._host.find(name).version if number is None else ModelVersion(name, number)
            self._host.unload(meant)

    def promote(self, name: str, alias: str, number: int) -> Alias:
        """Point an alias at a version, and serve the version if this service follows the alias.

        A new alias keeps the version that was served without it, for a rollback.

        Raises:
            ServiceError: an error of ``load``; nothing has changed.
        """
        with self._lock, _service_errors():
            version = self._existing(name, number)
            with self._loaded_for(version, alias):
                moved = self._registry.promote(version, alias, instead_of=self._meant(name, alias))
            self._follow(version, alias)
            return moved

    def rollback(self, name: str, alias: str) -> Alias:
        """Point an alias at its earlier version, and serve that if this service follows the alias.

        Raises:
            VersionNotFoundError: there is no such alias, or it has no earlier version.
            ServiceError: an error of ``load``; nothing has changed.
        """
        with self._lock, _service_errors():
            with self._loaded_for(self._earlier(name, alias), alias):
                moved = self._registry.rollback(name, alias)
            self._follow(ModelVersion(name, moved.version), alias)
            return moved

    def catch_up(self, *, now_s: float | None = None) -> None:
        """Serve what the followed aliases point at by now: another process may have moved them.

        A version that does not prove itself here is tried again after ``REFUSED_S``; until then, and while
        the registry does not answer, what is served stays.

        Args:
            now_s: on the clock of ``time.monotonic``; None = now.

        Raises:
            ServiceError: as ``load``; other aliases are followed nevertheless.
        """
        now_s = time.monotonic() if now_s is None else now_s
        failures = []
        for reference in self._references:
            try:
                with _service_errors():
                    self._catch_up(reference, now_s)
            except ServiceError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _catch_up(self, reference: ModelReference, now_s: float) -> None:
        if self._behind(reference, now_s) is None:
            return
        with self._lock:  # and look again: the alias may have been moved here in the meantime
            version = self._behind(reference, now_s)
            if version is None:
                return
            try:
                self._follow(version, reference.alias or DEFAULT_ALIAS)
            except (model_errors.ModelError, EngineUnavailableError, ServiceError):
                self._refused[reference] = (version, now_s + REFUSED_S)
                raise
        _log.info("alias followed", model=str(version), alias=reference.alias or DEFAULT_ALIAS)

    def _behind(self, reference: ModelReference, now_s: float) -> ModelVersion | None:
        """Return the version that a reference means, if that is not served and not refused just now."""
        if reference.number is not None:
            return None
        alias = reference.alias or DEFAULT_ALIAS
        current = self._registry.alias(reference.name, alias)
        if current is None:  # what was served at the start stays
            return None
        version = ModelVersion(reference.name, current.version)
        refused, until_s = self._refused.get(reference, (None, 0.0))
        if refused == version and now_s < until_s:
            return None
        if self._is_meant(reference.name, alias):
            is_served = self._meant(reference.name, alias) == version.number
        else:
            is_served = self._is_loaded(version)
        return None if is_served else version

    def alias(self, name: str, alias: str) -> Alias | None:
        """Return where an alias points, or None if there is none.

        Raises:
            InvalidArgumentError: nothing can be called so.
            BusyError: the registry does not answer.
        """
        with _service_errors():
            return self._registry.alias(name, alias)

    def loaded(self, name: str) -> list[int]:
        """Return the numbers of the served versions of a model, in ascending order."""
        return sorted(m.version.number for m in self._host.models if m.version.name == name)

    def follows(self, name: str, alias: str) -> bool:
        """Return whether this service serves the version of an alias, also after the alias moves.

        True for the models of the settings, false for versions that were loaded by their number.
        """
        return any(_follows(reference, name, alias) for reference in self._references)

    def _registered(self, name: str, served: Collection[ModelVersion]) -> RegisteredModel:
        versions = {version.number: version in served for version in self._registry.versions(name)}
        bare_version = None
        with suppress(ServiceError):  # not served, or still loading
            bare_version = self._host.find(name).version.number
        return RegisteredModel(name, versions, self._registry.aliases(name), bare_version)

    def _existing(self, name: str, number: int | None) -> ModelVersion:
        return self._registry.resolve(ModelReference(name, number=number))

    def _load(self, version: ModelVersion) -> LoadedModel:
        return self._host.load(version, self._registry.open(version))

    @contextmanager
    def _loaded_for(self, version: ModelVersion | None, alias: str) -> Iterator[None]:
        """Load a version before its alias moves; unload it if the body fails."""
        if version is None or not self.follows(version.name, alias) or self._is_loaded(version):
            yield
            return
        self._load(version)
        try:
            yield
        except BaseException:
            self._retire(version)
            raise

    def _follow(self, version: ModelVersion, alias: str) -> None:
        if not self.follows(version.name, alias):
            return
        self._load(version)  # loaded already, unless another process moved the alias in the meantime
        if not self._is_meant(version.name, alias):
            return
        previous = self._host.serve(version)
        if previous is not None and previous not in self._wanted(version.name):
            self._retire(previous)

    def _earlier(self, name: str, alias: str) -> ModelVersion | None:
        current = self._registry.aliases(name).get(alias)
        existing = {version.number for version in self._registry.versions(name)}
        earlier = None if current is None else current.rolled_back(existing)
        return None if earlier is None else ModelVersion(name, earlier.version)

    def _is_meant(self, name: str, alias: str) -> bool:
        """Return whether the bare name means the version of an alias."""
        leading = next((reference for reference in self._references if reference.name == name), None)
        return leading is not None and _follows(leading, name, alias)

    def _meant(self, name: str, alias: str) -> int | None:
        """Return the version that the bare name means, if it follows the alias and that is loaded."""
        if self._is_meant(name, alias):
            with suppress(ServiceError):  # the service has just started
                return self._host.find(name).version.number
        return None

    def _is_loaded(self, version: ModelVersion) -> bool:
        return any(served.version == version for served in self._host.models)

    def _wanted(self, name: str) -> set[ModelVersion]:
        """Return the versions that the settings name by number."""
        numbers = (reference.number for reference in self._references if reference.name == name)
        return {ModelVersion(name, number) for number in numbers if number is not None}

    def _retire(self, version: ModelVersion) -> None:
        """Unload a version in the background: its last picture may take a while."""
        threading.Thread(target=self._unload_quietly, args=(version,), name="retire", daemon=True).start()

    def _unload_quietly(self, version: ModelVersion) -> None:
        try:
            self._host.unload(version)
        except (ConflictError, VersionNotFoundError) as error:  # promoted or unloaded in the meantime
            _log.info("model stays as it is", model=str(version), reason=str(error))


def _follows(reference: ModelReference, name: str, alias: str) -> bool:
    return reference.name == name and reference.number is None and (reference.alias or DEFAULT_ALIAS) == alias


@contextmanager
def _service_errors() -> Iterator[None]:
    try:
        yield
    except (model_errors.ModelError, EngineUnavailableError) as error:
        if (kind := _SERVICE_ERRORS.get(type(error))) is not None:  # type: ignore[arg-type]
            raise kind(str(error)) from error
        _log.warning("version is not changed", reason=str(error))
        if isinstance(error, model_errors.StorageError):
            raise BusyError("the registry does not answer") from error
        raise ConflictError("the version does not prove itself here; the log says why") from error
