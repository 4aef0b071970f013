from __future__ import annotations

import numpy as np

from model.artifacts.manifest import ModelVersion
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.scheduling.quarantine import Quarantine

CITY, ROAD = ModelVersion("city", 1), ModelVersion("road", 1)


SIZE = ImageSize(32, 32)


def picture(value: int, *, original: ImageSize = SIZE) -> PreparedImage:
    return PreparedImage(np.full((32, 32, 3), value, np.uint8), SIZE, original)


def test_a_picture_is_suspect_after_one_death_and_banned_after_two() -> None:
    quarantine = Quarantine()
    assert not quarantine.is_suspect(CITY, picture(1))
    quarantine.record_death(CITY, picture(1))
    assert quarantine.is_suspect(CITY, picture(1))
    assert not quarantine.is_banned(CITY, picture(1))
    quarantine.record_death(CITY, picture(1))
    assert quarantine.is_banned(CITY, picture(1))


def test_no_other_picture_is_suspected() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.record_death(CITY, picture(1))
    assert not quarantine.is_suspect(CITY, picture(2))
    assert not quarantine.is_suspect(ROAD, picture(1))
    assert not quarantine.is_suspect(CITY, picture(1, original=ImageSize(64, 64)))


def test_a_picture_that_is_answered_is_cleared() -> None:
    quarantine = Quarantine()
    quarantine.record_death(CITY, picture(1))
    quarantine.clear(CITY, picture(2))
    assert quarantine.is_suspect(CITY, picture(1))
    quarantine.clear(CITY, picture(1))
    quarantine.record_death(CITY, picture(1))
    assert not quarantine.is_banned(CITY, picture(1))


def test_only_the_latest_suspects_are_remembered() -> None:
    quarantine = Quarantine()
    for value in range(256):
        quarantine.record_death(CITY, picture(value))
    assert quarantine.is_suspect(CITY, picture(0))
    quarantine.record_death(ROAD, picture(0))
    assert not quarantine.is_suspect(CITY, picture(0))
    assert quarantine.is_suspect(CITY, picture(1))
