from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.datasets.dataset import DatasetSpec, LabeledImages
from model.errors import DatasetError
from training.data.inspection import (
    SplitFacts,
    class_frequencies,
    color_statistics,
    inspect_split,
    refuse_problems,
    report,
)

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
    assert class_frequencies([facts], 3) == pytest.approx([5 / 7, 2 / 7, 0])
    assert facts.problems == []


def test_mean_and_deviation_are_those_of_all_pixels(folder: Path) -> None:
    pictures = [np.asarray(Image.open(folder / f"{i}.png"), np.float64).reshape(-1, 3) for i in range(3)]
    pixels = np.concatenate(pictures) / 255
    mean, std = color_statistics([looked_at(folder)])
    assert mean == pytest.approx(pixels.mean(0), abs=1e-4)
    assert std == pytest.approx(pixels.std(0), abs=1e-4)


def test_the_report_names_unseen_classes_and_suggests_weights(folder: Path) -> None:
    spec = DatasetSpec.from_toml(folder / "tiny.toml")
    found = report([looked_at(folder)], spec.palette)
    assert found["splits"][0]["unseen"] == ["sky"]
    assert found["classes"][2]["weight"] == pytest.approx(1 / math.log(1.1), abs=1e-4)
    assert found["problems"] == 0


def as_colours(folder: Path) -> None:
    ids = np.asarray(Image.open(folder / "1_ids.png"))
    colors = np.array([[128, 64, 128], [0, 0, 142]], np.uint8)
    Image.fromarray(np.where((ids < 2)[..., None], colors[np.minimum(ids, 1)], 0).astype(np.uint8)).save(
        folder / "1_ids.png"
    )


def as_a_photograph(folder: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 11, 3), np.uint8)).save(
        folder / "1_ids.png"
    )


def with_an_unknown_id(folder: Path) -> None:
    Image.fromarray(np.full((8, 11), 7, np.uint8)).save(folder / "1_ids.png")


def of_another_size(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(folder / "1_ids.png")


def torn(folder: Path) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])


def test_a_missing_picture_is_not_blamed_on_a_mask_in_colours(folder: Path) -> None:
    as_colours(folder)
    (folder / "1.png").unlink()
    (problem,) = looked_at(folder).problems
    assert problem.endswith("1.png: No such file or directory")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (as_colours, "1_ids.png: .*colour type 2.* in the colours of the classes: write class ids instead"),
        (as_a_photograph, r"1_ids.png: .*colour type 2.* a mask in \d+ colours, \d+ of them of no class"),
        (with_an_unknown_id, r"1_ids.png: ids \[7\] are outside \[0, 3\): label_map can"),
        (of_another_size, "1_ids.png: labels are 8x12, their picture is 8x11"),
        (torn, "1.png: "),
        (lambda folder: (folder / "1.png").unlink(), "1.png: No such file"),
        (lambda folder: (folder / "1_ids.png").unlink(), "1_ids.png: No such file"),
    ],
)
def test_what_is_wrong_with_a_pair_is_said_with_file_and_line(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    facts = looked_at(folder)
    assert len(facts.problems) == 1
    with pytest.raises(DatasetError, match=rf"1 problems(?s:.*)train\.csv:2: .*{message}"):
        refuse_problems([facts])


def test_masks_of_0_and_255_are_found_when_255_is_no_class(folder: Path) -> None:
    for index in range(3):
        ids = np.full((8, 10 + index), 255, np.uint8)
        ids[:4] = 0
        Image.fromarray(ids).save(folder / f"{index}_ids.png")
    (problem,) = looked_at(folder).problems
    assert "only class 0 (road); masks of 0 and 255 need a label_map" in problem


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


def test_facts_survive_json(folder: Path) -> None:
    facts = dataclasses.replace(looked_at(folder), problems=["a"])
    assert SplitFacts.from_json(facts.to_json()) == facts
