from __future__ import annotations

from pathlib import Path

from model.pictures.preprocess import ImageSize
from service.core.device.engine import EngineOptions
from service.telemetry import LogOptions
from service.worker_config import WorkerConfig


def test_a_worker_is_told_everything_by_its_command_line() -> None:
    options = EngineOptions("cuda:1", "f16", Path("/cache"), 3, max_batch=8, sizes=(ImageSize(64, 96),))
    config = WorkerConfig("torch", options, LogOptions("debug", "json"), niceness=19)
    assert WorkerConfig.from_json(config.to_json()) == config
