"""The evaluations of the served models."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import structlog

from model.artifacts.evaluation_records import StoredEvaluation
from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from model.errors import StorageError

_log = structlog.get_logger()


class Scoreboard:
    """Keeps the evaluations of models as of the last ``refresh``; thread-safe.

    Args:
        registry: has the reports.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._known: dict[str, list[StoredEvaluation]] = {}

    def refresh(self, names: Iterable[str]) -> None:
        """Read the evaluations of some models from the registry; if the store fails, the old ones stay."""
        for name in set(names):
            try:
                found = self._registry.evaluations.of_model(name)
            except StorageError as error:
                _log.warning("evaluations cannot be read", model=name, reason=str(error))
                continue
            with self._lock:
                self._known[name] = found

    def of(self, version: ModelVersion) -> tuple[StoredEvaluation, ...]:
        """Return the newest evaluation of a version for each data set, split and protocol."""
        with self._lock:
            known = list(self._known.get(version.name, ()))
        newest = {(one.dataset, one.split, one.protocol): one for one in known if one.version == version}
        return tuple(newest[key] for key in sorted(newest))
