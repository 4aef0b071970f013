from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from interchange_site import HEIGHT, WIDTH, left_in, picture_bytes, write
from typer.testing import CliRunner, Result

from training.cli import app
from training.interchange.commands import Format
from training.interchange.formats import READERS

ROOT = Path(__file__).parents[3]


def dataset(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["dataset", *map(str, arguments)])


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    shape = {"label": "road", "points": [[0, 0], [30, 0], [30, 39], [0, 39]], "shape_type": "polygon"}
    text = {"shapes": [shape], "imageHeight": HEIGHT, "imageWidth": WIDTH}
    files: dict[str, str | bytes] = {}
    for seed, name in enumerate("abc"):
        files[f"{name}.json"] = json.dumps(text | {"imagePath": f"{name}.jpg"})
        files[f"{name}.jpg"] = picture_bytes(seed)
    return write(tmp_path / "labels", files)


def test_every_format_of_the_command_line_has_a_reader_and_a_line_of_help() -> None:
    assert {one.value for one in Format} == READERS.keys()
    assert all(f"{one.value} " in dataset("import", "--help").stdout for one in Format)


def test_an_import_can_be_checked_exported_and_imported_again(tmp_path: Path, labels: Path) -> None:
    done = dataset("import", "labelme", labels, tmp_path / "data")
    assert done.exit_code == 0, done.stderr
    assert "pictures: train 2, val 1 (divided here)" in done.stdout
    assert done.stdout.endswith(f"next: bisenet dataset check {tmp_path}/data/dataset.toml\n")
    checked = dataset("check", tmp_path / "data/dataset.toml")
    assert checked.exit_code == 0, checked.stdout
    assert "problems: 0" in checked.stdout
    exported = dataset("export", "coco-panoptic", tmp_path / "data/dataset.toml", tmp_path / "coco")
    assert exported.stdout == f"{tmp_path}/coco: train 2, val 1 pictures\n"
    again = dataset("import", "coco-panoptic", tmp_path / "coco", tmp_path / "again", "--json")
    report = json.loads(again.stdout)
    assert report["splits"] == {"train": 2, "val": 1}
    assert report["pixels"]["road"] == 3 * 31 * HEIGHT


def test_the_options_reach_the_import(tmp_path: Path, labels: Path) -> None:
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    options = ["--classes", tmp_path / "classes.txt", "--background", "ignore", "--val-fraction", "0.5"]
    done = dataset("import", "labelme", labels, tmp_path / "data", *options, "--pictures", "link", "--json")
    report = json.loads(done.stdout)
    assert report["splits"] == {"train": 1, "val": 2}
    assert report["background"] == "ignore"
    assert list(report["pixels"]) == ["sky", "road"]
    assert (tmp_path / "data/images/a.jpg").samefile(labels / "a.jpg")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["import", "yolo", "labels", "data"], 2, "'yolo' is not one of"),
        (["import", "labelme", "nowhere", "data"], 1, "error: nowhere: neither a folder nor a ZIP file"),
        (["import", "labelme", "labels", "labels"], 1, "error: labels exists and is not empty"),
        (["import", "labelme", "labels", "data", "--classes", "gone"], 1, "error: gone: cannot be read"),
        (["import", "labelme", "labels", "data", "--val-fraction", "2"], 2, "--val-fraction"),
        (["export", "palette", "gone.toml", "out"], 1, "error: gone.toml: cannot be read"),
        (["export", "palette", "camvid", "out"], 1, "needs the folder where the data set lies: --root DIR"),
        (["example", "labels"], 1, "error: labels exists and is not empty"),
    ],
)
def test_what_cannot_be_done_says_why_in_one_line_and_leaves_nothing(
    labels: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(labels.parent)
    result = dataset(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert left_in(labels.parent) == ["labels"]


def test_a_stopped_import_leaves_nothing(tmp_path: Path, labels: Path) -> None:
    """SIGTERM ends ``bisenet`` by SystemExit, which the command must let through after cleaning up."""
    program = (
        "import os, signal, sys, bisenet\n"
        "from training.interchange import importing\n"
        "importing.write_dataset = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"sys.argv = ['bisenet', 'dataset', 'import', 'labelme', {str(labels)!r}, '{tmp_path}/data']\n"
        "bisenet.main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == 143, ended.stderr
    assert left_in(tmp_path) == ["labels"]


def test_importing_needs_no_torch() -> None:
    modules = "training.interchange.importing, training.interchange.exporting, training.interchange.example"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
