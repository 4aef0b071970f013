from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE_PICTURES = ROOT / "service/page/examples"
STREETS = ("avenue", "crossing", "high-street")
SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR = 0, 1, 3, 4, 5, 8


def test_a_scene_is_drawn_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        program = [sys.executable, str(ROOT / "examples/street_scenes.py"), str(tmp_path / name)]
        subprocess.run(
            [*program, "--scene", "high-street", "--width", "640"], check=True, capture_output=True
        )
    with Image.open(tmp_path / "a.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (640, 360))
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the labels of each street of the page."""
    folder = tmp_path_factory.mktemp("masks")
    program = [
        sys.executable,
        "-m",
        "bisenet",
        "predict",
        *(str(PAGE_PICTURES / f"{name}.jpg") for name in STREETS),
    ]
    options = ["--out", str(folder), "--output", "labels", "--engine", "openvino", "--precision", "f32"]
    subprocess.run([*program, *options], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", STREETS)
def test_the_shipped_model_knows_the_streets_of_the_page(masks: Path, name: str) -> None:
    label_HW = np.asarray(Image.open(masks / f"{name}.png"))
    height, width = label_HW.shape
    middle = slice(width * 9 // 20, width * 11 // 20)
    assert (label_HW[: height // 4, middle] == SKY).mean() > 0.9
    assert (label_HW[height * 3 // 5 : height * 9 // 10, middle] == ROAD).mean() > 0.9
    shares = np.bincount(label_HW.reshape(-1), minlength=256) / label_HW.size
    assert min(shares[[BUILDING, PAVEMENT]]) > 0.04
    assert shares[CAR] > 0.01
    assert shares[TREE] > {"avenue": 0.2, "crossing": 0.01, "high-street": -1}[name]  # the last has no tree
