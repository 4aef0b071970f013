from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE_PICTURES = ROOT / "service/page/examples"
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


@pytest.mark.parametrize("name", ["avenue", "crossing", "high-street"])
def test_the_shipped_model_knows_the_streets_of_the_page(tmp_path: Path, name: str) -> None:
    program = [sys.executable, "-m", "bisenet", "predict", str(PAGE_PICTURES / f"{name}.jpg")]
    options = ["--out", str(tmp_path / "mask.png"), "--output", "labels", "--engine", "openvino"]
    subprocess.run([*program, *options, "--precision", "f32"], cwd=ROOT, check=True, capture_output=True)
    label_HW = np.asarray(Image.open(tmp_path / "mask.png"))
    height, width = label_HW.shape
    middle = slice(width * 9 // 20, width * 11 // 20)
    assert (label_HW[: height // 4, middle] == SKY).mean() > 0.9
    assert (label_HW[height * 3 // 5 : height * 9 // 10, middle] == ROAD).mean() > 0.9
    shares = np.bincount(label_HW.reshape(-1), minlength=256) / label_HW.size
    assert min(shares[[BUILDING, PAVEMENT]]) > 0.04
    assert shares[CAR] > 0.01
    assert shares[TREE] > {"avenue": 0.2, "crossing": 0.01, "high-street": -1}[name]  # the last has no tree
