"""What the programs that the service starts are told: the one place that both sides import."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.pictures.preprocess import ImageSize
from service.core.device.engine import EngineOptions
from service.telemetry import LogOptions

WORKER_MODULE = "service.worker_process"
"""The program of a worker."""

RACE_MODULE = "service.race_process"
"""The program that times engines."""


@dataclass(frozen=True)
class WorkerConfig:
    """All that a worker process needs to know.

    Attributes:
        engine: name of the engine, or ``auto``.
        options: how engines are built.
        log: what is logged, to the same stderr as the service's.
        niceness: of the process, 0..19.
    """

    engine: str
    options: EngineOptions
    log: LogOptions
    niceness: int = 0

    def to_json(self) -> str:
        """Return it as an argument of the command line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> WorkerConfig:
        """Read what ``to_json`` wrote."""
        plain = json.loads(text)
        return cls(plain["engine"], _options(plain["options"]), LogOptions(**plain["log"]), plain["niceness"])


@dataclass(frozen=True)
class RaceConfig:
    """All that the program which times engines needs to know.

    Attributes:
        folders: of one artifact; or of an artifact, and of the int8 version that was made from it.
        options: how engines are built.
        budget_s: for all measurements.
        log: what is logged, to the same stderr as the service's.
    """

    folders: tuple[Path, ...]
    options: EngineOptions
    budget_s: float
    log: LogOptions

    def to_json(self) -> str:
        """Return it as an argument of the command line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> RaceConfig:
        """Read what ``to_json`` wrote."""
        plain = json.loads(text)
        folders = tuple(map(Path, plain["folders"]))
        return cls(folders, _options(plain["options"]), plain["budget_s"], LogOptions(**plain["log"]))


def _options(plain: dict[str, Any]) -> EngineOptions:
    sizes = tuple(ImageSize(**size) for size in plain["sizes"])
    return EngineOptions(**plain | {"cache_folder": Path(plain["cache_folder"]), "sizes": sizes})
