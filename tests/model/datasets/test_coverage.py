from __future__ import annotations

from pathlib import Path

import pytest
from dataset_folders import CLASSES, mended

from model.datasets.coverage import describe_untaken, files_not_taken
from model.datasets.dataset import DatasetSpec, LabeledImages


def dataset(root: Path, splits: str, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "d.toml").write_text(f'name = "d"\n[splits]\n{splits}\n{CLASSES}')
    return root / "d.toml"


def untaken(file: Path) -> list[str]:
    spec = DatasetSpec.from_toml(file)
    return [describe_untaken(found, spec) for found in files_not_taken(spec)]


def test_a_folder_of_which_everything_is_taken_is_not_mentioned(tmp_path: Path) -> None:
    file = dataset(
        tmp_path,
        'train = { images = "i/*.jpg", labels = "l/*.png" }',
        "i/1.jpg",
        "i/2.JPEG",
        "l/1.png",
        "l/2.PNG",
    )
    assert untaken(file) == []


@pytest.mark.parametrize(
    ("names", "images", "labels"),
    [
        (("images/2.png", "images/3.PNG", "images/4.webp"), "images/*.{jpg,png,webp}", "labels/*.png"),
        (("images/cam1/2.jpg",), "images/**/*.jpg", "labels/**/*.png"),
        (("images/cam1/2.png", "images/x.txt"), "images/**/*.{jpg,png}", "labels/**/*.png"),
    ],
)
def test_pictures_that_a_pattern_leaves_out_come_with_the_line_that_takes_them(
    tmp_path: Path, names: tuple[str, ...], images: str, labels: str
) -> None:
    file = dataset(
        tmp_path,
        'train = { images = "images/*.jpg", labels = "labels/*.png" }',
        "images/1.jpg",
        "labels/1.png",
        *names,
    )
    (sentence,) = untaken(file)
    assert f'train = {{ images = "{images}", labels = "{labels}" }}' in sentence
    file.write_text(mended(file.read_text(), sentence))
    pictures = [name for name in names if not name.endswith(".txt")]
    assert len(LabeledImages(DatasetSpec.from_toml(file), "train")) == 1 + len(pictures)


def test_files_that_cannot_be_taken_are_counted_by_kind(tmp_path: Path) -> None:
    file = dataset(
        tmp_path,
        'train = { images = "images/*.jpg", labels = "labels/*.png" }',
        *("images/1.jpg", "images/2.heic", "images/3.heic", "images/._1.jpg", "labels/1.png", "labels/9.png"),
    )
    assert untaken(file) == [
        "images: no split takes 2 .heic (2.heic, 3.heic), 1 hidden (._1.jpg)",
        "labels: no split takes 1 .png (9.png)",
    ]


def test_a_picture_of_another_split_is_taken(tmp_path: Path) -> None:
    splits = "".join(
        f'{name} = {{ images = "x/{name}_*.jpg", labels = "x/{name}_*.png" }}\n' for name in ("t", "v")
    )
    file = dataset(tmp_path, splits, "x/t_1.jpg", "x/t_1.png", "x/v_1.jpg", "x/v_1.png", "x/w_1.jpg")
    assert untaken(file) == ["x: no split takes 1 .jpg (w_1.jpg)"]


def test_files_beside_listed_pictures_are_counted(tmp_path: Path) -> None:
    file = dataset(tmp_path, 'train = "train.csv"\nval = "nowhere.csv"', "i/1.jpg", "i/2.jpg", "l/1.png")
    (tmp_path / "train.csv").write_text("i/1.jpg,l/1.png\n")
    assert untaken(file) == ["i: no split takes 1 .jpg (2.jpg)"]


def test_the_list_of_a_split_and_data_set_files_at_the_root_do_not_count(tmp_path: Path) -> None:
    file = dataset(tmp_path, 'train = "train.csv"', "1.jpg", "1.png", "2.jpg")
    (tmp_path / "train.csv").write_text("1.jpg,1.png\n")
    assert untaken(file) == [".: no split takes 1 .jpg (2.jpg)"]
