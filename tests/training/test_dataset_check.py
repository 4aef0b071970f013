"""``bisenet dataset check`` on data sets as people have them: each is right, or told what makes it right."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_folders import CLASSES, ROAD, mended, truth, write_dataset, write_labels, write_picture
from PIL import Image, ImageFilter
from typer.testing import CliRunner, Result

from model.datasets.dataset import DatasetSpec, LabeledImages
from training.cli import app

IDS = truth()
DATA_ROOT = os.environ.get("BISENET_DATA_ROOT")
LABEL_MAP_255 = f"[label_map]\n255 = 1\n{CLASSES}"
ONE_CLASS = '[[classes]]\nname = "road"\ncolor = [128, 64, 128]\n'


def check(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["dataset", "check", *map(str, arguments)])


def report_on(file: Path) -> tuple[int, str]:
    result = check(file)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout + result.stderr


# --- what the command writes ------------------------------------------------------------------------------


def test_a_sound_data_set_is_described(dataset_file: Path) -> None:
    result = check(dataset_file)
    assert result.exit_code == 0
    assert "train: 5 pictures (48x80: 3, 64x80: 2)" in result.stdout
    assert "problems: 0" in result.stdout
    found = json.loads(check(dataset_file, "--json", "--split", "val").stdout)
    assert [split["name"] for split in found["splits"]] == ["val"]
    assert [one["name"] for one in found["classes"]] == ["red", "green", "blue"]


def test_a_data_set_with_problems_ends_with_one(dataset_file: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_file.parent, tmp_path / "data")
    (tmp_path / "data/train1.png").unlink()
    result = check(tmp_path / "data/blocks.toml")
    assert result.exit_code == 1
    assert "train.csv:2: " in result.stdout
    assert "fingerprint unknown: files are missing" in result.stdout
    assert "problems: 1" in result.stdout
    assert "1 broken pair can be left out: bisenet train ... --set data.skip_broken=true" in result.stdout


def test_a_preset_asks_for_its_root_by_the_name_of_the_option() -> None:
    assert check("camvid").stderr.endswith("needs the folder where the data set lies: --root DIR\n")


@pytest.mark.parametrize("reference", ["nothing.toml", "nothing", "camvid"])
def test_a_data_set_that_is_none_is_refused(reference: str) -> None:
    result = check(reference)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_nothing_is_written_as_mean_or_weight_of_nothing(tmp_path: Path) -> None:
    file = write_dataset(tmp_path, [IDS])
    (tmp_path / "images/0.jpg").write_bytes(b"")
    code, text = report_on(file)
    assert code == 1
    assert "train: 1 picture (none can be read)" in text
    assert "mean" not in text
    assert "weight" not in text
    found = json.loads(check(file, "--json").stdout)
    assert (found["mean"], found["std"]) == (None, None)
    assert [(one["share"], one["weight"]) for one in found["classes"]] == [(None, None)] * 2


def test_a_class_without_a_pixel_has_no_weight(tmp_path: Path) -> None:
    file = write_dataset(tmp_path, [IDS], rest=CLASSES + '[[classes]]\nname = "car"\n')
    found = json.loads(check(file, "--json").stdout)
    assert found["classes"][2] == {"id": 2, "name": "car", "share": None, "weight": None}
    assert "   2  car                             -  -\n" in check(file).stdout


def test_names_that_are_no_utf_8_never_end_in_a_traceback(tmp_path: Path) -> None:
    name = os.fsdecode(b"sch\xf6n")
    file = write_dataset(tmp_path, [IDS, IDS])
    (tmp_path / "images/0.jpg").rename(tmp_path / f"images/{name}.jpg")
    (tmp_path / "labels/0.png").rename(tmp_path / f"labels/{name}.png")
    (tmp_path / f"images/{name}.heic").write_bytes(b"")
    code, text = report_on(file)
    assert code == 0
    assert "train: 2 pictures" in text
    assert r"1 .heic (sch\xf6n.heic)" in text
    (tmp_path / f"images/{name}.jpg").write_bytes(b"")
    code, text = report_on(file)
    assert code == 1
    assert r"sch\xf6n.jpg: there are no bytes" in text
    assert json.loads(check(file, "--json").stdout)["problems"] == 1


def test_the_same_fault_in_many_files_is_one_problem(tmp_path: Path) -> None:
    file = write_dataset(tmp_path, [IDS * np.uint8(9)] * 15)
    code, text = report_on(file)
    assert code == 1
    assert "problems: 1\n" in text
    assert "labels/0.png" in text
    assert " and 5 more: ids [9] are outside [0, 2)" in text


# --- faults, each with the lines that mend it -------------------------------------------------------------


def in_colors(ids: np.ndarray) -> np.ndarray:
    return np.array([(0, 0, 0), ROAD], np.uint8)[ids]


def with_palette(ids: np.ndarray, colors: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(ids.astype(np.uint8), mode="P")
    image.putpalette([value for color in colors for value in color])
    return image


def smooth(image: Image.Image) -> Image.Image:
    return image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST).filter(
        ImageFilter.GaussianBlur(0.8)
    )


GRAY_0_255 = Image.fromarray(IDS * np.uint8(255))
FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "masks in colours": (
        lambda root: write_dataset(root, [in_colors(IDS)] * 2),
        "in the colours of the classes",
    ),
    "RGBA masks in colours": (
        lambda root: write_dataset(root, [Image.fromarray(in_colors(IDS)).convert("RGBA")]),
        "in the colours of the classes",
    ),
    "palettes in another order": (
        lambda root: write_dataset(
            root, [with_palette(IDS, [(0, 0, 0), ROAD]), with_palette(1 - IDS, [ROAD, (0, 0, 0)])]
        ),
        "index 0 stands for background, but the palette",
    ),
    "palettes that differ from each other": (
        lambda root: write_dataset(
            root,
            [with_palette(IDS, [(0, 0, 0), ROAD]), with_palette(1 - IDS, [ROAD, (0, 0, 0)])],
            rest='[label_map]\n1 = 1\n[[classes]]\nname = "background"\n[[classes]]\nname = "road"\n',
        ),
        "palettes of label files give index 0 different colours",
    ),
    "one class, masks of 0 and 255": (
        lambda root: write_dataset(root, [IDS * np.uint8(255)] * 3, rest=ONE_CLASS),
        "one class alone cannot be learned",
    ),
    "one class, masks of 0 and 1": (
        lambda root: write_dataset(root, [IDS], rest=ONE_CLASS),
        "one class alone cannot be learned",
    ),
    "one class, masks of 0 and 200": (
        lambda root: write_dataset(root, [IDS * np.uint8(200)], rest=ONE_CLASS),
        "one class alone cannot be learned",
    ),
    "two classes, masks of 0 and 255": (
        lambda root: write_dataset(root, [IDS * np.uint8(255)]),
        "only class 0 (background), so that nothing can be learned",
    ),
    "ids from 1": (lambda root: write_dataset(root, [IDS + np.uint8(1)]), "ids seem to start at 1|2 values"),
    "sparse ids": (lambda root: write_dataset(root, [IDS * np.uint8(77)]), "ids [77] are outside"),
    "sparse ids of 16 bits": (
        lambda root: write_dataset(root, [IDS.astype(np.uint16) * 3000]),
        "ids [3000] are outside",
    ),
    "smooth edges, 0 and 255": (
        lambda root: write_dataset(root, [smooth(GRAY_0_255)], rest=LABEL_MAP_255),
        "anti-aliased edges",
    ),
    "smooth edges, no label map": (
        lambda root: write_dataset(root, [smooth(GRAY_0_255)]),
        "anti-aliased edges",
    ),
    "smooth edges in colours": (
        lambda root: write_dataset(root, [smooth(Image.fromarray(in_colors(IDS)))]),
        "anti-aliased edges",
    ),
    "turned by 180 degrees": (
        lambda root: write_dataset(root, [IDS], orientation=3),
        "0.jpg: the picture has EXIF orientation 3 (turned by 180 degrees)",
    ),
    "turned squares": (
        lambda root: write_dataset(root, [IDS[:, :24]], orientation=6),
        "0.jpg: the picture has EXIF orientation 6 (turned by 90 degrees)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_the_proposed_lines_mend_it(tmp_path: Path, fault: str) -> None:
    write, sentence = FAULTS[fault]
    file = write(tmp_path)
    code, text = report_on(file)
    assert code == 1
    assert any(one in text for one in sentence.split("|")), text
    assert "problems: 1\n" in text
    file.write_text(mended(file.read_text(), text))
    if "palettes that differ" in fault:
        file.write_text(
            file.read_text()
            .replace('"road"', '"road"\ncolor = [128, 64, 128]')
            .replace('"background"', '"background"\ncolor = [0, 0, 0]')
            .replace("[label_map]\n1 = 1\n", "")
        )
    code, text = report_on(file)
    assert code == 0, text
    images = LabeledImages(DatasetSpec.from_toml(file), "train")
    for index in range(len(images)):
        label_HW = images[index][1]
        scale = len(label_HW) // len(IDS) if "turned" not in fault else 1
        expected = np.kron(IDS, np.ones((scale, scale), np.uint8))
        expected = {
            "turned by 180 degrees": np.rot90(IDS, 2),
            "turned squares": np.rot90(IDS[:, :24], -1),
        }.get(fault, expected)
        assert (label_HW == expected).mean() > (0.98 if "smooth" in fault else 0.999)


def test_jpeg_masks_are_named_and_can_be_read_in_colours(tmp_path: Path) -> None:
    file = write_dataset(tmp_path, [], split='{ images = "images/*.jpg", labels = "labels/*.jpg" }')
    write_picture(tmp_path / "images/0.jpg", size=(96, 128))
    exact = np.kron(IDS, np.ones((4, 4), np.uint8))
    write_labels(tmp_path / "labels/0.jpg", in_colors(exact), quality=85)
    code, text = report_on(file)
    assert code == 1
    assert "a JPEG, whose compression changes the values of pixels" in text
    file.write_text(mended(file.read_text(), text))
    code, text = report_on(file)
    assert code == 0
    assert "% of the pixels have no colour of a class and are given the nearest one" in text
    label_HW = LabeledImages(DatasetSpec.from_toml(file), "train")[0][1]
    assert (label_HW == exact).mean() > 0.99


def test_turned_pictures_are_named_with_their_orientation(tmp_path: Path) -> None:
    file = write_dataset(tmp_path, [IDS] * 2, orientation=6)
    write_picture(tmp_path / "images/2.jpg", orientation=8, size=IDS.shape)
    write_labels(tmp_path / "labels/2.png", np.rot90(IDS))
    code, text = report_on(file)
    assert code == 0
    assert (
        "note: EXIF orientation 6 (turned by 90 degrees) of images/0.jpg, images/1.jpg: the labels were drawn"
        " on the stored pixels, and are turned, too" in text
    )
    assert (
        "EXIF orientation 8 (turned by 270 degrees) of images/2.jpg: the labels were drawn on the upright"
        in text
    )


def test_pictures_without_labels_may_mean_one_class(tmp_path: Path) -> None:
    file = write_dataset(tmp_path, [IDS, IDS])
    write_picture(tmp_path / "images/empty.jpg")
    code, text = report_on(file)
    assert code == 1
    assert "labels/empty.png: No such file" in text
    file.write_text(mended(file.read_text(), text))
    code, text = report_on(file)
    assert code == 0
    assert "no labels, so that all is background, on 1 of 3: images/empty.jpg" in text


@pytest.mark.parametrize("names", [("1.png", "2.JPG", "3.jpeg", "4.JPEG", "5.webp")])
def test_every_picture_of_the_folder_is_taken_or_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    file = write_dataset(tmp_path, [])
    for name in names:
        write_picture(tmp_path / f"images/{name}")
        write_labels(tmp_path / f"labels/{name[0]}.png", IDS)
    (tmp_path / "images/._2.JPG").write_bytes(b"")
    code, text = report_on(file)
    assert code == 0
    assert "train: 3 pictures" in text
    assert "images: no split takes 1 .png (1.png), 1 .webp (5.webp), 1 hidden (._2.JPG)" in text
    file.write_text(mended(file.read_text(), text))
    code, text = report_on(file)
    assert "train: 5 pictures" in text


def test_masks_of_1_and_16_bits_are_read(tmp_path: Path) -> None:
    labels = [GRAY_0_255.convert("1"), IDS.astype(np.uint16)]
    code, text = report_on(write_dataset(tmp_path, labels, rest=LABEL_MAP_255))
    assert code == 0, text
    assert "problems: 0" in text


# --- the same kinds in files that another program wrote ---------------------------------------------------

FIELD = {
    "extensions/d.toml": (0, "train: 4 pictures"),
    "exif/d.toml": (1, "EXIF orientation 6", "o3.jpg: the picture has EXIF orientation 3", 'exif = "stored"'),
    "oneclass/d.toml": (1, "255 = 1", 'name = "background"'),
    "colours/d.toml": (1, 'masks = "colors"'),
    "palette/d.toml": (1, "b.png: index 0 stands for background", 'masks = "colors"'),
    "edges/d.toml": (1, "antialiased.png: a mask with anti-aliased edges", "color_tolerance"),
    "lists/bom.toml": (0, "train: 2 pictures"),
    "lists/quoted.toml": (0, "train: 1 picture (96x128: 1)"),
    "lists/header.toml": (0, "train: 1 picture (96x128: 1)"),
    "lists/backslash.toml": (1, "backslashes", "[path_map]"),
    "broken/d.toml": (1, "images/5.jpg: the picture is damaged or incomplete", "skip_broken"),
}


@pytest.mark.data
@pytest.mark.skipif(DATA_ROOT is None, reason="BISENET_DATA_ROOT is not set")
@pytest.mark.parametrize("row", FIELD)
def test_each_row_of_the_field_is_right_or_told_what_makes_it_right(tmp_path: Path, row: str) -> None:
    folder = Path(str(DATA_ROOT)) / "field"
    code, *sentences = FIELD[row]
    got, text = report_on(folder / row)
    assert got == code, text
    for sentence in sentences:
        assert str(sentence) in text
    if code == 1 and row != "broken/d.toml":
        copy = tmp_path / "d.toml"
        root = (folder / row).parent
        copy.write_text(f'root = "{root}"\n' + mended((folder / row).read_text(), text))
        got, text = report_on(copy)
        assert got == 0, text


@pytest.mark.data
@pytest.mark.skipif(DATA_ROOT is None, reason="BISENET_DATA_ROOT is not set")
def test_the_label_map_of_cvat_is_a_class_list(tmp_path: Path) -> None:
    root = Path(str(DATA_ROOT)) / "field/colours"
    file = tmp_path / "d.toml"
    file.write_text(
        f'name = "d"\nroot = "{root}"\nclasses = "labelmap.txt"\nmasks = "colors"\n'
        '[splits]\ntrain = { images = "images/*.jpg", labels = "labels/*.png" }\n'
    )
    code, text = report_on(file)
    assert code == 0, text
    assert "road" in text
