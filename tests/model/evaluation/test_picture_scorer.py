"""Axes: N views in a batch, K classes, H height, W width."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model.artifacts.manifest import ModelManifest
from model.decoding.score_grid import Float32Array
from model.errors import DatasetError, EvaluationError
from model.evaluation.evaluation import ScoredImage, SkippedImage
from model.evaluation.network_passes import Infer
from model.evaluation.picture_scorer import PictureScorer, check_same_classes
from model.evaluation.protocols import find_protocol
from model.evaluation.resampling import PixelArray
from model.labels import ClassPalette, UInt8Array

PALETTE = ClassPalette(("dark", "bright"), ((0, 0, 0), (255, 255, 255)))
MANIFEST = ModelManifest(
    architecture="brightness",
    generation="test",
    parameters={},
    upsample="bilinear",
    stride=8,
    palette=PALETTE,
    mean=(0.5, 0.5, 0.5),
    std=(1.0, 1.0, 1.0),
    precision="f32",
)
SIZE = (32, 64)


class Pictures:
    """Pictures of one colour each, every other one bright; ``broken`` ones cannot be read."""

    def __init__(self, count: int, *, broken: frozenset[int] = frozenset()) -> None:
        self.read: list[int] = []
        self._count = count
        self._broken = broken

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        self.read.append(index)
        if index in self._broken:
            raise DatasetError(f"picture {index} is broken")
        truth_HW = np.full(SIZE, index % 2, np.uint8)
        truth_HW[:, : index + 1] = PALETTE.ignore_id  # each picture counts another number of pixels
        return np.full((*SIZE, 3), 250 * (index % 2), np.uint8), truth_HW


def brightness(images_NHW3: PixelArray) -> Float32Array:
    """Return raw_NKhw: bright where the picture is."""
    bright_Nhw = images_NHW3[:, ::8, ::8, 0].astype(np.float32) - 128
    return np.stack([-bright_Nhw, bright_Nhw], axis=1)


def scorer(*infers: Infer) -> PictureScorer:
    return PictureScorer(MANIFEST, find_protocol("ss"), PALETTE, infers or [brightness])


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def test_threads_give_the_counts_of_one_by_one_in_the_same_order(threads: ThreadPoolExecutor) -> None:
    pictures = Pictures(20)
    alone = list(scorer().score(pictures, range(20)))
    together = list(scorer(brightness, brightness).score(pictures, range(20), executor=threads))
    assert [one.index for one in together] == list(range(20))
    for one, other in zip(alone, together, strict=True):
        assert isinstance(one, ScoredImage)
        assert isinstance(other, ScoredImage)
        assert one.to_json() == other.to_json()
        assert one.pixels.sum() == 32 * (64 - one.index - 1)
    assert scorer().total(pictures, range(20)).miou == 1.0


def test_an_engine_runs_one_picture_at_a_time(threads: ThreadPoolExecutor) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def infer(images_NHW3: PixelArray) -> Float32Array:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        scores = brightness(images_NHW3)
        with lock:
            running -= 1
        return scores

    assert len(list(scorer(infer).score(Pictures(30), range(30), executor=threads))) == 30
    assert most == 1


def test_a_broken_pair_is_skipped_with_its_reason_or_is_an_error(threads: ThreadPoolExecutor) -> None:
    pictures = Pictures(4, broken=frozenset({2}))
    outcomes = list(
        scorer().score(
            pictures,
            range(4),
            executor=threads,
            name=lambda index: f"{index}.png",
            reason=lambda error: f"{error}!",
        )
    )
    assert outcomes[2] == SkippedImage(2, "2.png", "picture 2 is broken!")
    assert [type(one) for one in outcomes].count(ScoredImage) == 3
    with pytest.raises(DatasetError, match="picture 2 is broken"):
        list(scorer().score(pictures, range(4), executor=threads))


def test_an_error_ends_the_reading_soon() -> None:
    pictures = Pictures(1000, broken=frozenset({0}))
    with ThreadPoolExecutor(2) as threads, pytest.raises(DatasetError):
        list(scorer().score(pictures, range(1000), executor=threads))
    assert len(pictures.read) <= 5  # twice as many ahead as there are threads


def test_a_picture_is_shown_with_its_own_score() -> None:
    shown = scorer(lambda images_NHW3: -brightness(images_NHW3)).show(Pictures(2), 1, "one.png")
    assert (shown.name, shown.miou) == ("one.png", 0.0)
    assert (shown.guess_HW == 0).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("dark", "light"), r"class 1 of city@3 is 'bright', of mine 'light'"),
        (("dark",), "city@3 has 2 classes, mine has 1"),
    ],
)
def test_other_classes_are_named(names: tuple[str, ...], message: str) -> None:
    other = ClassPalette(names, tuple((k, k, k) for k in range(len(names))))
    check_same_classes("city@3", PALETTE, "mine", PALETTE)
    with pytest.raises(EvaluationError, match=message):
        check_same_classes("city@3", PALETTE, "mine", other)
