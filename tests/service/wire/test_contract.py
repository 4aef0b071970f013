"""The contract: its code is up to date, it is well written, and nothing that was promised has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CONTRACT = "proto/segmentation/v1/segmentation.proto"
CONTRACTS = (CONTRACT, "proto/inference/open_inference.proto")
WIRE = ROOT / "service" / "wire"
TOOLS = Path(sys.executable).parent

needs_buf = pytest.mark.skipif(not (TOOLS / "buf").exists(), reason="buf is not installed")


def run(command: list[str | Path], home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{TOOLS}:{os.environ['PATH']}", "HOME": str(home)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_committed_code_is_what_make_proto_writes(tmp_path: Path) -> None:
    done = run([sys.executable, ".ci/generate_wire.py", tmp_path], tmp_path)
    assert done.returncode == 0, done.stderr
    written = sorted((tmp_path / "service" / "wire").iterdir())
    assert [path.name for path in written] == sorted(path.name for path in WIRE.glob("*_pb2*.py*"))
    for path in written:
        assert path.read_text() == (WIRE / path.name).read_text(), f"{path.name}: run make proto"


@needs_buf
def test_buf_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    done = run(["buf", "lint", "proto"], tmp_path)
    assert done.returncode == 0, done.stdout


@needs_buf
def test_buf_would_complain(tmp_path: Path) -> None:
    careless = tmp_path / "proto"
    shutil.copytree(ROOT / "proto", careless)
    contract = careless / CONTRACT.removeprefix("proto/")
    contract.write_text(contract.read_text().replace("  // The picture.\n", ""))
    assert run(["buf", "lint", careless], tmp_path).returncode != 0


def breaks(now: Path, before: Path, home: Path) -> str:
    """Return what clients of one contract would notice of another."""
    return run(["buf", "breaking", now, "--against", before], home).stdout


@needs_buf
@pytest.mark.parametrize("contract", CONTRACTS)
def test_no_promise_of_an_earlier_commit_is_broken(tmp_path: Path, contract: str) -> None:
    log = run(["git", "log", "--format=%H", "--", contract], tmp_path)
    if log.returncode or not log.stdout:
        pytest.skip("there is no history of the contract here")
    for commit in log.stdout.split():
        before = tmp_path / commit
        (before / contract).parent.mkdir(parents=True)
        (before / contract).write_text(run(["git", "show", f"{commit}:{contract}"], tmp_path).stdout)
        shutil.copy(ROOT / "proto" / "buf.yaml", before / "proto")
        assert not breaks(ROOT / "proto", before / "proto", tmp_path), commit


@needs_buf
@pytest.mark.parametrize(
    ("promise", "broken"),
    [
        ("uint32 version = 3;", "uint32 version = 9;"),
        ("string model = 2;", "bytes model = 2;"),
        ("  BLOCK = 2;", "  BLOCK = 3;"),
        ("rpc ListModels(", "rpc GetModels("),
    ],
)
def test_a_broken_promise_would_be_noticed(tmp_path: Path, promise: str, broken: str) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    contract = tmp_path / CONTRACT
    assert promise in contract.read_text()
    contract.write_text(contract.read_text().replace(promise, broken))
    assert breaks(tmp_path / "proto", ROOT / "proto", tmp_path)
