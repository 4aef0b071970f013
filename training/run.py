"""One start of a training run: from a configuration and a folder to an artifact in it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from training.budget import TimeBudget
from training.config import TrainingConfig, plain
from training.data import TrainingData
from training.errors import ConfigError, ResumeError
from training.progress import RunLog
from training.publish import Origin, build_manifest, code_version, publish
from training.state import CheckpointFolder
from training.stop import StopRequest
from training.trainer import Trainer

ARTIFACT_FOLDER = "artifact"
CHECKPOINT_FOLDER = "checkpoints"


@dataclass(frozen=True)
class RunOptions:
    """What a user says about one start of a run, beside its configuration.

    Args:
        out: folder of the run: checkpoints, log, artifact.
        resume: go on where the folder's last checkpoint stands; without one, begin.
        max_minutes: choose the number of steps so that the run ends in this time; None = as configured.
        command: what was typed, for the provenance.
    """

    out: Path
    resume: bool = False
    max_minutes: float | None = None
    command: str = ""


def train(config: TrainingConfig, options: RunOptions) -> bool:
    """Train, and publish the averaged weights as ``OUT/artifact`` when the last step is done.

    SIGTERM and SIGINT end the run after the step in progress; its state is saved. Main thread only.

    Args:
        config: of the run.
        options: of this start.

    Returns:
        False when a signal ended the run early.

    Raises:
        TrainingError: the run cannot start or go on.
        model.errors.ModelError: the data set, the network or the artifact is refused.
    """
    started_s = time.monotonic()
    checkpoints = CheckpointFolder(options.out / CHECKPOINT_FOLDER)
    if not options.resume and not checkpoints.is_empty:
        raise ResumeError(f"{options.out} holds a run; resume it or choose another folder")
    stop, log = StopRequest(), RunLog(options.out)
    with stop.listening():
        data = TrainingData.load(config.data, choose_device(config.device))
        budget = TimeBudget.of_minutes(options.max_minutes, started_s)
        trainer = Trainer(config, data, checkpoints=checkpoints, log=log, budget=budget)
        origin = Origin(options.command, code_version())
        log.write("start", data.summary, command=options.command, code=origin.code, config=plain(config))
        if options.resume:
            trainer.resume()
        return trainer.run(stop) and _finish(trainer, origin, options.out / ARTIFACT_FOLDER)


def choose_device(name: str) -> torch.device:
    """Resolve ``auto`` to CUDA where there is one, else to the CPU.

    Raises:
        ConfigError: not the name of a device that torch knows.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r} is no device") from error


def _finish(trainer: Trainer, origin: Origin, folder: Path) -> bool:
    network = trainer.calibrated()
    matrix = trainer.validate(network)
    manifest = build_manifest(
        trainer.config, trainer.data, origin=origin, steps=trainer.position.step, matrix=matrix
    )
    # A start that was killed while it published left half an artifact.
    shutil.rmtree(folder, ignore_errors=True)
    publish(folder, network, manifest)
    trainer.log.write("artifact", f"artifact: {folder}", folder=str(folder))
    return True
