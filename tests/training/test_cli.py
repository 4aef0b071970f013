from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

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


def check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["dataset", "check", *arguments])


def test_a_sound_data_set_is_described(dataset_file: Path) -> None:
    result = check(str(dataset_file))
    assert result.exit_code == 0
    assert "train: 5 pictures (48x80: 3, 64x80: 2)" in result.stdout
    assert "problems: 0" in result.stdout
    found = json.loads(check(str(dataset_file), "--json", "--split", "val").stdout)
    assert [split["name"] for split in found["splits"]] == ["val"]
    assert [one["name"] for one in found["classes"]] == ["red", "green", "blue"]


def test_a_data_set_with_problems_ends_with_one(dataset_file: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_file.parent, tmp_path / "data")
    (tmp_path / "data/train1.png").unlink()
    result = check(str(tmp_path / "data/blocks.toml"))
    assert result.exit_code == 1
    assert "train.csv:2: " in result.stdout
    assert "fingerprint unknown: files are missing" in result.stdout
    assert "problems: 1" in result.stdout


def test_a_preset_asks_for_its_root_by_the_name_of_the_option() -> None:
    assert check("camvid").stderr.endswith("needs the folder where the data set lies: --root DIR\n")


@pytest.mark.parametrize("reference", ["nothing.toml", "nothing", "camvid"])
def test_a_data_set_that_is_none_is_refused(reference: str) -> None:
    result = check(reference)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys, training.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


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
