from __future__ import annotations

import numpy as np

from model.artifacts.manifest import ModelVersion
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.scheduling.quarantine import Quarantine

CITY, ROAD = ModelVersion("city", 1), ModelVersion("road", 1)


SIZE = ImageSize(32, 32)


def picture(value: int, *, original: ImageSize = SIZE) -> PreparedImage:
    return PreparedImage(np.full((32, 32, 3), value, np.uint8), SIZE, original)


def test_the_deaths_of_workers_with_a_picture_are_counted() -> None:
    quarantine = Quarantine()
    assert quarantine.deaths_of(CITY, picture(1)) == 0
    quarantine.record_death(CITY, picture(1))
    assert quarantine.deaths_of(CITY, picture(1)) == 1
    quarantine.record_death(CITY, picture(1))
    assert quarantine.deaths_of(CITY, picture(1)) == 2


def test_no_other_picture_is_suspected() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.record_death(CITY, picture(1))
    assert quarantine.deaths_of(CITY, picture(2)) == 0
    assert quarantine.deaths_of(ROAD, picture(1)) == 0
    assert quarantine.deaths_of(CITY, picture(1, original=ImageSize(64, 64))) == 0


def test_a_picture_that_is_answered_is_cleared() -> None:
    quarantine = Quarantine()
    quarantine.record_death(CITY, picture(1))
    quarantine.clear(CITY, picture(2))
    assert quarantine.deaths_of(CITY, picture(1)) == 1
    quarantine.clear(CITY, picture(1))
    quarantine.record_death(CITY, picture(1))
    assert quarantine.deaths_of(CITY, picture(1)) == 1


def test_only_the_latest_suspects_are_remembered() -> None:
    quarantine = Quarantine()
    for value in range(256):
        quarantine.record_death(CITY, picture(value))
    assert quarantine.deaths_of(CITY, picture(0)) == 1
    quarantine.record_death(ROAD, picture(0))
    assert quarantine.deaths_of(CITY, picture(0)) == 0
    assert quarantine.deaths_of(CITY, picture(1)) == 1
