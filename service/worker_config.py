"""What a worker process is told when it is started: the one place that both sides import."""

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


def _options(plain: dict[str, Any]) -> EngineOptions:
    sizes = tuple(ImageSize(**size) for size in plain["sizes"])
    return EngineOptions(**plain | {"cache_folder": Path(plain["cache_folder"]), "sizes": sizes})
