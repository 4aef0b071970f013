from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from interchange_site import HEIGHT, WIDTH, imported, left_in, picture_bytes, write
from PIL import Image

from model.datasets.dataset import DatasetSpec, LabeledImages
from model.errors import LabelError
from training.errors import InterchangeError
from training.interchange.dataset_folder import write_mask
from training.interchange.exporting import ExportFormat, export_dataset

SPLITS = {"train": ["a/1", "b/1"], "val": ["c"]}
TOML = """
name = "toy"
ignore_id = 200
[splits]
train = "train.csv"
val = "val.csv"
[label_map]
9 = 1
[[classes]]
name = "sky"
color = [10, 20, 30]
[[classes]]
name = "road"
color = [40, 50, 60]
"""


@pytest.fixture
def spec(tmp_path: Path) -> DatasetSpec:
    folder = write(tmp_path / "toy", {"toy.toml": TOML})
    for seed, (split, names) in enumerate(SPLITS.items()):
        lines = [f"images/{name}.JPG,labels/{name}.png" for name in names]
        write(folder, {f"{split}.csv": "\n".join(lines)})
        for name in names:
            write(folder, {f"images/{name}.JPG": picture_bytes(seed)})
            ids_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
            ids_HW[10:20, 5:25] = 9
            ids_HW[:, 50:] = 200
            (folder / f"labels/{name}.png").parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids_HW).save(folder / f"labels/{name}.png")
    return DatasetSpec.from_toml(folder / "toy.toml")


def test_a_palette_export_is_the_same_data_set_with_ids_that_mean_classes(
    tmp_path: Path, spec: DatasetSpec
) -> None:
    seen: list[tuple[int, int]] = []
    counts = export_dataset(spec, tmp_path / "out", "palette", lambda *ones: seen.append(ones))
    assert counts == {"train": 2, "val": 1}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    exported = DatasetSpec.from_toml(tmp_path / "out/dataset.toml")
    assert exported.palette == spec.palette
    assert exported.name == "toy"
    for split in spec.splits:
        before, after = LabeledImages(spec, split), LabeledImages(exported, split)
        assert len(before) == len(after)
        for index in range(len(before)):
            for old, new in zip(before[index], after[index], strict=True):
                assert (old == new).all()
    mask = Image.open(tmp_path / "out/masks/train/a/1.png")
    assert mask.mode == "P"
    assert mask.convert("RGB").getpixel((6, 11)) == (40, 50, 60)


def test_a_panoptic_export_is_read_again_pixel_by_pixel(tmp_path: Path, spec: DatasetSpec) -> None:
    export_dataset(spec, tmp_path / "out", "coco-panoptic")
    record = json.loads((tmp_path / "out/annotations/panoptic_train.json").read_text())
    assert record["categories"] == [
        {"id": 1, "name": "sky", "color": [10, 20, 30], "isthing": 0},
        {"id": 2, "name": "road", "color": [40, 50, 60], "isthing": 0},
    ]
    assert record["images"][0] == {"id": 1, "file_name": "a/1.jpg", "height": HEIGHT, "width": WIDTH}
    sky, road = record["annotations"][0]["segments_info"]
    assert road == {"id": 2, "category_id": 2, "area": 200, "bbox": [5, 10, 20, 10], "iscrowd": 0}
    assert sky["area"] == HEIGHT * 50 - 200
    result = imported("coco-panoptic", tmp_path / "out", tmp_path / "back")
    assert result.spec.palette.names == spec.palette.names
    assert result.spec.palette.colors == spec.palette.colors
    assert {split: len(names) for split, names in result.splits.items()} == {"train": 2, "val": 1}
    _, label_HW = LabeledImages(spec, "val")[0]
    assert (result.ids["c"] == np.where(label_HW == 200, 255, label_HW)).all()


@pytest.mark.parametrize("format_name", ["palette", "coco-panoptic"])
def test_nothing_remains_where_a_label_is_unusable(
    tmp_path: Path, spec: DatasetSpec, format_name: ExportFormat
) -> None:
    write_mask(spec.root / "labels/c.png", np.full((HEIGHT, WIDTH), 7, np.uint8), spec.palette)
    with pytest.raises(LabelError, match=r"c\.png: ids \[7\]"):
        export_dataset(spec, tmp_path / "out", format_name)
    assert left_in(tmp_path) == ["toy"]


def test_nothing_is_written_into_a_folder_that_holds_something(spec: DatasetSpec) -> None:
    with pytest.raises(InterchangeError, match="exists and is not empty"):
        export_dataset(spec, spec.root, "palette")
