"""``serve --ready-file``; that the service works is tested in ``tests/flows``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from http_site import open_site
from typer.testing import CliRunner, Result

from model.artifacts.manifest import ModelVersion
from service.bootstrap import Ready, StartError
from service.cli.serve import serve, write_ready_file
from service.settings import Settings

app = typer.Typer()
app.command()(serve)


@pytest.fixture
async def ready(tmp_path: Path) -> Ready:
    async with open_site(versions=[ModelVersion("city", 2), ModelVersion("road", 1)]) as site:
        models = site.host.models
    return Ready("http://127.0.0.1:1", "127.0.0.1:2", "http://127.0.0.1:3", tmp_path / "token", models)


def test_the_ready_file_has_the_addresses_and_the_models(ready: Ready, tmp_path: Path) -> None:
    write_ready_file(tmp_path / "ready.json", ready)
    assert json.loads((tmp_path / "ready.json").read_text()) == {
        "url": "http://127.0.0.1:1",
        "grpc_address": "127.0.0.1:2",
        "admin_url": "http://127.0.0.1:3",
        "models": ["city@2", "road@1"],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["ready.json"]


def run(environment: dict[str, str], file: Path) -> Result:
    return CliRunner().invoke(app, ["--ready-file", str(file)], env=environment)


def test_the_file_of_an_earlier_service_is_gone_while_this_one_starts_and_at_its_end(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ready.json"
    file.write_text("earlier")
    seen: list[bool] = []

    def run_service(_settings: Settings, **_: object) -> int:
        seen.append(file.exists())
        file.write_text("ready")
        raise StartError("the port is taken")

    monkeypatch.setattr("service.bootstrap.run_service", run_service)
    result = run(environment, file)
    assert (result.exit_code, seen, file.exists()) == (3, [False], False)


def test_a_file_that_cannot_be_written_stops_the_start(environment: dict[str, str], tmp_path: Path) -> None:
    result = run(environment, tmp_path / "no folder" / "ready.json")
    assert result.exit_code == 3
    assert "no folder" in result.stderr
