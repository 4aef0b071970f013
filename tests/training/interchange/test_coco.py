from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interchange_site import HEIGHT, WIDTH, encoded, imported, left_in, picture_bytes, write
from PIL import Image
from pycocotools import mask as coco

from model.labels import UInt8Array
from training.errors import InterchangeError
from training.interchange.foreign import ReadOptions
from training.interchange.importing import ImportOptions, import_dataset

CATEGORIES = [{"id": 7, "name": "car"}, {"id": 3, "name": "road", "supercategory": "ground"}]
ROAD, CAR = 1, 2  # in the order of their numbers, after the background
ROAD_POLYGON = [0.0, 20.0, 60.0, 20.0, 60.0, 40.0, 0.0, 40.0]


def instances(*annotations: dict[str, Any], names: tuple[str, ...] = ("a.jpg",), **keys: Any) -> str:
    """Return a file with instances; those without ``image_id`` are of the first picture."""
    images = [
        {"id": 10 + k, "file_name": name, "height": HEIGHT, "width": WIDTH} for k, name in enumerate(names)
    ]
    common = {"image_id": 10, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1}
    listed = [common | {"id": k} | annotation for k, annotation in enumerate(annotations, 1)]
    return json.dumps({"info": {}, "images": images, "annotations": listed, "categories": CATEGORIES} | keys)


def disc(radius: float) -> UInt8Array:
    rows_HW, columns_HW = np.mgrid[:HEIGHT, :WIDTH]
    return ((rows_HW - 20) ** 2 + (columns_HW - 30) ** 2 < radius**2).astype(np.uint8)


def run_lengths(mask_HW: UInt8Array) -> dict[str, Any]:
    """Return a mask as pycocotools writes it."""
    runs = coco.encode(np.asfortranarray(mask_HW))
    return {"size": list(runs["size"]), "counts": runs["counts"].decode()}


def test_polygons_and_both_kinds_of_run_lengths_are_drawn_smaller_objects_above(tmp_path: Path) -> None:
    inner = np.flatnonzero(np.diff(np.r_[0, disc(5).T.reshape(-1), 0]))  # where runs start, down the columns
    counts = np.diff(np.r_[0, inner, HEIGHT * WIDTH]).tolist()
    text = instances(
        {"category_id": 3, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
        {"category_id": 7, "segmentation": run_lengths(disc(12)), "iscrowd": 1},
        {"category_id": 3, "segmentation": [ROAD_POLYGON]},
    )
    source = write(
        tmp_path / "coco", {"annotations/instances_default.json": text, "images/a.jpg": picture_bytes()}
    )
    result = imported("coco", source, tmp_path / "data")
    assert result.spec.palette.names == ("background", "road", "car")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[20:] = ROAD
    expected[disc(12) > 0] = CAR
    expected[disc(5) > 0] = ROAD
    assert (result.ids["a"] == expected).all()


def test_the_parts_of_an_instance_lie_together(tmp_path: Path) -> None:
    square = [10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]
    hole = [12.0, 12.0, 18.0, 12.0, 18.0, 18.0, 12.0, 18.0]
    text = instances(
        {"category_id": 7, "segmentation": [hole]},
        {"category_id": 3, "segmentation": [square, ROAD_POLYGON]},
    )
    ids_HW = imported(
        "coco", write(tmp_path / "coco", {"x.json": text, "a.jpg": picture_bytes()}), tmp_path / "data"
    ).ids["a"]
    assert (ids_HW[12:18, 12:18] == CAR).all()
    assert ids_HW[11, 11] == ids_HW[39, 59] == ROAD


def test_splits_come_from_the_names_of_the_files_or_of_their_folders(tmp_path: Path) -> None:
    road = {"category_id": 3, "segmentation": [ROAD_POLYGON]}
    files: dict[str, str | bytes] = {
        "annotations/instances_train2017.json": instances(road),
        "annotations/instances_val2017.json": instances(road),
        "annotations/captions_val2017.json": "{}",
        "train2017/a.jpg": picture_bytes(0),
        "val2017/a.jpg": picture_bytes(1),
    }
    result = imported("coco", write(tmp_path / "coco", files), tmp_path / "data")
    assert result.splits == {"train": ["a"], "val": ["a"]}
    assert result.report.left_out.counts == {"other files": 1}
    files = {
        "train/_annotations.coco.json": instances(road),
        "train/a.jpg": picture_bytes(0),
        "valid/_annotations.coco.json": instances(road, names=("b.jpg",)),
        "valid/b.jpg": picture_bytes(1),
    }
    result = imported("coco", write(tmp_path / "exported", files), tmp_path / "exported-data")
    assert result.splits == {"train": ["a"], "val": ["b"]}


def test_what_is_not_taken_is_said(tmp_path: Path) -> None:
    text = instances(
        {"category_id": 3, "segmentation": [ROAD_POLYGON, [1.0, 1.0, 2.0, 2.0]]},
        {"category_id": 7, "segmentation": []},
        {"category_id": 7},
        {"category_id": 7, "segmentation": [ROAD_POLYGON], "image_id": 99},
        names=("a.jpg", "b.jpg", "c.jpg"),
    )
    pictures: dict[str, str | bytes] = {"a.jpg": picture_bytes(0), "b.jpg": picture_bytes(1)}
    source = write(tmp_path / "coco", {"x.json": text, "y.json": "[]"} | pictures)
    result = imported("coco", source, tmp_path / "data")
    assert result.report.left_out.counts == {
        "annotations without a segmentation (boxes alone)": 2,
        "polygons of fewer than three points": 1,
        "annotations of pictures that the file does not list": 1,
        "pictures without annotation": 1,
        "pictures that are missing": 1,
        "JSON files of another kind": 1,
    }
    both = imported("coco", source, tmp_path / "both", ImportOptions(ReadOptions(keep_empty=True)))
    assert not both.ids["b"].any()


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 5, "segmentation": [ROAD_POLYGON]}, "annotation 1: the file lists no category 5"),
        ({"category_id": 3, "segmentation": [[1, 2, 3, 4, 5]]}, "annotation 1: a polygon of 5 numbers"),
        ({"category_id": 3, "segmentation": [[1, 2, 3, 4, 5, 3e9]]}, "annotation 1: a point is not finite"),
        ({"category_id": 3, "segmentation": [["a"]]}, r"x.json: annotations.0.segmentation.* \(and 1 more\)"),
        (
            {"category_id": 3, "segmentation": {"size": [40, 60], "counts": [5]}},
            "annotation 1: run lengths do not",
        ),
        (
            {"category_id": 3, "segmentation": {"size": [40, 60], "counts": "0\x7f"}},
            "annotation 1: run lengths hold",
        ),
        (
            {"category_id": 3, "segmentation": {"size": [40, 60], "counts": "n" * 99}},
            "annotation 1: run lengths end",
        ),
        (
            {"category_id": 3, "segmentation": {"size": [0, 60], "counts": [5]}},
            "annotation 1: an image has at least",
        ),
        (
            {"category_id": 3, "segmentation": {"size": [60, 60], "counts": [3600]}},
            "is larger than its picture",
        ),
        (
            {"category_id": 3, "segmentation": {"size": [60, 40], "counts": [2400]}},
            "does not lie within 40x60",
        ),
    ],
)
def test_a_malformed_annotation_is_named_and_nothing_remains(
    tmp_path: Path, annotation: dict[str, Any], message: str
) -> None:
    source = write(tmp_path / "coco", {"x.json": instances(annotation), "a.jpg": picture_bytes()})
    with pytest.raises(InterchangeError, match=message):
        import_dataset("coco", source, tmp_path / "data", ImportOptions())
    assert left_in(tmp_path) == ["coco"]


def panoptic(segments: list[dict[str, Any]], *, name: str = "a.png") -> str:
    annotation = {"image_id": 10, "file_name": name, "segments_info": segments}
    categories = [
        {"id": 3, "name": "road", "color": [9, 8, 7], "isthing": 0},
        {"id": 7, "name": "car", "isthing": 1},
    ]
    return instances(annotations=[annotation], categories=categories)


def segment_png() -> bytes:
    """Return segments 5 (left) and 5 + 256 * 1000 (right); 0 in the first row."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[1:, :30] = (5, 0, 0)
    pixels[1:, 30:] = (5, 1000 % 256, 1000 // 256)
    return encoded(Image.fromarray(pixels))


SEGMENTS = [{"id": 5, "category_id": 3, "area": 1}, {"id": 5 + 256 * 1000, "category_id": 7}]


def test_panoptic_segments_have_the_classes_of_their_numbers(tmp_path: Path) -> None:
    files = {
        "annotations/panoptic_val2017.json": panoptic(SEGMENTS),
        "annotations/panoptic_val2017/a.png": segment_png(),
        "annotations/other/a.png": b"",
        "val2017/a.jpg": picture_bytes(),
    }
    result = imported("coco-panoptic", write(tmp_path / "coco", files), tmp_path / "data")
    assert result.spec.palette.names == ("road", "car")
    assert result.spec.palette.colors[0] == (9, 8, 7)
    assert set(result.ids["a"][0].tolist()) == {255}
    assert (result.ids["a"][1:, :30] == 0).all()
    assert (result.ids["a"][1:, 30:] == 1).all()
    options = ImportOptions(background="rest")
    assert imported("coco-panoptic", tmp_path / "coco", tmp_path / "rest", options).ids["a"][0, 0] == 0


@pytest.mark.parametrize(
    ("text", "png", "message"),
    [
        (panoptic(SEGMENTS[:1]), segment_png(), r"p/a.png: segments \[256005\] are not listed"),
        (panoptic([{"id": 5, "category_id": 1}]), segment_png(), "picture 10: the file lists no category 1"),
        (panoptic(SEGMENTS, name="b.png"), segment_png(), "picture 10: 'b.png' is missing"),
        (panoptic(SEGMENTS), picture_bytes(kind="PNG", width=3), "p/a.png: the mask has 40x3 pixels"),
        (panoptic(SEGMENTS), b"", "p/a.png: not a readable mask"),
        (
            instances(),
            segment_png(),
            r"no JSON file with panoptic of COCO \(the other kind is the format coco\)",
        ),
    ],
)
def test_malformed_segments_are_named(tmp_path: Path, text: str, png: bytes, message: str) -> None:
    source = write(tmp_path / "coco", {"p.json": text, "p/a.png": png, "a.jpg": picture_bytes()})
    with pytest.raises(InterchangeError, match=message):
        import_dataset("coco-panoptic", source, tmp_path / "data", ImportOptions())
