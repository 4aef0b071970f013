"""Measuring contenders side by side: they take turns, so that whatever disturbs the machine disturbs all.

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

import numpy as np

from model.labels import UInt8Array
from service.core.device.engine import EngineUnavailableError, InferenceEngine, Precision

_WARM_UP_RUNS = 3

_RUN_BENCHMARK_APP = (
    "import sys; from model.artifacts.openvino_graph import load_openvino; load_openvino(); "
    "from openvino.tools.benchmark.main import main; sys.exit(main())"
)


class RaceEntry(Protocol):
    """Something that runs a batch again and again."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    @property
    def precision(self) -> Precision:
        """What it computes in."""
        ...

    def play(self, round_s: float) -> list[float]:
        """Run for about ``round_s`` seconds.

        Returns:
            How many seconds each run took; at least one.
        """
        ...


@dataclass(frozen=True, eq=False)
class EngineEntry:
    """One of our engines on one batch of noise.

    Attributes:
        engine: what runs.
        images_NHW3: what it runs on.
        is_auto: its precision, threads and streams were chosen and not asked for.
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
        """What the engine computes in."""
        return self.engine.info.precision

    def play(self, round_s: float) -> list[float]:
        """Run for about ``round_s`` seconds; each run is timed for itself."""
        for _ in range(_WARM_UP_RUNS):
            self.engine.infer(self.images_NHW3)
        return list(self._runs(time.perf_counter() + round_s))

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
class BenchmarkAppEntry:
    """OpenVINO's own benchmark on the same graph and a fixed shape.

    Attributes:
        graph: an artifact's ``graph.xml``.
        shape_NHW3: of the batch.
        precision: what it computes in.
        streams: batches that run side by side; None = at its best for latency, one after the other.
    """

    graph: Path
    shape_NHW3: tuple[int, ...]
    precision: Precision
    streams: int | None = None

    @property
    def name(self) -> str:
        """The program and the precision."""
        return f"benchmark_app {self.precision}"

    def play(self, round_s: float) -> list[float]:
        """Run the program for about ``round_s`` seconds; it tells its median only, or its throughput.

        Returns:
            One value, in seconds: how long a batch took, or, with streams, how long it was between batches.

        Raises:
            EngineUnavailableError: it failed; the message is the end of what it printed.
        """
        with tempfile.TemporaryDirectory() as folder:
            arguments = [*self._arguments(round_s), "-report_folder", folder]
            command = [sys.executable, "-c", _RUN_BENCHMARK_APP, *arguments]
            run = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own
            if run.returncode:
                raise EngineUnavailableError(f"benchmark_app: {(run.stdout + run.stderr).strip()[-200:]}")
            report = json.loads((Path(folder) / "benchmark_report.json").read_text(encoding="utf-8"))
        results = report["execution_results"]
        if self.streams is None:
            return [float(results["latency (ms)"]) / 1e3]
        return [self.shape_NHW3[0] / float(results["throughput"])]

    def _arguments(self, round_s: float) -> list[str]:
        shape = ",".join(map(str, self.shape_NHW3))
        options = {
            "-m": str(self.graph),
            "-d": "CPU",
            **self._order(),
            "-ip": "u8",
            "-shape": f"[{shape}]",
            "-t": str(max(1, round(round_s))),
            "-report_type": "no_counters",
        }
        if self.precision != "int8":  # which lies in the graph; the rest runs in the processor's own choice
            options["-infer_precision"] = self.precision
        return [*(word for pair in options.items() for word in pair), "-json_stats"]

    def _order(self) -> dict[str, str]:
        if self.streams is None:
            return {"-api": "sync", "-hint": "latency"}
        return {"-api": "async", "-hint": "none", "-nstreams": str(self.streams)}


@dataclass(frozen=True)
class EntryFigures:
    """What one contender did.

    Attributes:
        name: of the contender.
        runs: how many were timed; of a program that tells medians only, how many medians.
        p50_ms: of the time that a batch took.
        p95_ms: the same; None where the runs are too few.
        p99_ms: the same.
        pictures_per_s: pictures through the engine alone.
        ratio: median over the rounds of p50 / the baseline's p50 in the same round; below 1 is faster.
        baseline: whose p50.
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
        """Return the values for people, in the order of the attributes."""
        shown = [self.p50_ms, self.p95_ms, self.p99_ms, self.pictures_per_s]
        numbers = ["-" if value is None else f"{value:.2f}" for value in shown]
        return [self.name, str(self.runs), *numbers, f"{self.ratio:.3f} x {self.baseline}"]


def race(
    contenders: Sequence[RaceEntry], *, rounds: int, round_s: float, batch: int
) -> tuple[EntryFigures, ...]:
    """Let contenders take turns, and sum up each.

    The baseline of a contender is OpenVINO's own benchmark in the same precision where that takes part, else
    the first contender.

    Args:
        contenders: of different names.
        rounds: how often each has its turn.
        round_s: how long a turn is.
        batch: pictures in one run.
    """
    played: dict[str, list[list[float]]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            played[contender.name].append(contender.play(round_s))
    peers = {peer.precision: peer.name for peer in contenders if isinstance(peer, BenchmarkAppEntry)}
    return tuple(
        _figures(c.name, played, baseline=peers.get(c.precision, contenders[0].name), batch=batch)
        for c in contenders
    )


def _figures(
    name: str, played: Mapping[str, list[list[float]]], *, baseline: str, batch: int
) -> EntryFigures:
    durations_s = [duration_s for one_round in played[name] for duration_s in one_round]
    pairs = zip(played[name], played[baseline], strict=True)
    return EntryFigures(
        name=name,
        runs=len(durations_s),
        p50_ms=round(1e3 * median(durations_s), 3),
        p95_ms=_percentile_ms(durations_s, 95),
        p99_ms=_percentile_ms(durations_s, 99),
        pictures_per_s=round(batch * len(durations_s) / sum(durations_s), 2),
        ratio=round(median(median(own) / median(others) for own, others in pairs), 4),
        baseline=baseline,
    )


def _percentile_ms(durations_s: Sequence[float], percent: int) -> float | None:
    # With less than one run in the tail nothing is known about the tail.
    if len(durations_s) * (1 - percent / 100) < 1:
        return None
    return round(1e3 * float(np.percentile(durations_s, percent)), 3)
