"""Assembles the core from the settings, for the service and for commands that run models themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.evaluation import network_passes
from model.pictures.image import ImageLimits
from model.pictures.preprocess import ImageSize
from model.quotas import passive_threads, usable_cores
from service.core.device.batch_job import Runner
from service.core.device.engine import EngineOptions, private_folder
from service.core.device.process_runner import ProcessRunner
from service.core.device.restart_policy import WorkerTimeouts
from service.core.device.worker_connection import WorkerConnection
from service.core.models.model_host import ModelHost, TuningOf
from service.core.pictures.segmenter import Segmenter, SegmenterLimits
from service.core.scheduling.dispatcher import Dispatcher
from service.core.scheduling.scheduler import BatchLimits
from service.engines import resolve_device
from service.settings import ModelsSettings, Settings
from service.spans import NO_TRACING, Tracing
from service.telemetry import LogOptions, Metrics
from service.worker_config import WORKER_MODULE, WorkerConfig

_GPU_BATCH = 8
_SIDE_BY_SIDE = 2
"""Pictures of the largest batch: on a GPU, and on a CPU if the engine runs them side by side."""


@dataclass(frozen=True, eq=False)
class Core:
    """The objects that every frontend uses.

    Attributes:
        host: the models.
        segmenter: segments pictures.
    """

    host: ModelHost
    segmenter: Segmenter


@contextmanager
def open_core(
    settings: Settings,
    runner: Runner,
    tuning_of: TuningOf,
    metrics: Metrics | None = None,
    tracing: Tracing = NO_TRACING,
) -> Iterator[Core]:
    """Open the core without a model. At the end of the context, all accepted pictures are answered.

    Args:
        settings: limits and options.
        runner: runs batches; closed with the core.
        tuning_of: returns the tuning of a version's engine.
        metrics: None = no metrics.
        tracing: keeps the spans of traced requests.
    """
    limits = settings.limits
    batches = BatchLimits(max_items=engine_options(settings).max_batch)
    with ExitStack() as stack:
        worker = Dispatcher(
            runner, max_waiting=limits.max_waiting, limits=batches, metrics=metrics, tracing=tracing
        )
        host = ModelHost(worker, metrics, tuning_of=tuning_of)
        stack.callback(host.close)
        pool = stack.enter_context(ThreadPoolExecutor(usable_cores(), thread_name_prefix="pictures"))
        load_kernels = partial(_load_kernels, settings.models.cache_folder)
        yield Core(host, Segmenter(pool, segmenter_limits(settings), metrics, load_kernels))


def _load_kernels(cache_folder: Path) -> None:
    """Load the kernels of tiles; a worker process compiled them when it loaded its first model."""
    network_passes.warm_up(private_folder(cache_folder / "numba"))


def segmenter_limits(settings: Settings) -> SegmenterLimits:
    """Return the limits of pictures of the settings."""
    limits = settings.limits
    images = ImageLimits(limits.max_pixels, limits.max_side)
    return SegmenterLimits(images, limits.max_infer_pixels, limits.max_pixels_in_flight)


def worker_process(
    settings: Settings, *, niceness: int = 0, timeouts: WorkerTimeouts | None = None
) -> ProcessRunner:
    """Return a runner with a worker process, which is started again when it dies.

    Args:
        settings: engine and its options.
        niceness: of the process, 0..19.
        timeouts: times after which the process counts as hanging; None = the defaults.
    """
    log = LogOptions(settings.log.level, settings.log.format)
    config = WorkerConfig(settings.models.engine, engine_options(settings), log, niceness)
    start = partial(WorkerConnection, WORKER_MODULE, [config.to_json()], passive_threads(os.environ))
    return ProcessRunner(start, timeouts=timeouts)


def engine_options(settings: Settings) -> EngineOptions:
    """Return the engine options of the settings."""
    models = settings.models
    device = resolve_device(models.device, models.engine)
    batch = _GPU_BATCH
    if device == "cpu":
        batch = _SIDE_BY_SIDE if models.engine in ("auto", "openvino") else 1
    return EngineOptions(
        device=device,
        precision=models.precision,
        cache_folder=models.cache_folder,
        threads=models.threads,
        max_batch=batch,
        sizes=_sizes(models),
        streams=models.streams,
    )


def _sizes(models: ModelsSettings) -> tuple[ImageSize, ...]:
    sides = [tuple(map(int, text.split("x"))) for text in models.sizes]
    return tuple(ImageSize(height, width).padded() for height, width in sides)
