from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import write_pooling_artifact
from typer.testing import CliRunner, Result

from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.manifest import GRAPH_FILE, GRAPH_WEIGHTS_FILE, ModelVersion
from model.artifacts.openvino_graph import load_openvino
from model.errors import ExportError
from service.cli import export_model, models
from service.cli.export_model import export

Run = Callable[..., Result]
POOLING_1 = ModelVersion("pooling", 1)


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Return what runs ``bisenet models export`` on a registry that holds ``pooling@1``."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(models.app, ["export", *map(str, arguments)], env=environment)

    return run


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_pooling_artifact(tmp_path_factory.mktemp("pooling") / "artifact")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_graph_is_copied_out_under_the_name_that_was_asked_for(run: Run, tmp_path: Path) -> None:
    result = run("pooling@1", "--format", "openvino", "--out", tmp_path / "new" / "city.xml", "--json")
    assert result.exit_code == 0, result.output
    files = [tmp_path / "new" / "city.xml", tmp_path / "new" / "city.bin"]
    assert json.loads(result.stdout) == {
        "name": "pooling",
        "version": 1,
        "format": "openvino",
        "files": [str(path) for path in files],
    }
    assert names(tmp_path / "new") == ["city.bin", "city.xml"]
    compiled = load_openvino().compile_model(files[0], "CPU")
    assert compiled(np.zeros((2, 32, 64, 3), np.float32))["raw"].shape == (2, 2, 4, 8)


def test_a_folder_gets_files_named_after_the_version(run: Run, registry: Path, tmp_path: Path) -> None:
    published = read_artifact(registry / "models" / "pooling" / "1")
    for out in (tmp_path / "there", tmp_path / "with.dot"):
        out.mkdir()
        result = run("--format", "openvino", "--out", out)
        assert result.stdout.startswith(
            f"pooling@1: {out / 'pooling-1.xml'}, {out / 'pooling-1.bin'}, proven"
        )
        assert (out / "pooling-1.xml").read_bytes() == published.read(GRAPH_FILE)
        assert (out / "pooling-1.bin").read_bytes() == published.read(GRAPH_WEIGHTS_FILE)


def test_older_files_are_written_over_and_nothing_else_is_left(run: Run, tmp_path: Path) -> None:
    (tmp_path / "city.xml").write_text("old")
    assert run("--format", "openvino", "--out", tmp_path / "city.xml").exit_code == 0
    assert (tmp_path / "city.xml").read_text() != "old"
    assert names(tmp_path) == ["city.bin", "city.xml"]


def test_a_copy_that_is_not_proven_does_not_appear(
    pooling: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(artifact: Artifact, path: Path) -> None:
        path.write_bytes(artifact.read(GRAPH_FILE))
        raise ExportError("not proven")

    monkeypatch.setattr(export_model, "write_graph", fail)
    with pytest.raises(ExportError, match="not proven"):
        export(POOLING_1, pooling, "openvino", tmp_path / "city.xml")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["onnxruntime", "onnxscript", "torch"])
def test_onnx_without_its_packages_says_what_installs_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(export_model, "find_spec", lambda wanted: None if wanted == name else object())
    result = run("--format", "onnx", "--out", tmp_path / "city.onnx")
    assert result.exit_code == 1
    assert "pip install 'bisenet-service[onnx]'" in result.stderr
    assert names(tmp_path) == []


def test_an_int8_version_is_no_onnx(tmp_path: Path) -> None:
    int8 = write_pooling_artifact(tmp_path / "int8", precision="int8", derived_from="pooling@1")
    with pytest.raises(ExportError, match="pooling@1 is int8"):
        export(POOLING_1, int8, "onnx", tmp_path / "city.onnx")


@pytest.mark.soak
def test_onnx_is_written_from_the_command_line(
    tiny_registry: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = [
        "export",
        "tiny",
        "--registry",
        str(tiny_registry),
        "--format",
        "onnx",
        "--size",
        "64x96",
        "--output",
        "labels",
        "--json",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(models.app, arguments, env=environment)
    assert result.exit_code == 0, result.output
    assert names(tmp_path) == ["tiny-1.onnx"]
    report = json.loads(result.stdout)
    assert (report["size"], report["output"]) == ("64x96", "labels")
    assert load_openvino().Core().read_model(tmp_path / "tiny-1.onnx").output("labels")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "openvino", "--size", "64x96"), "--size is for --format onnx only"),
        (("--format", "openvino", "--output", "labels"), "--output is for --format onnx only"),
        (("--format", "onnx", "--size", "64"), "--size must be HEIGHTxWIDTH"),
        (("--format", "onnx", "--size", "0x64"), "of 1 to 16384 pixels, not '0x64'"),
        (("--format", "onnx", "--layout", "hwc"), "--layout"),
    ],
)
def test_a_form_that_there_is_not_exits_with_2(
    run: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = run(*options, "--out", tmp_path)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("form", "out"),
    [("onnx", "city.xml"), ("openvino", "city.onnx"), ("openvino", "city.bin"), ("tensorrt", "city")],
)
def test_bad_usage_exits_with_2(run: Run, tmp_path: Path, form: str, out: str) -> None:
    assert run("--format", form, "--out", tmp_path / out).exit_code == 2
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_to_exits_with_1_and_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    result = run("--format", "openvino", "--out", tmp_path / "file" / "city.xml")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "cannot be written" in result.stderr
