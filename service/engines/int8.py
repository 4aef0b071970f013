"""Int8 versions and the engines that have no int8 arithmetic."""

from __future__ import annotations

from model.artifacts.manifest import ModelManifest
from service.core.device.engine import EngineUnavailableError


def refuse_int8(manifest: ModelManifest, engine: str) -> None:
    """Refuse an int8 version for an engine that would compute its rounded weights in floating point.

    Raises:
        EngineUnavailableError: the version is int8.
    """
    if manifest.precision == "int8":
        raise EngineUnavailableError(
            f"{engine} does not run int8 versions: serve {manifest.derived_from}, its original"
        )
