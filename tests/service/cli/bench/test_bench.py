from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from fakes import write_pooling_artifact
from typer.testing import CliRunner, Result

from model.artifacts.registry import ModelRegistry
from model.pictures.preprocess import ImageSize
from service.cli.bench import bench

Run = Callable[..., Result]


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(bench.app, ["engine", *arguments], env=environment)

    return run


def test_every_engine_in_every_precision_is_measured_once(run: Run) -> None:
    result = run(
        *("--precision", "f32", "--precision", "auto", "--precision", "f32", "--size", "30x64"),
        *("--batch", "2", "--seconds", "0", "--force", "--json"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["model"], report["size"], report["batch"]) == ("pooling@1", "32x64", 2)
    names = [figures["name"] for figures in report["results"]]
    assert len(names) == len(set(names))
    assert names[0] == "openvino f32"
    assert all(figures["runs"] == 5 for figures in report["results"])
    assert report["machine"]["processor"]
    assert report["machine"]["versions"]["openvino"]


def test_auto_and_what_it_means_are_one_engine(run: Run) -> None:
    arguments = ("--precision", "f32", "--size", "32x32", "--seconds", "0", "--force", "--json")
    result = run("--engine", "auto", "--engine", "openvino", *arguments)
    assert [figures["name"] for figures in json.loads(result.stdout)["results"]] == ["openvino f32"]


def test_an_engine_that_cannot_run_is_left_out_by_name(run: Run) -> None:
    arguments = ("--size", "32x32", "--seconds", "0", "--force", "--json")
    # The network is no int8 version, so nothing can run it in int8.
    result = run("--precision", "f32", "--precision", "int8", *arguments)
    assert [figures["name"] for figures in json.loads(result.stdout)["results"]] == ["openvino f32"]
    assert "left out: auto int8: " in result.stderr
    assert run("--precision", "int8", *arguments).exit_code == 1


def test_int8_is_measured_on_the_int8_version_of_the_model(
    environment: dict[str, str], tmp_path: Path
) -> None:
    registry = ModelRegistry(tmp_path / "registry")
    registry.publish(write_pooling_artifact(tmp_path / "first").folder, "pooling")
    int8 = write_pooling_artifact(tmp_path / "second", precision="int8", derived_from="pooling@1")
    registry.publish(int8.folder, "pooling")
    result = CliRunner().invoke(
        bench.app,
        [
            "engine",
            "--precision",
            "f32",
            "--precision",
            "int8",
            "--size",
            "32x32",
            "--seconds",
            "0",
            "--force",
            "--json",
        ],
        env={**environment, "BISENET_REGISTRY": str(tmp_path / "registry")},
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"] == "pooling@1, pooling@2"
    assert [figures["name"] for figures in report["results"]] == ["openvino f32", "openvino int8"]


def test_people_read_the_same_with_its_context(run: Run) -> None:
    lines = run("--size", "32x32", "--seconds", "0", "--force", "--precision", "f32").stdout.splitlines()
    assert lines[0].startswith("pooling@1, 32x32, batch 1, cpu")
    assert "openvino" in lines[1]
    assert lines[-1].startswith("openvino f32")


def test_openvinos_own_benchmark_runs_beside(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_ROUNDS", 1)
    result = run(
        *("--precision", "f32", "--peer", "benchmark_app", "--size", "32x32"),
        "--seconds",
        "0",
        "--force",
        "--json",
    )
    assert result.exit_code == 0, result.output
    ours, peer = json.loads(result.stdout)["results"]
    assert (peer["name"], peer["ratio"]) == ("benchmark_app f32", 1.0)
    assert (ours["baseline"], ours["runs"]) == ("benchmark_app f32", peer["runs"])


def test_a_busy_machine_is_not_measured_unless_it_is_forced(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    arguments = ["--size", "32x32", "--seconds", "0"]
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "busy" in refused.stderr
    assert run(*arguments, "--force").exit_code == 0
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 1000.0, 1000.0))
    assert run(*arguments).exit_code == 0


def test_an_engine_that_was_asked_for_is_not_replaced(run: Run) -> None:
    result = run("--engine", "openvino", "--engine", "tensorflow", "--force", "--seconds", "0")
    assert result.exit_code == 1
    assert "tensorflow" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["--size", "512"], ["--size", "0x32"], ["--precision", "f64"], ["--batch", "0"]]
)
def test_bad_usage_is_told(run: Run, arguments: list[str]) -> None:
    assert run(*arguments, "--force").exit_code == 2


@pytest.mark.parametrize(("text", "size"), [("512x1024", ImageSize(512, 1024)), ("1x33", ImageSize(32, 64))])
def test_a_size_is_padded_as_the_networks_pictures_are(text: str, size: ImageSize) -> None:
    assert bench.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "32", "32x", "-1x32", "32x32x3", "032x32", "32 x 32", "32X32", "1e3x32"]
)
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="HEIGHTxWIDTH"):
        bench.parse_size(text)
