"""``bisenet bench stream`` and ``grpc``: a service is started, measured, and every frame accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner, Result

from service.cli.bench import bench, stream_bench
from service.cli.bench.own_service import ProcessorTimes
from service.cli.bench.stream_bench import ServerCost, StreamLoad, StreamReport
from service.machine import this_machine

Run = Callable[..., Result]


@pytest.fixture
def run(environment: dict[str, str], shared_cache: Path, tmp_path: Path) -> Run:
    isolated = {
        **environment,
        "HOME": str(tmp_path),
        "BISENET_MODELS__CACHE_FOLDER": str(shared_cache),
        "BISENET_MODELS__PRECISION": "f32",
    }

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(bench.app, [*arguments, "--size", "40x72", "--force"], env=isolated)

    return run


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_frames_of_all_cameras_are_accounted_for(run: Run) -> None:
    report = answer(run("stream", "--cameras", "3", "--fps", "50", "--seconds", "1", "--json"))
    assert report["model"] == "pooling@1"
    assert report["is_balanced"]
    totals = report["totals"]
    assert totals["sent"] == sum(count for name, count in totals.items() if name != "sent") > 0
    sent = [camera["sent"] for camera in report["cameras"]]
    assert (len(sent), sum(sent)) == (3, totals["sent"])
    assert min(sent) > 0
    assert report["age_limit_ms"] == pytest.approx(20 + 2 * report["single_frame_ms"] + 20, abs=0.2)
    assert 0 < report["cost"]["overhead_ms"] < report["cost"]["cpu_ms"]
    assert report["cost"]["rss_mb"][0] > 10


def test_people_can_read_it() -> None:
    load = StreamLoad(cameras=1, fps=30.0, policy="latest", seconds=1.0, size="40x72")
    report = StreamReport(
        load=load,
        model="pooling@1",
        single_frame_ms=5.0,
        results_per_s=29.0,
        share_spread=0.0,
        age_p50_ms=7.0,
        age_p99_ms=9.0,
        age_limit_ms=63.3,
        totals={"sent": 30, "answered": 29},
        is_balanced=False,
        cameras=(),
        cost=ServerCost(cpu_ms=2.0, overhead_ms=0.5, rss_mb=(90.0, 91.0, 91.0)),
        machine=this_machine(),
    )
    assert "30 sent, 29 answered; NOT BALANCED" in str(report)
    assert "0.50 ms of it" in str(report)


@pytest.mark.soak
def test_single_calls_are_measured_too(run: Run) -> None:
    report = answer(run("grpc", "--in-flight", "2", "--seconds", "0", "--json"))
    assert (report["target"], report["model"], report["engine"]) == (
        "grpc on loopback",
        "pooling@1",
        "openvino",
    )
    assert report["figures"]["answered"] == 2


@pytest.mark.parametrize("command", ["grpc", "stream"])
def test_a_service_that_is_not_there_is_told_in_one_line(run: Run, command: str) -> None:
    result = run(command, "--address", "127.0.0.1:9", "--seconds", "0")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


async def test_decoding_and_encoding_are_no_overhead() -> None:
    camera = stream_bench._Camera(cast("Any", None))
    camera.ledger.outcomes["answered"] = 10
    cameras, watch = Cameras([camera]), Watch()
    load = StreamLoad(cameras=1, fps=30.0, policy="latest", seconds=0.0, size="400x720")
    cost = await stream_bench._run_and_watch(cast("Any", cameras), load, [b"frame"], cast("Any", watch))
    assert cost is not None
    assert (cost.cpu_ms, cost.overhead_ms) == (1000.0, 400.0)


class Cameras:
    """Streams that are over at once."""

    def __init__(self, cameras: list[Any]) -> None:
        self.all = cameras

    async def run(self, _: object) -> None:
        pass


class Watch:
    """A service that worked for 10 seconds between two looks at it, 6 of them on pictures."""

    def __init__(self) -> None:
        self._looks = count()

    def processor_times(self) -> ProcessorTimes:
        look = next(self._looks)
        return ProcessorTimes(service_s=10.0 * look, workers_s=7.0, decode_s=4.0 * look, encode_s=2.0 * look)

    def rss_mb(self) -> float:
        return 90.0


@pytest.mark.parametrize("command", ["grpc", "stream"])
def test_tls_is_for_a_service_that_runs_already(run: Run, command: str) -> None:
    result = run(command, "--tls")
    assert result.exit_code == 2
    assert "--address" in result.stderr
