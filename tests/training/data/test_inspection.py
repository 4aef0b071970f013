from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.datasets.dataset import DatasetSpec, LabeledImages
from training.data.inspection import inspect_split
from training.data.split_facts import SplitFacts, class_shares, color_statistics

TOML = """
name = "tiny"
[splits]
train = "train.csv"
[[classes]]
name = "road"
color = [128, 64, 128]
[[classes]]
name = "car"
color = [0, 0, 142]
[[classes]]
name = "sky"
color = [70, 130, 180]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a data set of three pairs without the sky."""
    random = np.random.default_rng(0)
    lines = []
    for index in range(3):
        Image.fromarray(random.integers(0, 256, (8, 10 + index, 3), np.uint8)).save(tmp_path / f"{index}.png")
        labels = np.zeros((8, 10 + index), np.uint8)
        labels[:2], labels[2] = 1, 255
        Image.fromarray(labels).save(tmp_path / f"{index}_ids.png")
        lines.append(f"{index}.png,{index}_ids.png")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    (tmp_path / "tiny.toml").write_text(TOML)
    return tmp_path


def train_split(folder: Path) -> LabeledImages:
    return LabeledImages(DatasetSpec.from_toml(folder / "tiny.toml"), "train")


def looked_at(folder: Path) -> SplitFacts:
    return inspect_split(train_split(folder), workers=2)


def test_sizes_ids_and_shares_are_those_of_the_pictures(folder: Path) -> None:
    facts = looked_at(folder)
    assert (facts.pictures, facts.sizes) == (3, {"8x10": 1, "8x11": 1, "8x12": 1})
    assert facts.ids == {0: 5 * 33, 1: 2 * 33, 255: 33}
    assert facts.pixels == 8 * 33
    assert class_shares([facts], 3) == pytest.approx([5 / 7, 2 / 7, 0])
    assert facts.is_sound


def test_mean_and_deviation_are_those_of_all_pixels(folder: Path) -> None:
    pictures = [np.asarray(Image.open(folder / f"{i}.png"), np.float64).reshape(-1, 3) for i in range(3)]
    pixels = np.concatenate(pictures) / 255
    mean, std = color_statistics([looked_at(folder)])
    assert mean == pytest.approx(pixels.mean(0), abs=1e-4)
    assert std == pytest.approx(pixels.std(0), abs=1e-4)


def with_an_unknown_id(folder: Path) -> None:
    Image.fromarray(np.full((8, 11), 7, np.uint8)).save(folder / "1_ids.png")


def of_another_size(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(folder / "1_ids.png")


def torn(folder: Path) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])


@pytest.mark.parametrize(
    ("spoil", "file", "reason"),
    [
        (with_an_unknown_id, "1_ids.png", "ids [7] are outside [0, 3)"),
        (of_another_size, "1_ids.png", "labels are 8x12, their picture is 8x11"),
        (torn, "1.png", "the picture is damaged or incomplete"),
        (lambda folder: (folder / "1.png").unlink(), "1.png", "No such file"),
        (lambda folder: (folder / "1_ids.png").unlink(), "1_ids.png", "No such file"),
    ],
)
def test_a_broken_pair_is_known_by_its_index_with_file_and_line(
    folder: Path, spoil: Callable[[Path], None], file: str, reason: str
) -> None:
    spoil(folder)
    facts = looked_at(folder)
    assert list(facts.broken) == [1]
    assert facts.broken[1].place == f"{folder}/train.csv:2: {folder}/{file}"
    assert facts.broken[1].reason.startswith(reason)
    assert facts.broken[1].values == ((7,) if "[7]" in reason else ())
    assert facts.sizes == {"8x10": 1, "8x12": 1}
    assert not facts.is_sound


def test_a_split_of_one_class_is_a_flaw(folder: Path) -> None:
    for index in range(3):
        ids = np.full((8, 10 + index), 255, np.uint8)
        ids[:4] = 0
        Image.fromarray(ids).save(folder / f"{index}_ids.png")
    (flaw,) = looked_at(folder).flaws
    assert "split train: the labels hold only class 0 (road), so that nothing can be learned" in flaw
    assert "255 = 1" in flaw
    for index in range(3):
        Image.fromarray(np.full((8, 10 + index), 255, np.uint8)).save(folder / f"{index}_ids.png")
    (flaw,) = looked_at(folder).flaws
    assert flaw.endswith("the labels hold no class at all, so that nothing can be learned")


def test_known_content_is_not_read_again(folder: Path, tmp_path: Path) -> None:
    counted: list[int] = []
    first, again = (
        inspect_split(
            train_split(folder), workers=1, cache_folder=tmp_path / "cache", progress=counted.append
        )
        for _ in range(2)
    )
    assert first == again
    assert counted == [1, 2, 3]


def test_changed_content_is_read_again(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = inspect_split(train_split(folder), workers=1, cache_folder=cache)
    Image.fromarray(np.full((8, 11), 2, np.uint8)).save(folder / "1_ids.png")
    after = inspect_split(train_split(folder), workers=1, cache_folder=cache)
    assert 2 in after.ids
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"ids": 5}'])
def test_a_cache_that_a_killed_process_left_is_made_again(folder: Path, tmp_path: Path, text: str) -> None:
    cache = tmp_path / "cache"
    facts = inspect_split(train_split(folder), workers=1, cache_folder=cache)
    (file,) = cache.iterdir()
    file.write_text(text)
    assert inspect_split(train_split(folder), workers=1, cache_folder=cache) == facts


def test_a_cache_that_cannot_be_written_does_not_matter(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert inspect_split(train_split(folder), workers=1, cache_folder=tmp_path / "file") == looked_at(folder)
