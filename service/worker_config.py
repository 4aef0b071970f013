"""The command-line arguments of the programs that the service starts; both sides import this module."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.pictures.preprocess import ImageSize
from service.core.device.engine import EngineOptions
from service.telemetry import LogOptions

WORKER_MODULE = "service.worker_process"
"""The program of a worker process."""

RACE_MODULE = "service.race_process"
"""The program that times engines."""


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration of a worker process.

    Attributes:
        engine: name of the engine, or ``auto``.
        options: of the engines.
        log: level and format; the lines go to the stderr of the service.
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
        """Parse the result of ``to_json``."""
        plain = json.loads(text)
        return cls(plain["engine"], _options(plain["options"]), LogOptions(**plain["log"]), plain["niceness"])


@dataclass(frozen=True)
class RaceConfig:
    """Configuration of the program that times engines.

    Attributes:
        folders: of one artifact; or of an artifact and of the int8 version that was made from it.
        options: of the engines.
        budget_s: time for all measurements, in seconds.
        log: level and format; the lines go to the stderr of the service.
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
        """Parse the result of ``to_json``."""
        plain = json.loads(text)
        folders = tuple(map(Path, plain["folders"]))
        return cls(folders, _options(plain["options"]), plain["budget_s"], LogOptions(**plain["log"]))


def _options(plain: dict[str, Any]) -> EngineOptions:
    sizes = tuple(ImageSize(**size) for size in plain["sizes"])
    return EngineOptions(**plain | {"cache_folder": Path(plain["cache_folder"]), "sizes": sizes})
