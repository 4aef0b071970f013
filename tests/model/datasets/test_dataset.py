from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_folders import mended
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.datasets.confined_paths import ConfinedReader
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.datasets.dataset_file import ReadingRules
from model.datasets.masks import MaskRules
from model.datasets.palettes import PresetName, load_preset
from model.errors import DatasetError, PairError
from model.labels import ClassPalette, UInt8Array
from model.pictures.image import decode_image

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
    table = spec.mask_reader.id_table
    known = [value for value in ids if mapping.get(value, value) in {0, 1, 255}]
    assert [table[value] for value in known] == [mapping.get(value, value) for value in known]


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (4, 6), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: Image.fromarray(LABEL[:, :5]).save(path), "4x5, their picture is 4x6"),
        (lambda path: Image.fromarray(LABEL + np.uint8(1)).save(path), r"ids \[2, 10\] are outside \[0, 2\)"),
        (lambda path: Image.fromarray(IMAGE).save(path), "a mask in 24 colours, 24 of them of no class"),
        (truncated, "broken PNG"),
        (lambda path: Image.fromarray(LABEL).save(path, "TIFF"), "not a PNG but a TIFF"),
        (lambda path: path.write_bytes(b""), "not a PNG"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_labels_that_cannot_be_used_are_named_with_their_line(
    file: Path, write: Callable[[Path], None], message: str
) -> None:
    write(file.with_name("label.png"))
    with pytest.raises(PairError, match=rf"train\.csv:2: .*label\.png: .*{message}"):
        first_pair(file)


@pytest.mark.parametrize("data", [None, b"", b"GIF89a", b"\x89PNG\r\n\x1a\n broken"])
def test_a_picture_that_cannot_be_used_is_named_with_its_line(file: Path, data: bytes | None) -> None:
    path = file.with_name("image.png")
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(PairError, match=r"train\.csv:2: .*image\.png: "):
        first_pair(file)


def test_a_picture_of_another_format_is_told_what_it_is(file: Path) -> None:
    Image.fromarray(IMAGE).save(file.with_name("image.png"), "BMP")
    with pytest.raises(PairError, match="it is a BMP: convert it to JPEG or PNG"):
        first_pair(file)


def test_a_missing_file_is_told_the_line_that_leads_to_it(file: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("/old/place/image.png,label.png\n")
    file.write_text(TOML.replace("lists/train.csv", "train.csv"))
    with pytest.raises(PairError, match="No such file") as error:
        first_pair(file)
    file.write_text(mended(file.read_text(), str(error.value)))
    assert np.array_equal(first_pair(file)[0], IMAGE)


def test_paths_that_start_at_the_list_are_told_the_line_that_leads_to_them(file: Path) -> None:
    for name in ("image.png", "label.png"):
        file.with_name(name).rename(file.parent / "lists" / name)
    with pytest.raises(PairError, match="No such file") as error:
        first_pair(file)
    assert '"" = "lists/"' in str(error.value).replace("'", '"')
    file.write_text(mended(file.read_text(), str(error.value)))
    assert np.array_equal(first_pair(file)[0], IMAGE)


@pytest.mark.parametrize("name", ["label.PNG", "label.bmp", "Label_mask.png"])
def test_a_missing_file_is_told_what_is_called_alike(file: Path, name: str) -> None:
    file.with_name("label.png").rename(file.with_name(name))
    alike = name[len("label") :]
    with pytest.raises(PairError, match=rf"label\.png: No such file or directory; there is a \*{alike} in"):
        first_pair(file)


def test_missing_labels_mean_a_class_if_the_file_says_so(file: Path) -> None:
    file.with_name("label.png").unlink()
    with pytest.raises(PairError, match="No such file") as error:
        first_pair(file)
    assert 'missing_label = "road"' in str(error.value)
    file.write_text('missing_label = "car"\n' + TOML)
    images = LabeledImages(DatasetSpec.from_toml(file), "train")
    assert (images[0][1] == 1).all()
    assert images.read_pair(0).mask is None
    assert len(images.fingerprint) == 64


def test_labels_that_a_list_leaves_empty_mean_a_class_if_the_file_says_so(file: Path) -> None:
    (file.parent / "lists/train.csv").write_text("image.png,\n")
    file.write_text('missing_label = "car"\n' + TOML)
    assert (first_pair(file)[1] == 1).all()


def test_a_missing_folder_of_labels_is_no_missing_label(file: Path) -> None:
    (file.parent / "lists/train.csv").write_text("image.png,lables/label.png\n")
    file.write_text('missing_label = "car"\n' + TOML)
    with pytest.raises(PairError, match="No such file"):
        first_pair(file)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("drawn_on", ["stored", "upright"])
def test_labels_lie_over_their_picture_however_it_was_stored(
    file: Path, orientation: int, drawn_on: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.where(LABEL[..., None] == 1, 255, 0).astype(np.uint8).repeat(3, axis=2)
    stored[0, 0] = 255
    Image.fromarray(stored).save(file.with_name("image.png"), exif=exif)
    upright = decode_image(file.with_name("image.png").read_bytes())
    drawn = stored if drawn_on == "stored" else upright
    Image.fromarray(drawn[..., 0] // 255).save(file.with_name("label.png"))
    file.write_text(f'exif = "{drawn_on}"\n{TOML}')
    image_HW3, label_HW = first_pair(file)
    assert np.array_equal(image_HW3, upright)
    assert np.array_equal(label_HW, image_HW3[..., 0] // 255)


def test_labels_of_a_quarter_turn_are_recognised_by_their_size(file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IMAGE).save(file.with_name("image.png"), exif=exif)
    picture = LabeledImages(DatasetSpec.from_toml(file), "train").read_pair(0)
    assert (picture.orientation, picture.is_turned) == (6, True)
    assert np.array_equal(picture.label_HW, np.rot90(np.where(LABEL == 9, 255, LABEL), -1))


def test_the_limit_of_pixels_is_a_setting(file: Path) -> None:
    large = np.zeros((60, 50), np.uint8)
    Image.fromarray(large).save(file.with_name("image.png"))
    Image.fromarray(large).save(file.with_name("label.png"))
    file.write_text("max_pixels = 2999\n" + TOML)
    with pytest.raises(PairError, match=r"60x50 pixels are more than 2999; add at the top") as error:
        first_pair(file)
    file.write_text(mended(TOML, str(error.value)))
    assert first_pair(file)[1].shape == (60, 50)


def test_pairs_can_be_left_out(file: Path) -> None:
    (file.parent / "lists/train.csv").write_text("a.png,b.png\nimage.png,label.png\n")
    spec = DatasetSpec.from_toml(file)
    kept = LabeledImages(spec, "train", leave_out={0})
    assert (len(kept), kept.name(0)) == (1, "image.png")
    (file.parent / "lists/train.csv").write_text("image.png,label.png\n")
    assert kept.fingerprint == LabeledImages(spec, "train").fingerprint


def test_an_empty_split_is_refused(file: Path) -> None:
    file.with_name("lists").joinpath("train.csv").write_text("\n\n")
    with pytest.raises(DatasetError, match="no image,label pair"):
        first_pair(file)


@pytest.mark.parametrize("root", ["~/tiny", "nowhere"])
def test_a_root_that_is_not_there_is_named(file: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    file.write_text(f'root = "{root}"\n{TOML}')
    expected = "/home/ann/tiny" if root[0] == "~" else f"{file.parent}/nowhere"
    with pytest.raises(
        DatasetError, match=rf"cannot be read: No such file .*; there is no folder {expected}$"
    ):
        first_pair(file)


def test_names_that_are_no_utf_8_can_be_printed(file: Path) -> None:
    name = os.fsdecode(b"sch\xf6n.png")
    file.with_name("image.png").rename(file.with_name(name))
    (file.parent / "lists/train.csv").write_bytes(b"sch\xf6n.png,label.png\n")
    images = LabeledImages(DatasetSpec.from_toml(file), "train")
    assert images.name(0) == r"sch\xf6n.png"
    assert np.array_equal(images[0][0], IMAGE)
    file.with_name("label.png").write_bytes(b"")
    file.with_name(name).write_bytes(b"")
    with pytest.raises(PairError) as error:
        _ = images[0]
    assert str(error.value).encode()


def test_patterns_outside_the_root_are_read_by_a_confined_reader_as_well(file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "lists"
    patterns = f'{{ images = "{tmp_path}/image*.png", labels = "{tmp_path}/label*.png" }}'
    moved = tmp_path / "moved.toml"
    moved.write_text(TOML.replace('"lists/train.csv"', patterns))
    spec = DatasetSpec.from_toml(moved, root=elsewhere)
    assert spec.folders_elsewhere == (tmp_path,)
    images = LabeledImages(spec, "train", read=ConfinedReader(elsewhere, spec.folders_elsewhere))
    assert np.array_equal(images[0][0], IMAGE)
    assert file.exists()


def test_a_label_map_that_leads_to_no_class_is_refused() -> None:
    for label_map in ({9: 2}, {65536: 1}, {-1: 0}):
        with pytest.raises(DatasetError, match="label_map"):
            DatasetSpec("x", Path(), PALETTE, {"train": "l"}, label_map)
    rules = ReadingRules(MaskRules(colors={(0, 0, 0): 7}))
    with pytest.raises(DatasetError, match="label_map"):
        DatasetSpec("x", Path(), PALETTE, {"train": "l"}, {}, rules)


def test_a_split_that_is_not_there_is_refused(file: Path) -> None:
    with pytest.raises(DatasetError, match="no split 'test', only train"):
        LabeledImages(DatasetSpec.from_toml(file), "test")


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


def test_the_fingerprint_of_a_file_without_rules_is_that_of_earlier_versions(file: Path) -> None:
    meaning = json.dumps([["road", "car"], 255, [[9, 255]]])
    total = hashlib.sha256(meaning.encode())
    for name in ("image.png", "label.png"):
        total.update(hashlib.sha256(file.with_name(name).read_bytes()).digest())
    assert LabeledImages(DatasetSpec.from_toml(file), "train").fingerprint == total.hexdigest()


@pytest.mark.parametrize(
    "line", ['exif = "stored"', 'missing_label = "car"', 'masks = "colors"', "color_tolerance = 3"]
)
def test_the_fingerprint_changes_with_rules_that_change_labels(file: Path, line: str) -> None:
    before = LabeledImages(DatasetSpec.from_toml(file), "train").fingerprint
    in_colors = 'masks = "colors"\n' if "color" in line else ""
    base = TOML.replace("9 = 255", '"9,9,9" = 255') if in_colors else TOML
    file.write_text((in_colors if "tolerance" in line else "") + base)
    if "tolerance" in line:
        before = LabeledImages(DatasetSpec.from_toml(file), "train").fingerprint
    file.write_text(f"{line}\n" + (in_colors if "tolerance" in line else "") + base)
    assert LabeledImages(DatasetSpec.from_toml(file), "train").fingerprint != before


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
    assert spec.mask_reader.id_table[11] == spec.palette.ignore_id == 255


@pytest.mark.parametrize(("name", "classes"), [("cityscapes", 19), ("ade20k", 150), ("cocostuff", 171)])
def test_a_preset_has_the_classes_of_the_checkpoints_trained_on_it(
    name: PresetName, classes: int, tmp_path: Path
) -> None:
    spec = DatasetSpec.load(name, root=tmp_path)
    assert spec.palette == load_preset(name).palette
    assert spec.palette.num_classes == classes
    reached = {spec.mask_reader.id_table[value] for value in range(256)} & set(range(classes))
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
    table = DatasetSpec.load(name, root=tmp_path).mask_reader.id_table
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
