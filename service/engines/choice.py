"""Chooses the fastest precision, number of threads and number of streams of a model on this processor.

Axes: N images in a batch, H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import numpy as np
import structlog

from model.artifacts.artifact import Artifact
from model.errors import GoldenMismatchError
from model.pictures.preprocess import ImageSize
from model.quotas import usable_cores
from service.core.device.engine import (
    EngineChoice,
    EngineOptions,
    EngineTuning,
    EngineUnavailableError,
    Precision,
)
from service.engines.openvino import OpenVinoEngine, precisions
from service.engines.race import fastest, race

RACE_SIZE = ImageSize(512, 1024)
"""Padded size of the pictures that are timed."""

RACE_BUDGET_S = 15.0
"""Time for all measurements of one model."""

_PRECISIONS_SHARE, _THREADS_SHARE, _STREAMS_SHARE = 0.6, 0.2, 0.2
"""Of the budget, for each of the three races."""

_FLOATING_POINT: tuple[Precision, ...] = ("f32", "bf16", "f16")
"""The most exact one first."""

_MIN_THREADS_TO_HALVE = 4

_log = structlog.get_logger()


def choose(
    artifacts: Sequence[Artifact],
    options: EngineOptions,
    *,
    size: ImageSize = RACE_SIZE,
    budget_s: float = RACE_BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> EngineTuning:
    """Race the precisions of a model, then thread counts of the fastest one, then one stream against two.

    An engine takes part if it reproduces the golden sample. It wins if it is faster by more than 5 % than the
    one with the more exact precision, the fewer threads or the single stream.

    Args:
        artifacts: one version; or a version, and the int8 version that was made from it.
        options: of OpenVINO's engines; threads and streams that they name are not raced.
        size: padded size of the pictures that are timed.
        budget_s: for all measurements; compiling, and the first run of each engine, come on top.
        clock: seconds.

    Returns:
        The choice and its measurements; precision ``int8`` means the int8 version.

    Raises:
        EngineUnavailableError: no engine reproduces the golden sample.
    """
    with ExitStack() as stack:
        races = _Races(artifacts, options, size, clock, stack)
        winner = races.winner(_precisions(artifacts), _PRECISIONS_SHARE * budget_s)
        if options.threads is None:
            counts = _thread_counts(races.threads(winner), usable_cores())
            winner = races.winner(
                [replace(winner, threads=count) for count in counts], _THREADS_SHARE * budget_s
            )
        if options.streams is None and options.max_batch > 1 and races.threads(winner) > 1:
            pairs = [winner, replace(winner, streams=2)]
            winner = races.winner(pairs, _STREAMS_SHARE * budget_s, pictures=2)
        winner = replace(winner, streams=options.streams or winner.streams)
        return replace(winner, choice=races.choice(winner))


def _precisions(artifacts: Sequence[Artifact]) -> list[EngineTuning]:
    """Return the precisions of each version on this processor, the most exact first."""
    native = precisions("cpu")
    found: list[Precision] = []
    for artifact in artifacts:
        is_int8 = artifact.manifest.precision == "int8"
        found += ["int8"] if is_int8 else [one for one in _FLOATING_POINT if one in native]
    return [EngineTuning(precision, streams=1) for precision in found]


def _thread_counts(default: int, cores: int) -> list[int | None]:
    """Return the thread counts that are worth a race, the smallest first; None = the library's own.

    Half the threads wait less for each other. All cores are more than the library's own where two of them
    share the arithmetic of one.
    """
    half = [default // 2] if default >= _MIN_THREADS_TO_HALVE else []
    return [*half, None, *([cores] if cores > default else [])]


class _Races:
    """Builds engines of a model, times them in turns, and keeps the times of single pictures.

    Args:
        artifacts: one version; or a version, and the int8 version that was made from it.
        options: of the engines.
        size: padded size of the pictures.
        clock: seconds.
        stack: closes the engines.
    """

    def __init__(
        self,
        artifacts: Sequence[Artifact],
        options: EngineOptions,
        size: ImageSize,
        clock: Callable[[], float],
        stack: ExitStack,
    ) -> None:
        self._artifacts = artifacts
        self._options = options
        self._images_2HW3 = np.random.default_rng(0).integers(0, 256, (2, *size.shape, 3), np.uint8)
        self._clock = clock
        self._stack = stack
        self._engines: dict[EngineTuning, OpenVinoEngine] = {}
        self._picture_s: dict[EngineTuning, float] = {}

    def winner(self, ways: Sequence[EngineTuning], budget_s: float, *, pictures: int = 1) -> EngineTuning:
        """Race the engines that reproduce the golden sample; one alone wins at once if its time is known.

        Args:
            ways: to build an engine; in the order of ``fastest``.
            budget_s: for the measurements.
            pictures: of the batch, 1 or 2.

        Raises:
            EngineUnavailableError: none reproduces the golden sample.
        """
        proven = [way for way in ways if self._is_built(way)]
        if not proven:
            raise EngineUnavailableError("no precision of this processor reproduces the golden sample")
        if len(proven) == 1 and proven[0] in self._picture_s:
            return proven[0]
        images_NHW3 = self._images_2HW3[:pictures]
        runs = [partial(self._engines[way].infer, images_NHW3) for way in proven]
        for run in runs:
            run()  # the first run at a size prepares its kernels
        seconds = race(runs, budget_s=budget_s, clock=self._clock)
        if pictures == 1:
            self._remember(dict(zip(proven, seconds, strict=True)))
        return proven[fastest(seconds)]

    def threads(self, way: EngineTuning) -> int:
        """Return how many threads the engine has."""
        return self._engines[way].threads

    def choice(self, winner: EngineTuning) -> tuple[EngineChoice, ...]:
        """Return the times of single pictures, the winner first and the others by their time."""
        alone = replace(winner, streams=1)
        others = sorted(self._picture_s.keys() - {alone}, key=self._picture_s.__getitem__)
        first = replace(self._choice(alone), streams=winner.streams or 1)
        return (first, *map(self._choice, others))

    def _choice(self, way: EngineTuning) -> EngineChoice:
        engine = self._engines[way]
        return EngineChoice(engine.info.precision, 1, engine.threads, round(1e3 * self._picture_s[way], 2))

    def _remember(self, seconds: Mapping[EngineTuning, float]) -> None:
        """Keep the times of single pictures, on the scale of the first race.

        Other work may slow a later race down. An engine that ran in both says by how much.
        """
        scale = next((self._picture_s[way] / seconds[way] for way in seconds if way in self._picture_s), 1.0)
        self._picture_s = {way: scale * one_s for way, one_s in seconds.items()} | self._picture_s

    def _is_built(self, way: EngineTuning) -> bool:
        if way not in self._engines:
            try:
                engine = self._build(way)
            except GoldenMismatchError as error:
                _log.warning("precision is not used", precision=way.precision, reason=str(error))
                return False
            self._engines[way] = self._stack.enter_context(closing(engine))
        return True

    def _build(self, way: EngineTuning) -> OpenVinoEngine:
        assert way.precision != "auto"
        artifact = self._artifacts[-1 if way.precision == "int8" else 0]
        return OpenVinoEngine(artifact, self._options.tuned(way), way.precision)
