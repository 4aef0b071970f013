from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import seal, write_pooling_artifact

from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.manifest import GRAPH_FILE, GRAPH_WEIGHTS_FILE
from model.artifacts.openvino_graph import prove_file, prove_graph, write_graph
from model.errors import ArtifactError, DigestMismatchError, GoldenMismatchError

ROOT = Path(__file__).parents[3]


def test_openvino_still_falls_back_on_its_stub_and_reports_nothing() -> None:
    program = (
        "from model.artifacts.openvino_graph import load_openvino; load_openvino();"
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    )
    command = [sys.executable, "-c", program]  # a process of its own: NNCF may have loaded the real one here
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert answer.stdout == "openvino.tools.ovc.telemetry_stub\n"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_pooling_artifact(tmp_path / "artifact")


def with_weights_of_another(artifact: Artifact, folder: Path) -> Artifact:
    other = write_pooling_artifact(folder / "other", seed=1)
    copy = Path(shutil.copytree(artifact.folder, folder / "mixed"))
    shutil.copy(other.path(GRAPH_WEIGHTS_FILE), copy / GRAPH_WEIGHTS_FILE)
    return seal(copy, artifact.manifest)


def test_a_copy_of_the_graph_is_the_graph(artifact: Artifact, tmp_path: Path) -> None:
    prove_graph(artifact)
    write_graph(artifact, tmp_path / "city.xml")
    assert (tmp_path / "city.xml").read_bytes() == artifact.read(GRAPH_FILE)
    assert (tmp_path / "city.bin").read_bytes() == artifact.read(GRAPH_WEIGHTS_FILE)
    prove_file(tmp_path / "city.xml", artifact.golden(), "f32")


def test_a_graph_that_computes_something_else_is_neither_proven_nor_copied(
    artifact: Artifact, tmp_path: Path
) -> None:
    mixed = with_weights_of_another(artifact, tmp_path)
    with pytest.raises(GoldenMismatchError):
        prove_graph(mixed)
    with pytest.raises(GoldenMismatchError):
        write_graph(mixed, tmp_path / "city.xml")


def test_a_damaged_graph_is_not_copied(artifact: Artifact, tmp_path: Path) -> None:
    artifact.path(GRAPH_WEIGHTS_FILE).write_bytes(b"other")
    with pytest.raises(DigestMismatchError):
        write_graph(read_artifact(artifact.folder), tmp_path / "city.xml")


@pytest.mark.parametrize("name", ["city.onnx", "city.xml"])
def test_a_file_that_cannot_be_read_is_named(artifact: Artifact, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=rf"{name} does not run"):
        prove_file(tmp_path / name, artifact.golden(), "f32")
    (tmp_path / name).write_bytes(b"\x08nonsense")
    with pytest.raises(ArtifactError, match=rf"{name} does not run"):
        prove_file(tmp_path / name, artifact.golden(), "f32")
