"""One start of a training run: from a configuration and a folder to an artifact and a report in it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from model.pictures.preprocess import Rgb
from training.config import TrainingConfig, plain
from training.data.splits import TrainingData
from training.distributed import Ranks, joined, ranks_here
from training.errors import ConfigError, ResumeError
from training.optimisation.distillation import Teacher
from training.run.checkpoint import CheckpointFolder
from training.run.finetune import FinetuneSource, adopt, find_artifact, find_source
from training.run.finish import (
    draw_crops,
    draw_samples,
    finish,
    measure_costs,
    write_interim_report,
)
from training.run.hardware import hardware
from training.run.progress import RunLog, open_tensorboard
from training.run.publish import NO_OPENVINO, RunProvenance, code_version
from training.run.stop_signals import StopRequest
from training.run.time_budget import TimeBudget
from training.run.trainer import Trainer

if TYPE_CHECKING:
    from model.artifacts.registry import ModelRegistry

CHECKPOINT_FOLDER = "checkpoints"


@dataclass(frozen=True)
class RunOptions:
    """Options of one start of a run, beside its configuration.

    Args:
        out: folder of the run: checkpoints, log, samples, artifact, report.
        resume: continue from the last checkpoint of the folder; without a checkpoint, begin.
        max_minutes: choose the number of steps so that the run ends in this time; None = as configured.
        finetune_from: model or file with the first weights; empty = random weights.
        registry: folder or URL of the models; empty = the shipped models only.
        cache_folder: folder for facts about data sets, and for models from buckets; None = facts lie in the
            run's own folder.
        command: the command line, for the provenance.
        started_s: when the command was started, by ``time.monotonic``; None = now.
    """

    out: Path
    resume: bool = False
    max_minutes: float | None = None
    finetune_from: str = ""
    registry: str = ""
    cache_folder: Path | None = None
    command: str = ""
    started_s: float | None = None


def train(config: TrainingConfig, options: RunOptions) -> bool:
    """Train, and publish the best averaged weights as ``OUT/artifact`` when the last step is done.

    SIGTERM and SIGINT end the run after the step in progress, or after a few more where processes must agree;
    its state is saved. Call it in the main thread. Under ``torchrun`` each process calls this; the first one
    writes, and all must see the same folder.

    Args:
        config: configuration of the run.
        options: options of this start.

    Returns:
        False when a signal ended the run early.

    Raises:
        TrainingError: the run cannot start or go on.
        model.errors.ModelError: the data set, the network or the artifact is refused.
    """
    started_s = time.monotonic() if options.started_s is None else options.started_s
    stop = StopRequest()
    with stop.listening():
        config.schedule.part_size(ranks_here().world)
        device = choose_device(config.device, ranks_here().local_rank)
        config = replace(config, compute=config.compute.on(device))
        config.compute.set_up(device)
        checkpoints = CheckpointFolder(options.out / CHECKPOINT_FOLDER)
        if not options.resume and not checkpoints.is_empty:
            raise ResumeError(f"{options.out} holds a run; resume it or choose another folder")
        budget = TimeBudget.of_minutes(options.max_minutes, started_s)
        with joined(device) as ranks, _open_log(options.out, ranks) as log:
            start = _Start(config, options, checkpoints, ranks, log)
            with start.open_data(device) as data:
                return start.run(data, budget, stop)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Resolve ``auto`` to CUDA where there is one, else to the CPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` (the GPU of this process) or ``cuda:N``.
        local_rank: of this process on its machine.

    Raises:
        ConfigError: the name is no device, or there is no such GPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r} is no device") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device = {name!r} is neither cpu nor cuda")
    if device.type == "cuda":
        if device.index >= gpus:
            raise ConfigError(f"device = {name!r}: this process wants GPU {device.index} of {gpus}")
        torch.cuda.set_device(device)
    return device


@contextmanager
def _open_log(out: Path, ranks: Ranks) -> Iterator[RunLog]:
    log = RunLog(out, silent=not ranks.is_first, board=open_tensorboard(out) if ranks.is_first else None)
    if log.board is None:
        log.say("tensorboard is not installed: curves are in the log and in the report only")
    try:
        yield log
    finally:
        log.close()


@dataclass(frozen=True, eq=False)
class _Start:
    """One process of one start of a run."""

    config: TrainingConfig
    options: RunOptions
    checkpoints: CheckpointFolder
    ranks: Ranks
    log: RunLog

    @contextmanager
    def open_data(self, device: torch.device) -> Iterator[TrainingData]:
        cache = self.options.cache_folder
        with self.log.display.task("reading the data set"):
            data = TrainingData.load(
                self.config.data,
                device,
                cache_folder=cache / "datasets" if cache else self.options.out / "datasets",
                processes=self.ranks.local_world,
                progress=self.log.say,
            )
        try:
            yield data
        finally:
            data.close()

    def run(self, data: TrainingData, budget: TimeBudget | None, stop: StopRequest) -> bool:
        state = self.checkpoints.load("last") if self.options.resume else None
        self._check_all_found_the_same(data.device)
        source = self._source() if state is None else None
        if normalisation := _normalisation(state, source):
            data = data.with_normalisation(*normalisation)
        teacher = self._teacher(data)
        trainer = Trainer(
            self.config,
            data,
            checkpoints=self.checkpoints,
            log=self.log,
            budget=budget,
            ranks=self.ranks,
            teacher=teacher,
            on_validation=lambda step, network: draw_samples(trainer, self.options.out, step, network),
        )
        code = code_version()
        palette = data.spec.palette
        self.log.write(
            "start",
            data.summary,
            command=self.options.command,
            code=code,
            config=plain(self.config),
            hardware=hardware(device=data.device, processes=self.ranks.world),
            pictures={"training": len(data.train.names), "validation": len(data.val.names)},
            classes=dict(zip(palette.names, palette.colors, strict=True)),
        )
        if find_spec("openvino") is None:
            self.log.say(f"this run will end with its last checkpoint: {NO_OPENVINO}")
        if state is not None:
            trainer.resume(state)
            if self.options.finetune_from not in ("", trainer.started_from):
                raise ResumeError(
                    f"the run began with {trainer.started_from or 'random weights'},"
                    f" not with {self.options.finetune_from}"
                )
        elif source is not None:
            self._adopt(trainer, source)
            trainer.started_from = self.options.finetune_from
            trainer.finetuned_from = source.origin
        draw_crops(trainer, self.options.out)
        origin = RunProvenance(self.options.command, code, trainer.finetuned_from)
        if trainer.budget is not None:
            trainer.costs = measure_costs(trainer, origin)
        finished = trainer.run(stop)
        if finished:
            finish(trainer, origin, self.options.out)
        elif self.ranks.is_first:
            write_interim_report(trainer, self.options.out)
        return finished

    def _check_all_found_the_same(self, device: torch.device) -> None:
        """Refuse processes on several machines that would continue from different checkpoints."""
        if self.ranks.world == 1:
            return
        found = self.checkpoints.digest("last") if self.options.resume else ""
        if len(set(self.ranks.texts(found, device))) > 1:
            raise ResumeError(
                f"the processes of this run do not find the same last checkpoint in {self.options.out}:"
                " all machines must share that folder"
            )

    def _source(self) -> FinetuneSource | None:
        reference = self.options.finetune_from
        return find_source(reference, self._registry()) if reference else None

    def _teacher(self, data: TrainingData) -> Teacher | None:
        config = self.config.distill
        if not config.teacher:
            return None
        artifact, origin = find_artifact(config.teacher, self._registry())
        self.log.say(f"the network also learns from {origin}")
        return Teacher.of(artifact, config, data.spec.palette.names, data.device)

    def _registry(self) -> ModelRegistry:
        from model.artifacts.registry import SHIPPED_MODELS, ModelRegistry  # noqa: PLC0415 - obstore is not for training

        options, cache = self.options, self.options.cache_folder
        return ModelRegistry(
            options.registry or options.out / "registry",
            shipped=SHIPPED_MODELS,
            cache_folder=cache / "models" if cache else None,
        )

    def _adopt(self, trainer: Trainer, source: FinetuneSource) -> None:
        adoption = adopt(trainer.learner.network, source)
        trainer.learner.restart_average()
        self.log.write(
            "finetune",
            "\n".join([f"weights of {source.origin}:", *adoption.lines()]),
            origin=source.origin,
            **asdict(adoption),
        )


def _normalisation(state: Mapping[str, Any] | None, source: FinetuneSource | None) -> tuple[Rgb, Rgb] | None:
    """Return mean and std that come with the first weights; None = those of the data."""
    if state is not None:
        numbers = state["normalisation"]
        return cast("Rgb", tuple(numbers[:3])), cast("Rgb", tuple(numbers[3:]))
    return None if source is None else source.normalisation
