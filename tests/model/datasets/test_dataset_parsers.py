"""Whatever stands in the files of a data set, it is read, or refused as what it is."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.datasets.dataset import DatasetSpec, LabeledImages
from model.errors import DatasetError

LINES = (
    'name = "tiny"',
    'root = "."',
    "ignore_id = 255",
    "[splits]",
    'train = "train.csv"',
    "[label_map]",
    "9 = 255",
    "[[classes]]",
    'name = "road"',
    "color = [128, 64, 128]",
)
KEYS = (
    "name",
    "root",
    "ignore_id",
    "train",
    "9",
    "color",
    "a",
    '""',
    "256",
    "-1",
    "splits",
    "classes",
    "label_map",
)
VALUES = (
    *(
        "1",
        "-1",
        "256",
        "1e9",
        "1.5",
        "nan",
        "inf",
        "true",
        '""',
        '"x"',
        '"../x"',
        '"\\u0000"',
        '"' + "x" * 5000 + '"',
    ),
    *(
        "[]",
        "[1]",
        "[[1]]",
        '["x"]',
        "[300, 0, 0]",
        "[1.5, 2, 3]",
        "{}",
        "{a = 1}",
        '{images = "*", labels = "*"}',
    ),
    *("1979-05-27", "99999999999999999999", "0x10"),
)
patiently = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)


def png(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


IMAGE, LABEL = png(np.zeros((4, 6, 3), np.uint8)), png(np.zeros((4, 6), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text("image.png,label.png\n")
    (tmp_path / "image.png").write_bytes(IMAGE)
    (tmp_path / "label.png").write_bytes(LABEL)
    (tmp_path / "tiny.toml").write_text("\n".join(LINES))
    return tmp_path


def read_all(folder: Path) -> None:
    spec = DatasetSpec.from_toml(folder / "tiny.toml")
    for split in spec.splits:
        images = LabeledImages(spec, split)
        for index in range(min(len(images), 3)):
            image_HW3, label_HW = images[index]
            assert image_HW3.shape[:2] == label_HW.shape
            assert (image_HW3.dtype, label_HW.dtype) == (np.uint8, np.uint8)


def test_the_data_set_that_is_spoiled_below_is_a_good_one(folder: Path) -> None:
    read_all(folder)


@patiently
@given(content=st.binary() | st.text().map(str.encode))
def test_any_bytes_as_its_file(folder: Path, content: bytes) -> None:
    (folder / "tiny.toml").write_bytes(content)
    with suppress(DatasetError):
        read_all(folder)


@patiently
@given(
    line=st.integers(0, len(LINES) - 1),
    key=st.sampled_from(KEYS),
    value=st.sampled_from(VALUES),
    keep=st.booleans(),
)
def test_any_value_under_any_key(folder: Path, line: int, key: str, value: str, *, keep: bool) -> None:
    spoiled = [*LINES[:line], f"{key} = {value}", *LINES[line + (not keep) :]]
    (folder / "tiny.toml").write_text("\n".join(spoiled))
    with suppress(DatasetError):
        read_all(folder)


@patiently
@given(content=st.binary() | st.text("image.png,lab\n\t \"'\0/ä").map(str.encode))
def test_any_bytes_as_its_list(folder: Path, content: bytes) -> None:
    (folder / "train.csv").write_bytes(content)
    with suppress(DatasetError):
        read_all(folder)


@patiently
@given(name=st.sampled_from(["image.png", "label.png"]), data=st.data())
def test_any_flipped_bits_and_any_end_of_its_pictures(folder: Path, name: str, data: st.DataObject) -> None:
    spoiled = bytearray(IMAGE if name == "image.png" else LABEL)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(spoiled) - 1), max_size=4)):
        spoiled[bit // 8] ^= 1 << bit % 8
    del spoiled[data.draw(st.integers(0, len(spoiled))) :]
    (folder / name).write_bytes(spoiled)
    with suppress(DatasetError):
        read_all(folder)
    (folder / name).write_bytes(IMAGE if name == "image.png" else LABEL)
