from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interchange_site import HEIGHT, WIDTH, encoded, imported, picture_bytes, write
from PIL import Image

from training.errors import InterchangeError
from training.interchange.importing import ImportOptions, import_dataset
from training.interchange.label_studio import unpack_strokes

STROKES = base64.b64decode(
    "AAADwDkb/qsAxX/4jAMV/+IwDFf/iMAn/7YBhf/xGAYr/8RgGK//EYBiv/zOARwUYBHBRgEcFGARwUYBHBRgEcFGARwUYBHBRgEcFGARwUYB"
    "G8TgEbxOARvE4BG8TgEbxOARvE4BG8RgAA=="
)
"""What ``label_studio_sdk.converter.brush.mask2rle`` makes of ``stroke_mask``."""


def stroke_mask() -> np.ndarray[Any, np.dtype[np.uint8]]:
    mask = np.zeros((12, 20), np.uint8)
    mask[2:9, 3:14] = 255
    mask[5, 5:8] = 0
    mask[10, ::2] = 130  # soft, inside
    mask[11, ::3] = 120  # soft, outside
    return mask


def result(
    kind: str, label: str | list[str], *, of: tuple[int, int] = (HEIGHT, WIDTH), **value: Any
) -> dict[str, Any]:
    labels = [label] if isinstance(label, str) else label
    return {
        "id": "x",
        "type": kind,
        "value": {kind: labels, **value},
        "from_name": "tag",
        "to_name": "image",
        "original_width": of[1],
        "original_height": of[0],
        "image_rotation": 0,
    }


def task(
    number: int, *results: dict[str, Any], image: str = "/data/upload/1/0a1b2c3d-a.jpg", **keys: Any
) -> dict[str, Any]:
    return {
        "id": number,
        "data": {"image": image},
        "annotations": [{"id": 1, "result": list(results)}],
    } | keys


ROAD = result("polygonlabels", "road", points=[[0, 50], [100, 50], [100, 100], [0, 100]])


def test_shapes_in_percent_are_drawn_later_ones_above(tmp_path: Path) -> None:
    car = result("rectanglelabels", "car", x=50, y=25, width=25, height=50, rotation=0)
    turned = result("rectanglelabels", "car", x=20, y=10, width=10, height=10, rotation=90)
    disc = result("ellipselabels", "sign", x=10, y=75, radiusX=5, radiusY=7.5, rotation=0)
    export = json.dumps([task(7, ROAD, car, turned, disc)])
    source = write(tmp_path / "export", {"project.json": export, "images/a.jpg": picture_bytes()})
    found = imported("label-studio", source, tmp_path / "data")
    ids_HW = found.ids["a"]
    assert found.spec.palette.names == ("background", "car", "road", "sign")
    assert (ids_HW[10:30, 30:45] == 1).all()
    assert (ids_HW[4:10, 8:12] == 1).all()  # 6 wide, 4 high, turned clockwise around its corner at column 12
    assert (ids_HW[30:, 40:] == 2).all()
    assert ids_HW[30, 6] == 3
    assert (ids_HW == 3).sum() == pytest.approx(np.pi * 9, abs=5)


def test_brush_strokes_in_the_json_file_are_unpacked(tmp_path: Path) -> None:
    strokes = result("brushlabels", "hill", of=(12, 20), format="rle", rle=list(STROKES))
    source = write(
        tmp_path / "export",
        {"project.json": json.dumps([task(7, strokes)]), "a.jpg": picture_bytes(height=12, width=20)},
    )
    ids_HW = imported("label-studio", source, tmp_path / "data").ids["a"]
    assert ((ids_HW == 1) == (stroke_mask() >= 128)).all()


def test_png_files_are_read_with_the_json_file_that_names_their_pictures(tmp_path: Path) -> None:
    row = np.zeros((HEIGHT, WIDTH), np.uint8)
    row[10:20] = 255
    column = np.zeros((HEIGHT, WIDTH), np.uint8)
    column[:, 5:9] = 200
    files: dict[str, str | bytes] = {
        "project.json": json.dumps([task(7, image="https://host/x/0a1b2c3d-my%20street.jpg?token=1")]),
        "my street.jpg": picture_bytes(),
        "task-7-annotation-1-by-me@x.org-tag-low wall-0.png": encoded(Image.fromarray(row)),
        "task-7-annotation-1-by-me@x.org-tag-tree-0.png": encoded(Image.fromarray(column)),
    }
    found = imported("label-studio", write(tmp_path / "export", files), tmp_path / "data")
    assert found.spec.palette.names == ("background", "low wall", "tree")
    ids_HW = found.ids["my_street"]
    assert (ids_HW[10:20, 20:] == 1).all()
    assert (ids_HW[:, 5:9] == 2).all()


def test_png_files_alone_need_pictures_that_are_called_like_the_task(tmp_path: Path) -> None:
    mask = encoded(Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)))
    names = ["task-7-annotation-2-by-1-tag-a-b-0.png", "task-7-annotation-1-by-1-tag-old-0.png"]
    files: dict[str, str | bytes] = dict.fromkeys(names, mask) | {"images/7.jpg": picture_bytes()}
    found = imported("label-studio", write(tmp_path / "export", files), tmp_path / "data")
    assert found.spec.palette.names == ("background", "a-b")
    assert (found.ids["7"] == 1).all()
    assert found.report.left_out.counts == {"pictures or masks that no annotation names": 1}
    lost = write(tmp_path / "lost", {names[0]: mask, "photo.jpg": picture_bytes()})
    with pytest.raises(InterchangeError, match="tasks whose picture is missing: 1"):
        import_dataset("label-studio", lost, tmp_path / "none", ImportOptions())


def test_the_newest_annotation_counts_and_everything_else_is_said(tmp_path: Path) -> None:
    old = result("polygonlabels", "sky", points=[[0, 0], [100, 0], [100, 100]])
    annotations = [
        {"id": 9, "result": [ROAD | {"value": ROAD["value"] | {"polygonlabels": ["road", "wet"]}}]},
        {"id": 3, "result": [old]},
        {"id": 10, "result": [old], "was_cancelled": True},
    ]
    keypoint = result("keypointlabels", "eye", x=1, y=1, width=1)
    annotations[0]["result"].append(keypoint)  # type: ignore[attr-defined]
    export = [task(7, annotations=annotations), task(8, image="b.jpg"), task(9, ROAD, image="gone.jpg")]
    files = {
        "p.json": json.dumps(export),
        "a.jpg": picture_bytes(0),
        "b.jpg": picture_bytes(1),
        "o.json": "{}",
    }
    report = imported("label-studio", write(tmp_path / "export", files), tmp_path / "data").report
    assert list(report.pixels) == ["background", "road"]
    assert report.left_out.counts == {
        "annotations that are older or were cancelled": 2,
        "further labels of a shape, of which the first counts": 1,
        "results of kind keypointlabels, which have no area or no label": 1,
        "pictures without a shape": 1,
        "tasks whose picture is missing": 1,
        "JSON files that are no list of tasks": 1,
    }


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([result("brushlabels", "a", rle=list(STROKES))], "task 7, result 1: brush strokes of 960 values"),
        (
            [result("brushlabels", "a", of=(12, 20), rle=list(STROKES[:50]))],
            "result 1: the brush strokes end within",
        ),
        ([result("brushlabels", "a", of=(12, 20), rle=[300])], "result 1: bytes must be in range"),
        ([result("polygonlabels", "a", points=[[1, 2]])], "result 1: 1 points"),
        ([ROAD | {"image_rotation": 90}], "was turned in Label Studio"),
        ([ROAD, ROAD | {"original_width": 99}], "pictures of different sizes"),
        ([ROAD | {"original_width": 61}], "was drawn on 40x61 pixels, but a.jpg has 40x60"),
        ([ROAD | {"value": {"points": "a"}}], "p.json: 0.annotations.0.result.0.value.points"),
    ],
)
def test_a_malformed_result_is_named(tmp_path: Path, results: list[dict[str, Any]], message: str) -> None:
    size = {"height": 12, "width": 20} if results[0]["original_height"] == 12 else {}
    files = {"p.json": json.dumps([task(7, *results)]), "a.jpg": picture_bytes(**size)}
    with pytest.raises(InterchangeError, match=message):
        import_dataset("label-studio", write(tmp_path / "export", files), tmp_path / "data", ImportOptions())


@given(st.binary(max_size=200))
def test_no_bytes_make_strokes_of_another_size(tail: bytes) -> None:
    head = STROKES[:7]  # 960 values of 8 bits, and the four widths
    try:
        values = unpack_strokes(head + tail, 960)
    except ValueError:
        return
    assert values.shape == (960,)


def test_a_folder_without_an_export_says_what_was_looked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "export", {"a.jpg": picture_bytes()})
    with pytest.raises(InterchangeError, match="no JSON export of Label Studio and no task-"):
        import_dataset("label-studio", source, tmp_path / "data", ImportOptions())
