from __future__ import annotations

import builtins
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from interchange_site import left_in

from model.datasets.dataset import DatasetSpec, LabeledImages
from training.errors import InterchangeError
from training.interchange.example import write_example
from training.interchange.example_scenes import CAR, LENGTH_M, PALETTE, ROAD, SIZE, SKY, Scene

FEW = {"train": 6, "val": 3}


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small example."""
    folder = tmp_path_factory.mktemp("example") / "my streets"
    write_example(folder, splits=FEW, film_s=1)
    return folder


def test_every_pixel_has_a_class_and_every_class_occurs(streets: Path) -> None:
    spec = DatasetSpec.from_toml(streets / "example.toml")
    assert spec.palette == PALETTE
    seen = set()
    for split, count in FEW.items():
        pairs = LabeledImages(spec, split)
        assert len(pairs) == count
        for index in range(count):
            image_HW3, label_HW = pairs[index]
            assert image_HW3.shape == (*SIZE.shape, 3)
            seen |= set(label_HW.reshape(-1).tolist())
    assert seen == set(range(len(PALETTE.names)))


def test_the_same_seed_makes_the_same_files_and_another_one_others(streets: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_example(tmp_path / str(seed), seed=seed, splits=FEW, film_s=0)
    names = [path.relative_to(streets) for path in streets.rglob("*") if path.suffix in {".jpg", ".png"}]
    assert len(names) == 2 * sum(FEW.values())
    assert all((streets / name).read_bytes() == (tmp_path / "0" / name).read_bytes() for name in names)
    assert not any((streets / name).read_bytes() == (tmp_path / "1" / name).read_bytes() for name in names)


def test_the_film_lasts_as_long_as_it_says(streets: Path) -> None:
    with av.open(streets / "film.mp4") as film:
        frames = list(film.decode(video=0))
    assert len(frames) == 15
    assert (frames[0].height, frames[0].width) == SIZE.shape
    assert float(frames[-1].time or 0) == pytest.approx(14 / 15)


def test_the_readme_names_files_that_exist_and_the_next_commands(streets: Path) -> None:
    text = (streets / "README.txt").read_text()
    assert f"  bisenet dataset check '{streets}/example.toml'\n" in text
    assert f"  bisenet train custom --set data.dataset='{streets}/example.toml' --set" in text
    assert (
        f"  bisenet predict '{streets}/film.mp4' --model example --out example-film.mp4 --output overlay\n"
        in text
    )
    assert left_in(streets) == ["README.txt", "example.toml", "film.mp4", "train", "val"]


def test_without_pyav_there_is_no_film_and_nothing_speaks_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_av(name: str, *rest: Any) -> ModuleType:
        if name == "av":
            raise ModuleNotFoundError(name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_av)
    report = write_example(tmp_path / "streets", splits={"train": 1, "val": 1}, film_s=1)
    assert report.film is None
    assert "film" not in report.readme.read_text()
    assert not (tmp_path / "streets/film.mp4").exists()


def test_nothing_is_written_into_a_folder_that_holds_something(streets: Path) -> None:
    with pytest.raises(InterchangeError, match="exists and is not empty"):
        write_example(streets)


def test_a_street_looks_alike_from_one_place_and_changes_along_the_way() -> None:
    scene = Scene((3, 4))
    image_HW3, label_HW = scene.picture(20)
    for again, first in zip(Scene((3, 4)).picture(20), (image_HW3, label_HW), strict=True):
        assert (again == first).all()
    noisy_HW3, same_HW = scene.picture(20, frame=1)
    assert (same_HW == label_HW).all()
    assert 0 < np.abs(noisy_HW3.astype(int) - image_HW3).mean() < 5
    _, farther_HW = scene.picture(LENGTH_M)
    assert (farther_HW != label_HW).mean() > 0.05


def test_the_sky_is_above_the_road_and_a_car_is_ahead() -> None:
    for seed in range(20):
        _, label_HW = Scene((seed,)).picture(30)
        rows = {class_id: np.nonzero(label_HW == class_id)[0].mean() for class_id in (SKY, ROAD, CAR)}
        assert rows[SKY] < rows[CAR] < rows[ROAD]
