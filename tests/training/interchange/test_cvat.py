from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from interchange_site import HEIGHT, WIDTH, encoded, imported, left_in, picture_bytes, write
from PIL import Image

from training.errors import InterchangeError
from training.interchange.foreign import ReadOptions
from training.interchange.importing import ImportOptions, import_dataset

HEAD = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><job><labels>
    <label><name>road</name><color>#804080</color><type>any</type></label>
    <label><name>car</name><color>#0000ff</color><type>any</type></label>
    <label><name>person</name><color>#ff0000</color><type>points</type></label>
  </labels></job></meta>
"""
IMAGE = f'  <image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">\n{{}}  </image>\n</annotations>\n'
POLYGON = (
    '<polygon label="{}" source="manual" occluded="0" points="{}" z_order="{}">'
    '<attribute name="x">1</attribute></polygon>\n'
)
ROAD = POLYGON.format("road", "0.00,20.00;60.00,20.00;60.00,40.00;0.00,40.00", 0)
CAR = POLYGON.format("car", "10.00,15.00;30.00,15.00;30.00,35.00;10.00,35.00", 1)


def export(folder: Path, *shapes: str) -> Path:
    """Write one picture with shapes as 'CVAT for images 1.1'."""
    text = HEAD + IMAGE.format("".join(shapes))
    return write(folder / "export", {"annotations.xml": text, "images/a.jpg": picture_bytes()})


def test_polygons_lie_in_the_order_of_their_z_order_not_of_the_file(tmp_path: Path) -> None:
    result = imported("cvat", export(tmp_path, CAR, ROAD), tmp_path / "data")
    assert result.spec.palette.names == ("background", "road", "car")
    assert result.spec.palette.colors == ((0, 0, 0), (128, 64, 128), (0, 0, 255))
    ids_HW = result.ids["a"]
    assert ids_HW.shape == (HEIGHT, WIDTH)
    assert ids_HW[5, 5] == 0
    assert ids_HW[30, 50] == 1
    assert ids_HW[15:35, 10:30].tolist() == [[2] * 20] * 20
    assert (ids_HW == 2).sum() == 400


def test_masks_boxes_and_ellipses_are_drawn(tmp_path: Path) -> None:
    shapes = [
        '<mask label="car" rle="1, 2, 2, 4" left="3" top="4" width="3" height="3" z_order="0"></mask>',
        '<box label="car" xtl="20" ytl="10" xbr="30" ybr="20" z_order="0"></box>',
        '<box label="road" xtl="40" ytl="10" xbr="50" ybr="20" rotation="45" z_order="0"></box>',
        '<ellipse label="road" cx="15" cy="30" rx="10" ry="5" z_order="0"></ellipse>',
    ]
    ids_HW = imported("cvat", export(tmp_path, *shapes), tmp_path / "data").ids["a"]
    assert ids_HW[4:7, 3:6].tolist() == [[0, 2, 2], [0, 0, 2], [2, 2, 2]]
    assert (ids_HW[10:20, 20:30] == 2).all()
    assert ids_HW[10, 40] == 0  # the corner of a turned box
    assert ids_HW[15, 51] == 1  # which reaches 2 pixels farther
    assert (ids_HW[25:35, 5:25] == 1).sum() == pytest.approx(np.pi * 50, rel=0.05)


def test_shapes_without_area_are_left_out_and_said(tmp_path: Path) -> None:
    shapes = [
        ROAD,
        '<polyline label="road" points="1,1;2,2" z_order="0"></polyline>',
        '<points label="person" points="1,1" z_order="0"></points>',
        '<points label="person" points="2,2" z_order="0"></points>',
        '<tag label="road"></tag>',
    ]
    report = imported("cvat", export(tmp_path, *shapes), tmp_path / "data").report
    assert report.left_out.counts == {
        "shapes of kind polyline": 1,
        "shapes of kind points": 2,
        "shapes of kind tag": 1,
    }
    assert (
        "shapes of kind points: 2 (first: annotations.xml, image 'a.jpg', shape 3)" in report.left_out.lines()
    )


def test_pictures_that_are_missing_or_without_a_shape_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    empty = f'<image id="1" name="{{}}.jpg" width="{WIDTH}" height="{HEIGHT}"></image>'
    text = HEAD + empty.format("b") + empty.format("c") + IMAGE.format(ROAD)
    pictures = {"images/a.jpg": picture_bytes(0), "images/b.jpg": picture_bytes(1)}
    source = write(tmp_path / "export", {"annotations.xml": text, **pictures})
    result = imported("cvat", source, tmp_path / "data")
    assert list(result.ids) == ["a"]
    assert result.report.left_out.counts == {
        "pictures without a shape": 1,
        "pictures that are missing": 1,
    }
    options = ImportOptions(ReadOptions(keep_empty=True))
    assert set(imported("cvat", source, tmp_path / "all", options).ids["b"].reshape(-1).tolist()) == {0}


def test_the_subsets_of_a_project_are_its_splits(tmp_path: Path) -> None:
    image = f'<image id="{{0}}" name="{{1}}" subset="{{2}}" width="{WIDTH}" height="{HEIGHT}">{ROAD}</image>'
    images = [("0", "a.jpg", "Train"), ("1", "a.jpg", "Validation"), ("2", "b.jpg", "test")]
    text = HEAD + "".join(image.format(*one) for one in images) + "</annotations>"
    files = {f"images/{subset}/{name}": picture_bytes(int(number)) for number, name, subset in images}
    result = imported(
        "cvat", write(tmp_path / "export", {"annotations.xml": text, **files}), tmp_path / "data"
    )
    assert result.splits == {"train": ["a"], "val": ["a"], "test": ["b"]}
    assert not result.report.divided


def test_a_zip_file_without_pictures_takes_them_from_another_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "task.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", HEAD + IMAGE.format(ROAD))
    photos = write(tmp_path / "photos", {"deep/a.jpg": picture_bytes()})
    with pytest.raises(InterchangeError, match="no picture is left: pictures that are missing: 1"):
        import_dataset("cvat", tmp_path / "task.zip", tmp_path / "data", ImportOptions())
    result = imported("cvat", tmp_path / "task.zip", tmp_path / "data", ImportOptions(images=photos))
    assert (result.ids["a"][20:] == 1).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<polygon label="road" points="1,1;2" z_order="0"/>', "shape 1: points are pairs of x and y"),
        ('<polygon label="road" points="1,1;2,2" z_order="0"/>', "shape 1: 2 points"),
        ('<polygon label="road" points="1,1;2,2;nan,3" z_order="0"/>', "shape 1: a point is not finite"),
        ('<polygon label="road" points="1,1;2,2;a,3" z_order="0"/>', "shape 1: could not convert"),
        ('<polygon points="1,1;2,2;3,3" z_order="0"/>', "shape 1: the attribute label is missing"),
        ('<polygon label="tram" points="1,1;2,9;9,9"/>', "shape 1: 'tram' is none of the classes"),
        (
            '<mask label="road" rle="1,2" left="0" top="0" width="2" height="2"/>',
            "shape 1: run lengths do not",
        ),
        ('<mask label="road" rle="0,4" left="59" top="0" width="2" height="2"/>', "shape 1: a mask of 2x2"),
        (
            '<mask label="road" rle="0,4" left="0" top="0" width="0" height="2"/>',
            "shape 1: an image has at least",
        ),
    ],
)
def test_a_malformed_shape_is_named_and_nothing_remains(tmp_path: Path, shape: str, message: str) -> None:
    source = export(tmp_path, shape)
    with pytest.raises(InterchangeError, match=message) as caught:
        import_dataset("cvat", source, tmp_path / "data", ImportOptions())
    assert "annotations.xml, image 'a.jpg'" in str(caught.value)
    assert left_in(tmp_path) == ["export"]


BOMB = """<?xml version="1.0"?>
<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>
<annotations>&c;</annotations>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "not a readable XML file: DTDForbidden"),
        ("<annotations><image", "not a readable XML file"),
        ("<annotations><track id='0' label='car'/></annotations>", "holds tracks of a film"),
        ("<html/>", "there is no annotations.xml and no labelmap.txt"),
        (f'{HEAD}<image name="a.jpg">{ROAD}</image></annotations>', "width or height is missing"),
    ],
)
def test_an_xml_file_that_is_no_export_of_images_is_refused(tmp_path: Path, text: str, message: str) -> None:
    source = write(tmp_path / "export", {"annotations.xml": text, "a.jpg": picture_bytes()})
    with pytest.raises(InterchangeError, match=message):
        import_dataset("cvat", source, tmp_path / "data", ImportOptions())


LABEL_MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\nhill, green:0,128,0::\n"


def color_mask() -> Image.Image:
    """Return background above, road below, and a hill."""
    mask_HW3 = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask_HW3[20:] = (128, 64, 128)
    mask_HW3[10:20, 40:] = (0, 128, 0)
    return Image.fromarray(mask_HW3)


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_a_segmentation_mask_export_is_read_by_its_colours(tmp_path: Path, mode: str) -> None:
    mask = color_mask().quantize(3) if mode == "P" else color_mask().convert(mode)
    files = {
        "labelmap.txt": LABEL_MAP,
        "SegmentationClass/sub/a.png": encoded(mask),
        "SegmentationObject/sub/a.png": encoded(mask),
        "ImageSets/Segmentation/default.txt": "sub/a\n",
        "JPEGImages/sub/a.jpg": picture_bytes(),
    }
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    result = imported("cvat", tmp_path / "task.zip", tmp_path / "data")
    assert result.spec.palette.names == ("background", "road", "hill green")
    assert result.spec.palette.colors == ((0, 0, 0), (128, 64, 128), (0, 128, 0))
    assert (result.ids["a"][20:] == 1).all()
    assert (result.ids["a"][10:20, 40:] == 2).all()
    assert (result.ids["a"][:10] == 0).all()
    assert result.report.left_out.counts == {
        "pictures or masks that no annotation names": 1
    }  # SegmentationObject
