"""The examples below ``docs``: what they say is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from model.dataset import DatasetSpec, LabeledImages

DOCS = Path(__file__).parents[1] / "docs"


def test_the_data_set_has_its_labels_where_it_says(tmp_path: Path) -> None:
    for folder in ("photos", "labels", "val/images", "val/labels"):
        (tmp_path / folder).mkdir(parents=True)
    for image, labels in (("photos/1.jpg", "labels/1.png"), ("val/images/2.jpg", "val/labels/2.png")):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / image)
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / labels)
    (tmp_path / "train.csv").write_text("photos/1.jpg,labels/1.png\n")
    (tmp_path / "dataset.toml").write_bytes((DOCS / "dataset.toml").read_bytes())
    spec = DatasetSpec.load(str(tmp_path / "dataset.toml"))
    for split in ("train", "val"):
        _, label_HW = LabeledImages(spec, split)[0]
        assert (label_HW == 1).all()
