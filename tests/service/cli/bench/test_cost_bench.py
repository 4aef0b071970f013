from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.bench import bench
from service.cli.bench.cost_bench import CostReport, mean_stages, processor_parts
from service.cli.bench.own_service import ProcessorTimes
from service.machine import this_machine


def test_the_cost_of_one_request_is_measured(
    environment: dict[str, str], shared_cache: Path, tmp_path: Path
) -> None:
    isolated = {**environment, "HOME": str(tmp_path), "BISENET_MODELS__CACHE_FOLDER": str(shared_cache)}
    arguments = ["cost", "--precision", "f32", "--size", "40x72", "--requests", "20", "--force", "--json"]
    result = CliRunner().invoke(bench.app, arguments, env=isolated)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["model"], report["engine"], report["requests"]) == ("pooling@1", "openvino", 20)
    assert list(report["stages_ms"]) == ["receive", "decode", "queue", "infer", "post", "encode", "other"]
    assert list(report["processor_ms"]) == ["decode", "encode", "service", "workers"]
    assert report["latency_ms"] > report["stages_ms"]["infer"] > 0


def test_stages_and_the_rest_add_up_to_the_mean_latency() -> None:
    stages_ms = [{"decode": 2.0, "infer": 5.0}, {"decode": 4.0, "infer": 7.0}]
    assert mean_stages([10.0, 14.0], stages_ms) == {"decode": 3.0, "infer": 6.0, "other": 3.0}


def test_the_processor_time_of_a_request_has_four_parts() -> None:
    spent = ProcessorTimes(service_s=10.0, workers_s=20.0, decode_s=4.0, encode_s=2.0)
    parts = {"decode": 40.0, "encode": 20.0, "service": 40.0, "workers": 200.0}
    assert processor_parts(spent, requests=100) == parts


@pytest.mark.parametrize(
    ("stages_ms", "bar"),
    [
        ({"infer": 30.0, "post": 10.0}, "i" * 48 + "p" * 16),
        ({"infer": 1.0, "post": 0.0, "other": -0.1}, "i" * 64),
        ({"infer": 0.0}, ""),
    ],
)
def test_a_bar_is_stacked_from_letters(stages_ms: dict[str, float], bar: str) -> None:
    report = CostReport(
        "m@1", "openvino", "f32", "40x72", 10, 40.0, stages_ms, {"service": 1.0}, this_machine()
    )
    lines = str(report).splitlines()
    assert f"latency   [{bar}]" in lines[2]
    assert f"infer {stages_ms['infer']:.2f}" in lines[3]
    assert lines[4] == f"processor [{'s' * 64}] 1.00 ms"
