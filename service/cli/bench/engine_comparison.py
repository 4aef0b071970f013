"""Engines side by side: they take turns, so that other work on the machine disturbs all of them alike.

Axes: N images in a batch, H height, W width.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

from model.labels import UInt8Array
from service.cli.bench.percentile import percentile
from service.core.device.engine import EngineUnavailableError, InferenceEngine, Precision

_WARM_UP_RUNS = 3

_RUN_BENCHMARK_APP = (
    "import sys; from model.artifacts.openvino_graph import load_openvino; load_openvino(); "
    "from openvino.tools.benchmark.main import main; sys.exit(main())"
)


class ComparedEngine(Protocol):
    """Something that runs one batch again and again."""

    @property
    def name(self) -> str:
        """Its name in the report."""
        ...

    @property
    def precision(self) -> Precision:
        """The precision that it computes in."""
        ...

    def run_for(self, seconds: float) -> list[float]:
        """Run for about so many seconds.

        Returns:
            The time of each run, in seconds; at least one.
        """
        ...


@dataclass(frozen=True, eq=False)
class ServiceEngine:
    """An engine of the service.

    Attributes:
        engine: runs the batch.
        images_NHW3: the batch.
        is_auto: whether its precision, threads and streams were chosen by the engine race.
    """

    engine: InferenceEngine
    images_NHW3: UInt8Array
    is_auto: bool = False

    @property
    def name(self) -> str:
        """Engine and precision."""
        return f"{self.engine.info.engine} {self.precision}{' (auto)' if self.is_auto else ''}"

    @property
    def precision(self) -> Precision:
        """The precision that it computes in."""
        return self.engine.info.precision

    def run_for(self, seconds: float) -> list[float]:
        """Run for about so many seconds; returns the time of each run, in seconds."""
        for _ in range(_WARM_UP_RUNS):
            self.engine.infer(self.images_NHW3)
        return list(self._runs(time.perf_counter() + seconds))

    def _runs(self, end_s: float) -> Iterator[float]:
        began_s = time.perf_counter()
        while True:
            self.engine.infer(self.images_NHW3)
            ended_s = time.perf_counter()
            yield ended_s - began_s
            if ended_s >= end_s:
                return
            began_s = ended_s


@dataclass(frozen=True)
class BenchmarkApp:
    """OpenVINO's own benchmark on the same graph, with a fixed shape.

    Attributes:
        graph: an artifact's ``graph.xml``.
        shape_NHW3: of the batch.
        precision: that it computes in.
        streams: batches that run side by side; None = one after the other, tuned for latency.
    """

    graph: Path
    shape_NHW3: tuple[int, ...]
    precision: Precision
    streams: int | None = None

    @property
    def name(self) -> str:
        """The program and the precision."""
        return f"benchmark_app {self.precision}"

    def run_for(self, seconds: float) -> list[float]:
        """Run the program for about so many seconds; it reports its median only, or its throughput.

        Returns:
            One value, in seconds: the median time of a batch or, with streams, the time between batches.

        Raises:
            EngineUnavailableError: the program failed; the message is the end of its output.
        """
        with tempfile.TemporaryDirectory() as folder:
            arguments = [*self._arguments(seconds), "-report_folder", folder]
            command = [sys.executable, "-c", _RUN_BENCHMARK_APP, *arguments]
            run = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own
            if run.returncode:
                raise EngineUnavailableError(f"benchmark_app: {(run.stdout + run.stderr).strip()[-200:]}")
            report = json.loads((Path(folder) / "benchmark_report.json").read_text(encoding="utf-8"))
        results = report["execution_results"]
        if self.streams is None:
            return [float(results["latency (ms)"]) / 1e3]
        return [self.shape_NHW3[0] / float(results["throughput"])]

    def _arguments(self, seconds: float) -> list[str]:
        shape = ",".join(map(str, self.shape_NHW3))
        options = {
            "-m": str(self.graph),
            "-d": "CPU",
            **self._order(),
            "-ip": "u8",
            "-shape": f"[{shape}]",
            "-t": str(max(1, round(seconds))),
            "-report_type": "no_counters",
        }
        if (
            self.precision != "int8"
        ):  # int8 is part of the graph; its other operations run in OpenVINO's choice
            options["-infer_precision"] = self.precision
        return [*(word for pair in options.items() for word in pair), "-json_stats"]

    def _order(self) -> dict[str, str]:
        if self.streams is None:
            return {"-api": "sync", "-hint": "latency"}
        return {"-api": "async", "-hint": "none", "-nstreams": str(self.streams)}


@dataclass(frozen=True)
class EngineFigures:
    """The figures of one engine.

    Attributes:
        name: of the engine.
        runs: number of timed runs; of a program that reports medians, number of medians.
        p50_ms: of the time of a batch.
        p95_ms: of the time of a batch; None where the runs are too few.
        p99_ms: of the time of a batch; None where the runs are too few.
        pictures_per_s: pictures through the engine alone.
        ratio: median over the rounds of p50 / the baseline's p50 in the same round; below 1 is faster.
        baseline: name of the engine that ``ratio`` compares with.
    """

    name: str
    runs: int
    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    pictures_per_s: float
    ratio: float
    baseline: str

    def cells(self) -> list[str]:
        """Return the values as text, in the order of the attributes."""
        shown = [self.p50_ms, self.p95_ms, self.p99_ms, self.pictures_per_s]
        numbers = ["-" if value is None else f"{value:.2f}" for value in shown]
        return [self.name, str(self.runs), *numbers, f"{self.ratio:.3f} x {self.baseline}"]


def compare(
    engines: Sequence[ComparedEngine], *, rounds: int, round_s: float, batch: int
) -> tuple[EngineFigures, ...]:
    """Run engines in turns and return the figures of each.

    The baseline of an engine is OpenVINO's own benchmark in the same precision where that takes part, else
    the first engine.

    Args:
        engines: with different names.
        rounds: number of turns of each.
        round_s: length of a turn, in seconds.
        batch: pictures in one run.
    """
    times_s: dict[str, list[list[float]]] = {engine.name: [] for engine in engines}
    for _ in range(rounds):
        for engine in engines:
            times_s[engine.name].append(engine.run_for(round_s))
    peers = {peer.precision: peer.name for peer in engines if isinstance(peer, BenchmarkApp)}
    return tuple(
        _figures(engine.name, times_s, baseline=peers.get(engine.precision, engines[0].name), batch=batch)
        for engine in engines
    )


def _figures(
    name: str, times_s: Mapping[str, list[list[float]]], *, baseline: str, batch: int
) -> EngineFigures:
    runs_s = [run_s for one_round in times_s[name] for run_s in one_round]
    runs_ms = [1e3 * run_s for run_s in runs_s]
    pairs = zip(times_s[name], times_s[baseline], strict=True)
    return EngineFigures(
        name=name,
        runs=len(runs_s),
        p50_ms=round(median(runs_ms), 3),
        p95_ms=percentile(runs_ms, 95),
        p99_ms=percentile(runs_ms, 99),
        pictures_per_s=round(batch * len(runs_s) / sum(runs_s), 2),
        ratio=round(median(median(own) / median(others) for own, others in pairs), 4),
        baseline=baseline,
    )
