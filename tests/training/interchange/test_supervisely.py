from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from interchange_site import HEIGHT, WIDTH, imported, picture_bytes, write

from training.errors import InterchangeError
from training.interchange.importing import ImportOptions, import_dataset

BITMAP = (
    "eJzrDPBz5+WS4mJgYOD19HAJAtKcQMzGyAwktTnV2kCcAJ8QVyD9////pTfn3wWyGEuC/IIZHJ7dSANypDxdHEMq5iQnJCRs"
    "SE/4dfDAESA6AAQMDHyLGN36b/W+B6pi8HT1c1nnlNAEAEhcI2s="
)
"""What ``supervisely.Bitmap.data_2_base64`` makes of 6x9 pixels: ones, a frame of zeros, a hole at (2, 4)."""

META = {
    "classes": [
        {"title": "road", "shape": "polygon", "color": "#804080"},
        {"title": "car", "shape": "bitmap"},
    ]
}


def drawn(kind: str, title: str, **geometry: Any) -> dict[str, Any]:
    return {"id": 1, "classTitle": title, "geometryType": kind, "tags": [], **geometry}


ROAD = drawn(
    "polygon",
    "road",
    points={
        "exterior": [[0, 20], [59, 20], [59, 39], [0, 39]],
        "interior": [[[10, 25], [20, 25], [20, 30], [10, 30]]],
    },
)
CAR = drawn("bitmap", "car", bitmap={"data": BITMAP, "origin": [30, 10]})


def annotation(*objects: dict[str, Any], tags: tuple[str, ...] = (), **keys: Any) -> str:
    size = {"height": HEIGHT, "width": WIDTH}
    return json.dumps({"size": size, "tags": [{"name": tag} for tag in tags], "objects": objects} | keys)


def project(folder: Path, files: dict[str, str | bytes]) -> Path:
    return write(folder / "project", {"meta.json": json.dumps(META)} | files)


def test_polygons_with_holes_bitmaps_and_rectangles_are_drawn_later_ones_above(tmp_path: Path) -> None:
    box = drawn("rectangle", "road", points={"exterior": [[1, 1], [3, 4]], "interior": []})
    line = drawn("line", "road", points={"exterior": [[1, 1], [3, 4]], "interior": []})
    source = project(
        tmp_path, {"ds/ann/a.jpg.json": annotation(ROAD, CAR, box, line), "ds/img/a.jpg": picture_bytes()}
    )
    found = imported("supervisely", source, tmp_path / "data")
    assert found.spec.palette.names == ("background", "road", "car")
    assert found.spec.palette.colors[1] == (128, 64, 128)
    ids_HW = found.ids["a"]
    assert ids_HW[20, 0] == ids_HW[39, 59] == 1
    assert ids_HW[27, 15] == 0
    assert (ids_HW[1:5, 1:4] == 1).all()
    assert ids_HW[10:16, 30:39].tolist() == [
        [0] * 9,
        [0, 0, 2, 2, 2, 2, 2, 2, 0],
        [0, 0, 2, 2, 0, 2, 2, 2, 0],
        [0, 0, 2, 2, 2, 2, 2, 2, 0],
        [0, 0, 2, 2, 2, 2, 2, 2, 0],
        [0] * 9,
    ]
    assert found.report.left_out.counts == {"objects of kind line, which have no area": 1}


def test_splits_are_data_sets_or_tags(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {}
    for seed, (folder, name, tags) in enumerate(
        [("ds", "a", ("train",)), ("ds", "b", ("val",)), ("test", "c", ())]
    ):
        files[f"{folder}/ann/{name}.jpg.json"] = annotation(ROAD, tags=tags)
        files[f"{folder}/img/{name}.jpg"] = picture_bytes(seed)
    found = imported("supervisely", project(tmp_path, files), tmp_path / "data")
    assert found.splits == {"train": ["a"], "val": ["b"], "test": ["c"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            annotation(drawn("bitmap", "car", bitmap={"data": "!", "origin": [0, 0]})),
            r"object 1 \(car\): not base64",
        ),
        (
            annotation(drawn("bitmap", "car", bitmap={"data": "AAAA", "origin": [0, 0]})),
            "not a readable mask",
        ),
        (
            annotation(drawn("bitmap", "car", bitmap={"data": BITMAP, "origin": [55, 0]})),
            "does not lie within 40x60",
        ),
        (annotation(drawn("polygon", "car", points={"exterior": [[1, 1]]})), r"object 1 \(car\): 1 points"),
        (annotation(ROAD | {"classTitle": "tram"}), "'tram' is none of the classes"),
        (annotation(ROAD, size={"height": 1, "width": 1}), "was drawn on 1x1 pixels"),
        (annotation(ROAD, size={"height": 0, "width": 1}), "an image has at least"),
        ("{}", r"a\.jpg\.json: size: Field required \(and 1 more\)"),
    ],
)
def test_a_malformed_object_is_named(tmp_path: Path, text: str, message: str) -> None:
    source = project(tmp_path, {"ds/ann/a.jpg.json": text, "ds/img/a.jpg": picture_bytes()})
    with pytest.raises(InterchangeError, match=message):
        import_dataset("supervisely", source, tmp_path / "data", ImportOptions())


def test_pictures_that_are_missing_or_empty_are_said(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "ds/ann/a.jpg.json": annotation(ROAD),
        "ds/img/a.jpg": picture_bytes(),
        "ds/ann/b.jpg.json": annotation(),
        "ds/img/b.jpg": picture_bytes(),
        "ds/ann/c.jpg.json": annotation(ROAD),
    }
    report = imported("supervisely", project(tmp_path, files), tmp_path / "data").report
    assert report.left_out.counts == {"pictures without an object": 1, "pictures that are missing": 1}


def test_a_folder_that_is_no_project_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "project", {"meta.json": json.dumps(META)})
    with pytest.raises(InterchangeError, match="no project of Supervisely"):
        import_dataset("supervisely", source, tmp_path / "data", ImportOptions())
