from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from model.artifacts.manifest import GRAPH_WEIGHTS_FILE
from service.cli.doctor import doctor
from service.engines import ENGINES

Run = Callable[..., Result]

app = typer.Typer()
app.command()(doctor)


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def run(*arguments: str, **changes: object) -> Result:
        changed = {name: str(value) for name, value in changes.items()}
        return CliRunner().invoke(app, arguments, env=environment | changed)

    return run


def findings(result: Result, kind: str) -> dict[str, Any]:
    return {finding["name"]: finding for finding in json.loads(result.stdout)[kind]}


def test_a_machine_that_can_serve_is_told_so(run: Run) -> None:
    result = run("--json")
    assert result.exit_code == 0, result.output
    engines = findings(result, "engines")
    assert engines["openvino"]["ok"]
    assert "f32" in engines["torch"]["detail"]
    assert findings(result, "checks")["model"]["detail"].startswith("pooling@1 is intact, openvino")
    assert json.loads(result.stdout)["machine"]["cores"] >= 1


def test_people_read_the_same(run: Run) -> None:
    lines = run().stdout.splitlines()
    assert any(line.startswith("ok  openvino") for line in lines)
    assert any(line.startswith("ok  model") for line in lines)
    assert any("tensorrt" in line for line in lines)


def test_an_engine_that_cannot_run_has_a_reason_and_does_no_harm(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, ENGINES["torch"], None)
    result = run("--json")
    torch = findings(result, "engines")["torch"]
    assert (torch["ok"], torch["detail"].startswith("torch is not installed")) == (False, True)
    assert "NVIDIA GPU" in findings(result, "engines")["tensorrt"]["detail"]
    assert result.exit_code == 0


def test_what_installs_a_missing_engine_is_said_where_it_could_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ENGINES["torch"], ENGINES["tensorrt"], "torch", "torch_tensorrt"):
        monkeypatch.setitem(sys.modules, module, None)
    without_gpu = findings(run("--json"), "engines")
    assert without_gpu["torch"]["detail"].endswith("pip install 'bisenet-service[torch]'")
    assert "pip" not in without_gpu["tensorrt"]["detail"]
    monkeypatch.setattr("service.cli.doctor.has_gpu", lambda: True)
    tensorrt = findings(run("--json"), "engines")["tensorrt"]["detail"]
    assert tensorrt.endswith("pip install 'bisenet-service[gpu]'")


def test_a_machine_without_any_engine_cannot_serve(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ENGINES.values():
        monkeypatch.setitem(sys.modules, module, None)
    assert run("--json").exit_code == 1


def test_a_model_that_is_missing_or_damaged_is_named(run: Run, registry: Path) -> None:
    missing = run("--json", BISENET_MODELS__SERVE="village")
    assert missing.exit_code == 1
    assert "village" in findings(missing, "checks")["model"]["detail"]
    graph = registry / "models" / "pooling" / "1" / GRAPH_WEIGHTS_FILE
    intact = graph.read_bytes()
    graph.write_bytes(b"")
    damaged = run("--json")
    graph.write_bytes(intact)
    assert damaged.exit_code == 1
    assert GRAPH_WEIGHTS_FILE in findings(damaged, "checks")["model"]["detail"]


def test_a_cache_folder_that_others_can_write_to_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino").chmod(0o777)
    result = run("--json", BISENET_MODELS__CACHE_FOLDER=tmp_path)
    assert result.exit_code == 1
    assert "by others" in findings(result, "checks")["cache folder"]["detail"]


def test_a_wrong_configuration_is_bad_usage(run: Run) -> None:
    result = run(BISENET_MODELS__COLOUR="red")
    assert result.exit_code == 2
    assert "models.colour" in result.stderr
