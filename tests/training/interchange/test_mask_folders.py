from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from interchange_site import HEIGHT, WIDTH, encoded, imported, picture_bytes, write
from PIL import Image

from model.datasets.palettes import read_palette
from training.errors import InterchangeError
from training.interchange.foreign import ReadOptions
from training.interchange.importing import ImportOptions, import_dataset

TABLE = "name,r,g,b\nSky,128,128,128\nRoad,128,64,128\nVoid,0,0,0\n"
CLASSES = "sky,128,128,128\nroad,128,64,128\nvoid,0,0,0\n"


def mask(kind: str = "PNG") -> bytes:
    """Return sky above, road below, void to the left."""
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    pixels[20:] = (128, 64, 128)
    pixels[:, :10] = 0
    return encoded(Image.fromarray(pixels), kind)


def expected() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    ids_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids_HW[20:] = 1
    ids_HW[:, :10] = 255
    return ids_HW


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (("images/train/a.jpg", "masks/train/a.png"), ("images/val/a.jpg", "masks/val/a.png")),
        (("train/a.png", "train_labels/a_L.png"), ("val/a.png", "val_labels/a_L.png")),
        (("train/a.png", "trainannot/a.png"), ("val/a.png", "valannot/a.png")),
        (("train/img/a.jpg", "train/gt/a_mask.bmp"), ("valid/img/a.jpg", "valid/gt/a_mask.bmp")),
        (
            ("x/labelled/Train/a.jpg", "x/labelled/Train Masks/a.png"),
            ("x/labelled/Val/a.jpg", "x/labelled/Val Masks/a.png"),
        ),
    ],
)
def test_pictures_and_masks_find_each_other(
    tmp_path: Path, train: tuple[str, str], val: tuple[str, str]
) -> None:
    files: dict[str, str | bytes] = {"classes.txt": CLASSES}
    for seed, (picture, label) in enumerate((train, val)):
        files[picture] = picture_bytes(seed, kind="PNG" if picture.endswith("png") else "JPEG")
        files[label] = mask("BMP" if label.endswith("bmp") else "PNG")
    options = ImportOptions(ignore=["void"])
    found = imported("masks", write(tmp_path / "source", files), tmp_path / "data", options)
    assert found.splits == {"train": ["a"], "val": ["a"]}
    assert found.spec.palette.names == ("sky", "road")
    assert (found.ids["a"] == expected()).all()


def test_folders_of_the_same_names_keep_their_pictures_apart(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "classes.txt": CLASSES,
        "images/rome/1.jpg": picture_bytes(0),
        "masks/rome/1.png": mask(),
    }
    files |= {"images/oslo/1.jpg": picture_bytes(1), "masks/oslo/1.png": mask(), "masks/2.png": mask()}
    report = imported("masks", write(tmp_path / "source", files), tmp_path / "data").report
    assert report.splits == {"train": 1, "val": 1}
    assert report.divided
    assert report.left_out.counts == {"masks without a picture of their name, or with several": 1}


def test_the_table_of_the_source_is_found_and_that_of_the_user_goes_before_it(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "class_dict.csv": TABLE,
        "images/a.jpg": picture_bytes(),
        "masks/a.png": mask(),
    }
    source = write(tmp_path / "source", files)
    assert imported("masks", source, tmp_path / "data").spec.palette.names == ("Sky", "Road", "Void")
    (tmp_path / "mine.txt").write_text("road,128,64,128\nrest,0,0,0\nabove,128,128,128\n")
    options = ImportOptions(ReadOptions(read_palette(tmp_path / "mine.txt")))
    found = imported("masks", source, tmp_path / "mine", options)
    assert found.spec.palette.names == ("road", "rest", "above")
    assert found.ids["a"][0, 0] == 1


def test_jpeg_masks_need_a_tolerance(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "classes.txt": CLASSES,
        "images/a.jpg": picture_bytes(),
        "masks/a.jpg": mask("JPEG"),
    }
    source = write(tmp_path / "source", files)
    with pytest.raises(
        InterchangeError, match=r"masks/a\.jpg: \d+ pixels have colours of no class: .* and \d+ more"
    ):
        import_dataset("masks", source, tmp_path / "data", ImportOptions())
    options = ImportOptions(ReadOptions(color_tolerance=127), ignore=["void"])
    assert (imported("masks", source, tmp_path / "data", options).ids["a"] == expected()).mean() > 0.97


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"images/a.jpg": picture_bytes(), "masks/a.png": mask()}, "which class has which colour"),
        (
            {"classes.txt": "a\nb,1,2,3\n", "images/a.jpg": picture_bytes(), "masks/a.png": mask()},
            "a colour of its own",
        ),
        (
            {"classes.txt": CLASSES, "all/a.jpg": picture_bytes(), "all/a.png": mask()},
            "must lie in different folders",
        ),
        (
            {"classes.txt": CLASSES, "images/a.jpg": picture_bytes(), "masks/a.png": mask()[:99]},
            "not a readable mask",
        ),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    with pytest.raises(InterchangeError, match=message):
        import_dataset("masks", write(tmp_path / "source", files), tmp_path / "data", ImportOptions())
