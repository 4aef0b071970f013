from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import append, start, steps
from typer.testing import CliRunner

from training.cli import app
from training.run.checkpoint import CheckpointFolder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such-recipe"], 2, "no recipe 'no-such-recipe'"),
        (["camvid-v2", "--set", "optimizer.rate=1"], 2, "unknown key optimizer.rate"),
        (["camvid-v2"], 1, "needs the folder where the data set lies: --set data.root=DIR"),
        (["camvid-v2", "--set", "data.root=nowhere"], 1, "train.csv: cannot be read"),
    ],
)
def test_what_cannot_start_says_why_and_with_which_code(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    result = CliRunner().invoke(app, ["train", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == code
    assert message in result.stderr


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys, training.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_threads_of_a_run_sleep_while_they_wait(tmp_path: Path) -> None:
    for command in ("-m", "training"), ("-m", "bisenet"):
        result = subprocess.run(
            [sys.executable, *command, "train", "camvid-v2", "--set", f"data.root={tmp_path}/missing"],
            cwd=ROOT,
            env=os.environ | {"OMP_DISPLAY_ENV": "TRUE"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in result.stderr, result.stderr


def test_sigterm_saves_the_state_and_exits_with_zero(config_file: Path, tmp_path: Path) -> None:
    arguments = [str(config_file), "--set", "schedule.steps=1000000", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "training", "train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any(line.startswith("step 20/") for line in lines)
        process.send_signal(signal.SIGTERM)
        assert any("repeat the same command with --resume" in line for line in lines)
        assert process.wait() == 0
    state = CheckpointFolder(tmp_path / "checkpoints").load("last")
    assert state is not None
    assert state["position"]["step"] >= 20


def test_a_data_set_is_looked_at_without_torch(dataset_file: Path) -> None:
    program = "import sys, training.cli; sys.modules['torch'] = None; training.cli.app()"
    command = [sys.executable, "-c", program, "dataset", "check", str(dataset_file)]
    assert subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_a_run_says_where_its_page_is_and_its_port_is_checked_before_it_begins(
    config_file: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ["train", str(config_file), "--out", str(tmp_path), "--watch", "--watch-port", port]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3
    assert f"error: port {port} cannot be opened" in result.stderr
    result = CliRunner().invoke(app, ["train", "no-such-recipe", "--out", str(tmp_path), "--watch"])
    assert "the page of the run: http://127.0.0.1:" in result.stderr


def test_runs_are_compared_without_torch(tmp_path: Path) -> None:
    for name in ("short", "long"):
        append(tmp_path / name, start(), *steps(20, 200))
    out = tmp_path / "compare.html"
    result = CliRunner().invoke(
        app, ["report", "compare", str(tmp_path / "short"), str(tmp_path / "long"), "--out", str(out)]
    )
    assert result.exit_code == 0
    assert "<h1>short against long</h1>" in out.read_text()
    imports = "import sys, training.run.run_comparison, training.run.watch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", imports], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("command", ["watch", "compare"])
def test_a_folder_without_a_run_is_refused_in_words(tmp_path: Path, command: str) -> None:
    folders = [str(tmp_path / name) for name in ("one", "two")[: 1 + (command == "compare")]]
    result = CliRunner().invoke(app, ["report", command, *folders])
    assert result.exit_code == 1
    assert f"error: {tmp_path}/one holds no run" in result.stderr
