from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.datasets.dataset import DatasetSpec, FolderPair, LabeledImages
from model.datasets.palettes import PresetName, load_preset
from model.errors import DatasetError
from model.labels import ClassPalette, UInt8Array

TOML = """
name = "tiny"
ignore_id = 255
[splits]
train = "lists/train.csv"
[label_map]
9 = 255
[[classes]]
name = "road"
color = [128, 64, 128]
[[classes]]
name = "car"
color = [0, 0, 142]
"""
PALETTE = ClassPalette(("road", "car"), ((128, 64, 128), (0, 0, 142)))
IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
LABEL = np.array([[0, 1, 9, 0, 1, 255]] * 4, np.uint8)
DATA_ROOT = os.environ.get("BISENET_DATA_ROOT")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the file of a data set with one pair, on the second line of its list."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.csv").write_text("\nimage.png, label.png\n")
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    Image.fromarray(LABEL).save(tmp_path / "label.png")
    path = tmp_path / "tiny.toml"
    path.write_text(TOML)
    return path


def first_pair(file: Path) -> tuple[UInt8Array, UInt8Array]:
    return LabeledImages(DatasetSpec.from_toml(file), "train")[0]


def test_a_pair_is_a_picture_and_its_mapped_labels(file: Path) -> None:
    images = LabeledImages(DatasetSpec.from_toml(file), "train")
    image_HW3, label_HW = images[0]
    assert len(images) == 1
    assert np.array_equal(image_HW3, IMAGE)
    assert label_HW.dtype == np.uint8
    assert label_HW[0].tolist() == [0, 1, 255, 0, 1, 255]


def test_a_picture_is_called_by_its_path_below_the_root(file: Path, tmp_path: Path) -> None:
    assert LabeledImages(DatasetSpec.from_toml(file), "train").name(0) == "image.png"
    elsewhere = DatasetSpec.from_toml(file, root=tmp_path / "lists")
    (tmp_path / "lists/lists").mkdir()
    (tmp_path / "lists/lists/train.csv").write_text(f"{tmp_path}/image.png,label.png\n")
    assert LabeledImages(elsewhere, "train").name(0) == f"{tmp_path}/image.png"


@pytest.mark.usefixtures("file")
def test_the_root_starts_at_the_file_unless_another_is_given(tmp_path: Path) -> None:
    below = tmp_path / "configs"
    below.mkdir()
    moved = below / "tiny.toml"
    moved.write_text('root = ".."\n' + TOML)
    assert len(LabeledImages(DatasetSpec.from_toml(moved), "train")) == 1
    elsewhere = DatasetSpec.load(str(moved), root=tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="elsewhere"):
        LabeledImages(elsewhere, "train")


@given(mapping=st.dictionaries(st.integers(0, 255), st.sampled_from([0, 1, 255])), ids=st.binary(min_size=1))
@example(mapping={0: 1, 1: 0}, ids=b"\0\1")
@settings(max_examples=50)
def test_the_label_map_is_applied_at_once(mapping: dict[int, int], ids: bytes) -> None:
    spec = DatasetSpec("x", Path(), PALETTE, {"train": "l"}, mapping)
    table = spec.label_table
    assert [table[value] for value in ids] == [mapping.get(value, value) for value in ids]


def test_palette_pngs_carry_their_indices_whatever_their_colours(file: Path) -> None:
    labels = Image.fromarray(LABEL % 3 % 2, mode="P")
    labels.putpalette([255, 0, 0, 0, 255, 0])
    labels.save(file.with_name("label.png"), bits=2)
    assert first_pair(file)[1].tolist() == (LABEL % 3 % 2).tolist()


def gray(depth: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        mode = {1: "1", 16: "I;16"}[depth]
        Image.fromarray(LABEL).convert(mode).save(path)

    return write


def four_bit_gray(path: Path) -> None:
    """Write what Pillow would read stretched: 16 levels of gray."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 6, 4, 4, 0, 0, 0, 0)
    rows = zlib.compress(b"\0\x01\x01\x01" * 4)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (4, 6), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: Image.fromarray(LABEL[:, :5]).save(path), "4x5, their picture is 4x6"),
        (lambda path: Image.fromarray(LABEL + np.uint8(1)).save(path), r"ids \[2, 10\] are outside \[0, 2\)"),
        (lambda path: Image.fromarray(IMAGE).save(path), "8-bit ids, not PNG colour type 2"),
        (gray(1), "with 1 bits"),
        (gray(16), "with 16 bits"),
        (four_bit_gray, "with 4 bits"),
        (truncated, "broken PNG"),
        (lambda path: Image.fromarray(LABEL).save(path, "TIFF"), "not a PNG"),
        (lambda path: path.write_bytes(b""), "not a PNG"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_labels_that_cannot_be_used_are_named_with_their_line(
    file: Path, write: Callable[[Path], None], message: str
) -> None:
    write(file.with_name("label.png"))
    with pytest.raises(DatasetError, match=rf"train\.csv:2: .*label\.png: .*{message}"):
        first_pair(file)


@pytest.mark.parametrize("data", [None, b"", b"GIF89a", b"\x89PNG\r\n\x1a\n broken"])
def test_a_picture_that_cannot_be_used_is_named_with_its_line(file: Path, data: bytes | None) -> None:
    path = file.with_name("image.png")
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"train\.csv:2: .*image\.png: "):
        first_pair(file)


@pytest.mark.parametrize("line", ["image.png", "image.png,", ",label.png", "a.png,b.png,c.png"])
def test_a_line_that_is_no_pair_is_named(file: Path, line: str) -> None:
    file.with_name("lists").joinpath("train.csv").write_text(f"image.png,label.png\n{line}\n")
    with pytest.raises(DatasetError, match=r"train\.csv:2: not an image,label pair"):
        first_pair(file)


def test_an_empty_split_is_refused(file: Path) -> None:
    file.with_name("lists").joinpath("train.csv").write_text("\n\n")
    with pytest.raises(DatasetError, match="no image,label pair"):
        first_pair(file)


def test_a_split_that_is_not_there_is_refused(file: Path) -> None:
    with pytest.raises(DatasetError, match="no split 'test', only train"):
        LabeledImages(DatasetSpec.from_toml(file), "test")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "tiny"', 'title = "tiny"', "unknown keys: title"),
        ('name = "tiny"', "", "name is missing"),
        ('name = "tiny"', "name = 3", "name is missing, empty or of a wrong type"),
        ('name = "tiny"', 'name = "tiny"\nroot = 5', "root must be a string"),
        ("ignore_id = 255", "ignore_id = true", "ignore_id must be an integer"),
        ("ignore_id = 255", "ignore_id = 1", "ignore_id 1 must lie in"),
        ('train = "lists/train.csv"', "train = 3", "split 'train' must name a list file, or two patterns"),
        ('train = "lists/train.csv"', 'train = { images = "*.png" }', "split 'train' lacks labels"),
        ('train = "lists/train.csv"', 'train = { images = "*.png", labels = 3 }', "must name a list file"),
        ('train = "lists/train.csv"', 'train = { images = "*", labels = "x" }', r"same number of \*"),
        ('train = "lists/train.csv"', 'train = { images = "x", labels = "x" }', r"at least one"),
        ('train = "lists/train.csv"', 'train = { images = "*", list = "x" }', "unknown keys: list"),
        ('train = "lists/train.csv"', "", "splits is missing, empty"),
        ("9 = 255", "9 = 2", "label_map 9 = 2"),
        ("9 = 255", "300 = 1", "label_map 300 = 1"),
        ("9 = 255", "nine = 1", "label_map: .*nine"),
        ("9 = 255", '9 = "car"', "label_map must be a table of id = id"),
        ('name = "car"', 'label = "car"', "unknown keys: label"),
        ('name = "car"', 'name = "road"', "unique"),
        ("color = [0, 0, 142]", 'color = "blue"', "needs a name and a color"),
        ("color = [0, 0, 142]", "color = [0, 0]", "colors are"),
        ("color = [0, 0, 142]", "color = [0, 0", "not TOML"),
    ],
)
def test_a_file_with_a_mistake_is_refused_and_the_mistake_named(
    file: Path, old: str, new: str, message: str
) -> None:
    assert old in TOML
    file.write_text(TOML.replace(old, new))
    with pytest.raises(DatasetError, match=message):
        DatasetSpec.from_toml(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        DatasetSpec.load(str(tmp_path / "none.toml"))


@pytest.mark.usefixtures("file")
def test_the_fingerprint_is_that_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy, ignore=lambda *_: ["copy"])
    here, there = (
        LabeledImages(DatasetSpec.from_toml(folder / "tiny.toml"), "train").fingerprint
        for folder in (tmp_path, copy)
    )
    assert here == there
    assert len(here) == 64


@pytest.mark.parametrize("changed", ["image.png", "label.png", "tiny.toml"])
def test_the_fingerprint_changes_with_any_content(file: Path, changed: str) -> None:
    before = LabeledImages(DatasetSpec.from_toml(file), "train").fingerprint
    path = file.with_name(changed)
    path.write_bytes(path.read_bytes().replace(b"9 = 255", b"8 = 255") + b"\n")
    assert LabeledImages(DatasetSpec.from_toml(file), "train").fingerprint != before


def test_the_camvid_preset_knows_its_classes_and_void(tmp_path: Path) -> None:
    spec = DatasetSpec.load("camvid", root=tmp_path)
    assert spec.palette.num_classes == 11
    assert spec.palette.names[3] == "road"
    assert spec.palette.colors[3] == (128, 64, 128)
    assert spec.label_table[11] == spec.palette.ignore_id == 255


@pytest.fixture
def cities(tmp_path: Path) -> Path:
    """Return the root of a data set in which labels are found by the pictures' own paths."""
    for city, name in (("b", "2"), ("a", "1"), ("a", "0")):
        for kind in ("image", "label"):
            (tmp_path / kind / city).mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGE).save(tmp_path / f"image/{city}/{name}_image.png")
        Image.fromarray(LABEL % 2).save(tmp_path / f"label/{city}/{name}_ids.png")
    return tmp_path


def by_patterns(root: Path, images: str, labels: str) -> LabeledImages:
    return LabeledImages(DatasetSpec("x", root, PALETTE, {"train": FolderPair(images, labels)}, {}), "train")


def test_patterns_lead_from_each_picture_to_its_labels_in_the_order_of_paths(cities: Path) -> None:
    images = by_patterns(cities, "image/*/*_image.png", "label/*/*_ids.png")
    assert [pair.image.relative_to(cities).as_posix() for pair in images.pairs] == [
        "image/a/0_image.png",
        "image/a/1_image.png",
        "image/b/2_image.png",
    ]
    assert [pair.label.name for pair in images.pairs] == ["0_ids.png", "1_ids.png", "2_ids.png"]
    assert images[0][1].tolist() == (LABEL % 2).tolist()


def test_labels_that_a_pattern_promises_and_that_are_missing_are_named(cities: Path) -> None:
    (cities / "label/a/1_ids.png").unlink()
    images = by_patterns(cities, "image/*/*_image.png", "label/*/*_ids.png")
    with pytest.raises(DatasetError, match=r"a/1_image\.png: .*label/a/1_ids\.png: No such file"):
        images[1]


def test_a_pattern_without_a_picture_is_refused(cities: Path) -> None:
    with pytest.raises(DatasetError, match=r"no picture is image/\*\.jpg"):
        by_patterns(cities, "image/*.jpg", "label/*.png")


@pytest.mark.parametrize(("name", "classes"), [("cityscapes", 19), ("ade20k", 150), ("cocostuff", 171)])
def test_a_preset_has_the_classes_of_the_checkpoints_trained_on_it(
    name: PresetName, classes: int, tmp_path: Path
) -> None:
    spec = DatasetSpec.load(name, root=tmp_path)
    assert spec.palette == load_preset(name).palette
    assert spec.palette.num_classes == classes
    reached = {spec.label_table[value] for value in range(256)} & set(range(classes))
    assert reached == set(range(classes))


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("cityscapes", {0: 255, 7: 0, 9: 255, 11: 2, 33: 18}),
        ("ade20k", {0: 255, 1: 0, 150: 149}),
        ("cocostuff", {0: 0, 10: 10, 11: 255, 12: 11, 90: 255, 91: 80, 181: 170, 255: 255}),
    ],
)
def test_a_preset_maps_the_ids_of_the_archive(name: str, ids: dict[int, int], tmp_path: Path) -> None:
    table = DatasetSpec.load(name, root=tmp_path).label_table
    assert {value: int(table[value]) for value in ids} == ids


@pytest.mark.parametrize("reference", ["nothing", "../camvid", ""])
def test_a_preset_that_is_none_is_refused(reference: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a data-set preset"):
        DatasetSpec.load(reference, root=tmp_path)


def test_a_preset_needs_its_folder() -> None:
    with pytest.raises(DatasetError, match="needs the folder"):
        DatasetSpec.load("camvid")


@pytest.mark.data
@pytest.mark.skipif(DATA_ROOT is None, reason="BISENET_DATA_ROOT is not set")
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_camvid_is_read_as_published(split: str, count: int) -> None:
    images = LabeledImages(DatasetSpec.load("camvid", root=Path(str(DATA_ROOT)) / "camvid"), split)
    assert len(images) == count
    image_HW3, label_HW = images[count - 1]
    assert image_HW3.shape == (360, 480, 3)
    assert label_HW.shape == (360, 480)
    assert set(np.unique(label_HW).tolist()) <= {*range(11), 255}
