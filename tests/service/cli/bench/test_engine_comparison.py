from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEngine, write_pooling_artifact

from model.artifacts.manifest import GRAPH_FILE
from service.cli.bench.engine_comparison import BenchmarkApp, ServiceEngine, compare
from service.core.device.engine import EngineUnavailableError, Precision


@dataclass
class Scripted:
    """An engine whose times are known beforehand."""

    name: str
    rounds: list[list[float]]
    log: list[str] = field(default_factory=list)
    precision: Precision = "f32"

    def run_for(self, seconds: float) -> list[float]:  # noqa: ARG002 - it takes the time that it takes
        self.log.append(self.name)
        return self.rounds[self.log.count(self.name) - 1]


def test_engines_take_turns() -> None:
    log: list[str] = []
    engines = [Scripted(name, [[1.0]] * 3, log) for name in "abc"]
    compare(engines, rounds=3, round_s=0.0, batch=1)
    assert log == list("abcabcabc")


def test_figures_sum_up_all_rounds() -> None:
    (figures,) = compare([Scripted("a", [[0.1, 0.2], [0.3]])], rounds=2, round_s=0.0, batch=3)
    assert (figures.runs, figures.p50_ms) == (3, 200.0)
    assert figures.pictures_per_s == pytest.approx(3 * 3 / 0.6)


def test_a_ratio_compares_rounds_that_lay_side_by_side() -> None:
    # The machine was three times slower in the second round, for both; a is always half as fast as b.
    a, b = Scripted("a", [[0.2], [0.6] * 5]), Scripted("b", [[0.1] * 5, [0.3]])
    figures = {result.name: result for result in compare([b, a], rounds=2, round_s=0.0, batch=1)}
    assert (figures["a"].ratio, figures["a"].baseline) == (2.0, "b")
    assert (figures["b"].ratio, figures["b"].baseline) == (1.0, "b")


@pytest.mark.parametrize(("runs", "p95", "p99"), [(9, False, False), (10, True, False), (50, True, True)])
def test_a_percentile_needs_runs_beyond_it(runs: int, *, p95: bool, p99: bool) -> None:
    (figures,) = compare([Scripted("a", [[0.1] * runs])], rounds=1, round_s=0.0, batch=1)
    assert ((figures.p95_ms is not None), (figures.p99_ms is not None)) == (p95, p99)


def test_an_engine_is_warmed_up_and_each_of_its_runs_timed() -> None:
    engine = FakeEngine()
    compared = ServiceEngine(engine, np.zeros((2, 32, 32, 3), np.uint8))
    durations_s = compared.run_for(0.0)
    assert compared.name == "fake f32"
    assert ServiceEngine(engine, compared.images_NHW3, is_auto=True).name == "fake f32 (auto)"
    assert len(durations_s) == 1
    assert durations_s[0] > 0
    assert engine.seen == [(2, 32, 32, 3)] * 4


def test_a_benchmark_app_with_streams_tells_the_time_between_batches(tmp_path: Path) -> None:
    graph = write_pooling_artifact(tmp_path / "artifact").path(GRAPH_FILE)
    (between_s,) = BenchmarkApp(graph, (1, 32, 32, 3), "f32", streams=2).run_for(0.0)
    assert 0 < between_s < 1


def test_a_benchmark_app_that_fails_says_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    missing = tmp_path_factory.mktemp("empty") / "graph.xml"
    with pytest.raises(EngineUnavailableError, match="benchmark_app"):
        BenchmarkApp(missing, (1, 32, 32, 3), "f32").run_for(0.0)
