from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from interchange_site import HEIGHT, WIDTH, encoded, imported, picture_bytes, write
from PIL import Image

from model.datasets.palettes import distinct_colors
from model.labels import UInt8Array
from training.errors import InterchangeError
from training.interchange.foreign import ReadOptions
from training.interchange.importing import ImportOptions, import_dataset

CAT, DOG, VOID = 8, 12, 255


def voc_ids() -> UInt8Array:
    ids_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids_HW[10:20, 10:20] = VOID
    ids_HW[11:19, 11:19] = CAT
    ids_HW[30:] = DOG
    return ids_HW


def voc_mask() -> Image.Image:
    """Return a mask as VOC has it: a palette in which 255 is the colour of outlines."""
    mask = Image.fromarray(voc_ids())
    colors = [(0, 0, 0), *distinct_colors(255)]
    colors[VOID] = (224, 224, 192)
    mask.putpalette([value for color in colors for value in color])
    return mask


def voc_files(mask: Image.Image) -> dict[str, str | bytes]:
    names = "abc"
    files: dict[str, str | bytes] = {
        "VOC2012/ImageSets/Segmentation/train.txt": "a\n",
        "VOC2012/ImageSets/Segmentation/val.txt": "b\n",
        "VOC2012/ImageSets/Segmentation/trainval.txt": "a\nb\n",
        "VOC2012/JPEGImages/unlabelled.jpg": picture_bytes(9),
    }
    for seed, name in enumerate(names):
        files[f"VOC2012/JPEGImages/{name}.jpg"] = picture_bytes(seed)
        files[f"VOC2012/SegmentationClass/{name}.png"] = encoded(mask)
    return files


@pytest.mark.parametrize("kind", ["palette", "grey"])
def test_the_masks_of_voc_have_its_21_classes_and_outlines_that_do_not_count(
    tmp_path: Path, kind: str
) -> None:
    mask = voc_mask() if kind == "palette" else Image.fromarray(voc_ids())
    result = imported("voc", write(tmp_path / "voc", voc_files(mask)), tmp_path / "data")
    assert len(result.spec.palette.names) == 21
    assert result.spec.palette.names[CAT] == "cat"
    assert result.splits == {"train": ["a"], "val": ["b"]}
    assert (result.ids["a"] == voc_ids()).all()
    assert result.report.background is None
    assert result.report.left_out.counts == {
        "masks that no list in ImageSets names": 1,
        "pictures or masks that no annotation names": 2,
    }


def test_a_colour_of_no_class_is_named_with_the_way_out(tmp_path: Path) -> None:
    mask = np.array(voc_mask().convert("RGB"))
    mask[0, :3] = (3, 3, 3)
    mask[1, 0] = (7, 0, 0)
    source = write(tmp_path / "voc", voc_files(Image.fromarray(mask)))
    with pytest.raises(
        InterchangeError, match=r"a\.png: 4 pixels have colours of no class: \(3, 3, 3\), \(7, 0"
    ):
        import_dataset("voc", source, tmp_path / "data", ImportOptions())
    result = imported("voc", source, tmp_path / "data", ImportOptions(ReadOptions(color_tolerance=10)))
    assert (result.ids["a"] == voc_ids()).all()


def test_a_list_of_labels_without_colours_means_those_of_voc(tmp_path: Path) -> None:
    files = voc_files(voc_mask()) | {"VOC2012/labelmap.txt": "".join(f"class{k}:::\n" for k in range(21))}
    with pytest.raises(InterchangeError, match=r"\(224, 224, 192\)"):  # which has no void
        import_dataset("voc", write(tmp_path / "voc", files), tmp_path / "data", ImportOptions())
    plain = Image.fromarray(np.where(voc_ids() == VOID, 0, voc_ids()))
    plain.putpalette(voc_mask().getpalette() or [])
    result = imported(
        "voc", write(tmp_path / "plain", voc_files(plain) | files_of("VOC2012", 21)), tmp_path / "data"
    )
    assert result.spec.palette.names[DOG] == "class12"
    assert (result.ids["a"][30:] == DOG).all()


def files_of(folder: str, classes: int) -> dict[str, str | bytes]:
    return {f"{folder}/labelmap.txt": "".join(f"class{k}:::\n" for k in range(classes))}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"labelmap.txt": "a:1,2::\n"}, r"labelmap\.txt:1: not red,green,blue"),
        ({"labelmap.txt": "a:1,2,3::\nb:1,2,3::\n"}, "two classes share one colour"),
        (
            {"SegmentationClass/a.png": picture_bytes(kind="PNG", width=9)},
            "was drawn on 40x9 pixels, but JPEGImages/a.jpg has 40x60",
        ),
        (
            {"SegmentationClass/a.png": b"\x89PNG\r\n\x1a\n broken"},
            "SegmentationClass/a.png: not a readable mask",
        ),
        (
            {"SegmentationClass/a.png": encoded(Image.fromarray(np.full((HEIGHT, WIDTH), 99, np.uint8)))},
            r"values \[99",
        ),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    good = {"SegmentationClass/a.png": encoded(voc_mask()), "JPEGImages/a.jpg": picture_bytes()}
    source = write(tmp_path / "voc", good | files)
    with pytest.raises(InterchangeError, match=message):
        import_dataset("voc", source, tmp_path / "data", ImportOptions())


def test_a_folder_without_masks_says_what_was_looked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "voc", {"JPEGImages/a.jpg": picture_bytes()})
    with pytest.raises(InterchangeError, match="no folder SegmentationClass with PNG masks"):
        import_dataset("voc", source, tmp_path / "data", ImportOptions())
