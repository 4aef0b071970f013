"""``bisenet worker``: what keeps it from starting; ``tests/flows`` has it at work."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import typer
from fakes import PATIENCE_S
from live_service import BISENET, serving_environment
from typer.testing import CliRunner

from service.cli.worker import worker


@pytest.mark.parametrize(
    ("arguments", "key"),
    [(["--worker-id", "a/b"], "jobs.worker_id"), (["--device", "gpu"], "models.device")],
)
def test_a_wrong_flag_is_named(arguments: list[str], key: str) -> None:
    app = typer.Typer()
    app.command()(worker)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert done.output.startswith(f"error: {key}: ")


def test_a_database_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    environment = serving_environment(tmp_path / "registry", tmp_path / "cache", tmp_path, "none")
    environment["BISENET_JOBS__DATABASE"] = "postgresql://user:secret@127.0.0.1:1/jobs"
    done = subprocess.run(
        [*BISENET, "worker"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=4 * PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: jobs database postgresql://user:***@127.0.0.1:1/jobs cannot be used: ")
    assert "secret" not in done.stderr
