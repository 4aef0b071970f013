"""``python -m service.race_process CONFIG``: times the engines of one model and prints the choice as JSON.

A process of its own: a library that crashes on one of the engines ends this process only, and the memory of
all engines is free again when the service loads the chosen one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import NoReturn

import structlog

from model.artifacts.artifact import read_artifact
from model.errors import ModelError
from service.core.child_process import end_with_parent, leave_signals_to_parent
from service.core.device.engine import EngineUnavailableError
from service.core.memory import limit_heaps
from service.engines.choice import choose
from service.telemetry import configure_logging
from service.worker_config import RaceConfig

_log = structlog.get_logger()


def main() -> NoReturn:
    """Time the engines; the result is the only thing on stdout."""
    limit_heaps()
    end_with_parent()
    leave_signals_to_parent()
    result = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for libraries that print
    config = RaceConfig.from_json(sys.argv[1])
    configure_logging(config.log)
    try:
        artifacts = [read_artifact(folder) for folder in config.folders]
        tuning = choose(artifacts, config.options, budget_s=config.budget_s)
    except (EngineUnavailableError, ModelError) as error:
        _log.error("engines cannot be timed", reason=str(error))
        os._exit(1)
    os.write(result, json.dumps(dataclasses.asdict(tuning)).encode())
    os._exit(0)  # libraries have been seen to hang when a process ends


if __name__ == "__main__":
    main()
