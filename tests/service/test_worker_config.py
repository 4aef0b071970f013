from __future__ import annotations

from pathlib import Path

from model.pictures.preprocess import ImageSize
from service.core.device.engine import EngineOptions
from service.telemetry import LogOptions
from service.worker_config import RaceConfig, WorkerConfig

OPTIONS = EngineOptions("cuda:1", "f16", Path("/cache"), 3, max_batch=8, sizes=(ImageSize(64, 96),))
LOG = LogOptions("debug", "json")


def test_a_worker_is_told_everything_by_its_command_line() -> None:
    config = WorkerConfig("torch", OPTIONS, LOG, niceness=19)
    assert WorkerConfig.from_json(config.to_json()) == config


def test_what_times_engines_is_told_everything_by_its_command_line() -> None:
    config = RaceConfig((Path("/models/city/1"), Path("/models/city/2")), OPTIONS, 7.5, LOG)
    assert RaceConfig.from_json(config.to_json()) == config
