from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interchange_site import HEIGHT, WIDTH, encoded, imported, left_in, picture_bytes, write
from PIL import Image, ImageDraw

from training.errors import InterchangeError
from training.interchange.foreign import ReadOptions
from training.interchange.importing import ImportOptions, import_dataset

ROAD: dict[str, Any] = {"label": "road", "points": [[0.0, 20.0], [59.0, 20.0], [59.0, 39.0], [0.0, 39.0]]}
CAR: dict[str, Any] = {"label": "car", "points": [[10.5, 15.5], [30.2, 18.0], [25.0, 35.0]]}
POINT: dict[str, Any] = {"label": "person", "points": [[5.0, 5.0]], "shape_type": "point"}


def labelme(*shapes: dict[str, Any], path: str = "a.jpg", **keys: Any) -> str:
    """Return a file as labelme writes it."""
    common = {"group_id": None, "description": "", "shape_type": "polygon", "flags": {}, "mask": None}
    record = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [common | shape for shape in shapes],
        "imagePath": path,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    return json.dumps(record | keys)


def one(tmp_path: Path, *shapes: dict[str, Any], **keys: Any) -> Path:
    return write(tmp_path / "labels", {"a.json": labelme(*shapes, **keys), "a.jpg": picture_bytes()})


def test_shapes_are_drawn_as_labelme_draws_them_later_ones_above(tmp_path: Path) -> None:
    result = imported("labelme", one(tmp_path, ROAD, CAR), tmp_path / "data")
    assert result.spec.palette.names == ("background", "car", "road")
    expected = Image.new("L", (WIDTH, HEIGHT))
    for shape, class_id in ((ROAD, 2), (CAR, 1)):
        ImageDraw.Draw(expected).polygon([tuple(point) for point in shape["points"]], class_id, class_id)
    assert (result.ids["a"] == np.asarray(expected)).all()


def test_a_class_list_says_the_order_and_the_colours(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("road,1,2,3\ncar,4,5,6\n")
    from model.datasets.palettes import read_palette  # noqa: PLC0415

    options = ImportOptions(ReadOptions(read_palette(tmp_path / "classes.txt")), background="ignore")
    result = imported("labelme", one(tmp_path, ROAD, CAR), tmp_path / "data", options)
    assert result.spec.palette.names == ("road", "car")
    assert result.spec.palette.colors == ((1, 2, 3), (4, 5, 6))
    assert set(result.ids["a"].reshape(-1).tolist()) == {0, 1, 255}
    assert result.report.ignored_pixels == int((result.ids["a"] == 255).sum())


def test_a_label_that_the_class_list_lacks_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("road\n")
    from model.datasets.palettes import read_palette  # noqa: PLC0415

    read = ReadOptions(read_palette(tmp_path / "classes.txt"))
    source = one(tmp_path, ROAD, CAR)
    with pytest.raises(InterchangeError, match=r"a\.json, shape 2 \(car\): 'car' is none .* --ignore 'car'"):
        import_dataset("labelme", source, tmp_path / "data", ImportOptions(read))
    result = imported("labelme", source, tmp_path / "data", ImportOptions(read, ignore=["car"]))
    assert set(result.ids["a"].reshape(-1).tolist()) == {0, 1, 255}


def test_ignored_shapes_and_a_background_of_the_file_are_understood(tmp_path: Path) -> None:
    shapes = [CAR | {"label": "_background_"}, ROAD, CAR | {"label": "__ignore__"}]
    result = imported("labelme", one(tmp_path, *shapes), tmp_path / "data")
    assert result.spec.palette.names == ("_background_", "road")
    assert result.report.background == "_background_"
    assert result.ids["a"][0, 0] == 0
    assert (result.ids["a"] == 255).any()


def test_masks_rectangles_and_circles_are_drawn(tmp_path: Path) -> None:
    mask = encoded(Image.fromarray(np.array([[True, False], [True, True]])))
    shapes = [
        {
            "label": "b",
            "shape_type": "mask",
            "points": [[3, 4], [4, 5]],
            "mask": base64.b64encode(mask).decode(),
        },
        {"label": "b", "shape_type": "rectangle", "points": [[20, 20], [11, 11]]},
        {"label": "b", "shape_type": "circle", "points": [[40, 20], [40, 25]]},
    ]
    ids_HW = imported("labelme", one(tmp_path, *shapes), tmp_path / "data").ids["a"]
    assert ids_HW[4:6, 3:5].tolist() == [[1, 0], [1, 1]]
    assert ids_HW[11:21, 11:21].all()
    assert ids_HW[20, 35:46].all()
    assert not ids_HW[15, 35]


def test_the_path_may_be_of_windows_and_the_picture_may_stand_elsewhere(tmp_path: Path) -> None:
    files = {
        "train/json/a.json": labelme(ROAD, path="..\\images\\a.jpg"),
        "train/images/a.jpg": picture_bytes(0),
    }
    files |= {"val/b.json": labelme(ROAD, path="C:\\work\\b.jpg"), "val/pictures/b.jpg": picture_bytes(1)}
    result = imported("labelme", write(tmp_path / "labels", files), tmp_path / "data")
    assert result.splits == {"train": ["a"], "val": ["b"]}
    assert left_in(tmp_path / "data" / "images") == ["train", "val"]


def test_a_picture_within_the_file_is_taken_where_there_is_no_other(tmp_path: Path) -> None:
    data = base64.b64encode(picture_bytes(kind="PNG")).decode()
    source = write(tmp_path / "labels", {"a.json": labelme(ROAD, path="gone.jpg", imageData=data)})
    imported("labelme", source, tmp_path / "data")
    assert (tmp_path / "data/images/a.png").read_bytes() == picture_bytes(kind="PNG")


def test_what_is_not_taken_is_said(tmp_path: Path) -> None:
    files = {
        "a.json": labelme(ROAD, POINT),
        "a.jpg": picture_bytes(),
        "b.json": labelme(path="b.jpg"),
        "b.jpg": picture_bytes(),
        "c.json": labelme(ROAD, path="c.jpg"),
        "d.jpg": picture_bytes(),
        "settings.json": "{}",
        "notes.txt": "",
    }
    report = imported("labelme", write(tmp_path / "labels", files), tmp_path / "data").report
    assert report.left_out.counts == {
        "shapes of kind point, which have no area": 1,
        "pictures without a shape": 1,
        "pictures that are missing": 1,
        "JSON files of another program": 1,
        "pictures or masks that no annotation names": 1,
        "other files": 1,
    }
    assert (
        "pictures that are missing: 1 (first: c.json: 'c.jpg')" in (tmp_path / "data/import.txt").read_text()
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"shapes": [{"label": "a", "points": [[1, 2', "a.json: Invalid JSON"),
        ('{"shapes": [{"points": [[1, 2]]}]}', r"a.json: shapes.0.label: Field required"),
        ('{"shapes": [{"label": "a", "points": [[1, NaN], [2, 3], [4, 5]]}]}', "a.json"),
        ('{"shapes": [{"label": "a", "points": [[1, 1e999], [2, 3], [4, 5]]}]}', "a.json"),
        ("[" * 100_000 + '"shapes"', "a.json: Invalid JSON"),
        (labelme({"label": "a", "points": [[1, 2]]}), r"a\.json, shape 1 \(a\): 1 points"),
        (
            labelme({"label": "a", "points": [[1, 2], [3, 9e9], [5, 5]]}),
            r"shape 1 \(a\): a point is not finite, or",
        ),
        (labelme({"label": "a", "points": [[1, 2]], "shape_type": "mask"}), "needs a mask"),
        (labelme({"label": "a", "points": [[1, 2]], "shape_type": "mask", "mask": "%%%"}), "not base64"),
        (
            labelme({"label": "a", "points": [[1, 2]], "shape_type": "mask", "mask": "AAAA"}),
            "not a readable mask",
        ),
        (labelme(ROAD, imageHeight=41), "was drawn on 41x60 pixels, but a.jpg has 40x60"),
        (labelme(ROAD, imageHeight=0), "a.json: an image has at least"),
        (
            labelme(*({"label": str(k), "points": [[1, 2], [3, 4], [5, 9]]} for k in range(256))),
            r"1\.\.255 classes",
        ),
    ],
)
def test_a_malformed_file_is_named_and_nothing_remains(tmp_path: Path, text: str, message: str) -> None:
    source = write(tmp_path / "labels", {"a.json": text, "a.jpg": picture_bytes()})
    with pytest.raises(InterchangeError, match=message):
        import_dataset("labelme", source, tmp_path / "data", ImportOptions())
    assert left_in(tmp_path) == ["labels"]


def test_a_path_out_of_the_source_leads_to_nothing(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"secret.jpg": picture_bytes()})
    for path in (str(outside / "secret.jpg"), "../outside/secret.jpg"):
        source = write(tmp_path / "labels", {"a.json": labelme(ROAD, path=path)})
        with pytest.raises(InterchangeError, match="no picture is left: pictures that are missing: 1"):
            import_dataset("labelme", source, tmp_path / "data", ImportOptions())
    (tmp_path / "labels/a.jpg").symlink_to(outside / "secret.jpg")
    write(tmp_path / "labels", {"a.json": labelme(ROAD)})
    with pytest.raises(InterchangeError, match="does not lie in the folder"):
        import_dataset("labelme", tmp_path / "labels", tmp_path / "data", ImportOptions())


def test_a_folder_without_labels_says_what_was_looked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "labels", {"a.jpg": picture_bytes()})
    with pytest.raises(InterchangeError, match="no JSON file of labelme"):
        import_dataset("labelme", source, tmp_path / "data", ImportOptions())
