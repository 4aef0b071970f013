"""Tiles give the labels that evaluations with the protocol ``slide`` give."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from fakes import FAKE_MANIFEST, FakeEngine
from http_site import picture_of

from model.artifacts.manifest import ModelVersion
from model.errors import ProtocolError
from model.evaluation import network_passes
from model.evaluation.protocols import find_protocol
from service.cli.labelers import TileLabeler, tile_protocol
from service.core.device.engine import DeviceMemoryError, Float32Array, ImageBatch
from service.core.errors import InternalError, ModelOutputInvalidError

VERSION = ModelVersion("fake", 1)
IDS_HW = np.random.default_rng(5).integers(0, 4, (7, 9), np.uint8).repeat(24, 0).repeat(24, 1)
IMAGE_HW3 = picture_of(IDS_HW)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.mark.parametrize("tile", [32, 64, 96, 512])
async def test_the_labels_are_those_of_the_slide_protocol(executor: ThreadPoolExecutor, tile: int) -> None:
    engine = FakeEngine()
    labeler = TileLabeler(VERSION, FAKE_MANIFEST, engine, tile_protocol(tile, None), executor)
    labelled = await labeler.label(IMAGE_HW3)
    slide = find_protocol("slide").with_crop(tile)
    expected_HW = network_passes.segment(IMAGE_HW3, slide, FakeEngine().infer, FAKE_MANIFEST)
    assert np.array_equal(labelled.label_map.ids_HW, expected_HW)
    assert np.mean(labelled.label_map.ids_HW == IDS_HW) > 0.7  # borders of cells are blended
    assert labelled.inference_size.shape == IDS_HW.shape
    assert set(labelled.timings_ms) == {"infer", "post"}
    assert max(max(shape[1:3]) for shape in engine.seen) <= max(tile, 224)


def test_the_default_overlap_is_that_of_evaluations() -> None:
    assert tile_protocol(1024, None) == find_protocol("slide")
    assert tile_protocol(1024, 0.25).advance == Fraction(3, 4)


def test_the_side_of_a_tile_is_a_multiple_of_32() -> None:
    with pytest.raises(ProtocolError, match="multiple of 32"):
        tile_protocol(1000, None)


async def test_scores_that_are_not_finite_are_an_error(executor: ThreadPoolExecutor) -> None:
    def nonsense(images_NHW3: ImageBatch) -> Float32Array:
        count, height, width = images_NHW3.shape[:3]
        return np.full((count, 4, height // 8, width // 8), np.nan, np.float32)

    engine = FakeEngine(answer=nonsense)
    labeler = TileLabeler(VERSION, FAKE_MANIFEST, engine, tile_protocol(64, None), executor)
    with pytest.raises(ModelOutputInvalidError):
        await labeler.label(IMAGE_HW3)


async def test_a_tile_that_does_not_fit_into_memory_is_told_with_the_way_out(
    executor: ThreadPoolExecutor,
) -> None:
    def too_large(_: ImageBatch) -> Float32Array:
        raise DeviceMemoryError("out of memory")

    engine = FakeEngine(answer=too_large)
    labeler = TileLabeler(VERSION, FAKE_MANIFEST, engine, tile_protocol(64, None), executor)
    with pytest.raises(InternalError, match="choose a smaller --tile"):
        await labeler.label(IMAGE_HW3)
