"""Pictures at full detail: tile by tile, with the arithmetic of evaluations.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FAKE_MANIFEST, PATIENCE_S, FakeEngine, PictureWatch, no_garbage_collector, until
from http_site import encoded, picture_of

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.errors import ProtocolError
from model.evaluation import network_passes
from model.evaluation.protocols import find_protocol
from service.core.device.device import Device
from service.core.device.engine import DeviceMemoryError, EngineOptions, Float32Array, ImageBatch
from service.core.device.in_process import InProcessRunner
from service.core.errors import (
    BusyError,
    DeadlineExceededError,
    ModelOutputInvalidError,
    QueueFullError,
    TooManyPixelsError,
)
from service.core.models.model_host import ModelHost
from service.core.pictures.passes import FULL_DETAIL, tile_protocol
from service.core.pictures.picture import EncodedPicture
from service.core.pictures.segmenter import Segmentation, Segmenter, SegmenterLimits
from service.core.scheduling.dispatcher import Dispatcher

IDS_HW = np.random.default_rng(5).integers(0, 4, (7, 9), np.uint8).repeat(24, 0).repeat(24, 1)
IMAGE_HW3 = picture_of(IDS_HW)
PICTURE = encoded(IMAGE_HW3)
TILES_64 = tile_protocol(64, None)
NUM_TILES = 4 * 5


class Site:
    """A segmenter and the one model that answers it."""

    def __init__(self, host: ModelHost, dispatcher: Dispatcher, segmenter: Segmenter) -> None:
        self.model = host.find()
        self.queue = dispatcher
        self._segmenter = segmenter

    def segment(self, picture: bytes, **options: Any) -> AbstractAsyncContextManager[Segmentation]:
        options = {"deadline_s": time.monotonic() + PATIENCE_S, **options}
        return self._segmenter.segment(self.model, EncodedPicture(picture), lambda one: one, **options)

    async def labels(self, picture: bytes = PICTURE, **options: Any) -> Segmentation:
        async with self.segment(picture, **options) as segmentation:
            return segmentation


Open = Callable[..., Site]


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))

        def open_site(
            engine: FakeEngine, limits: SegmenterLimits | None = None, *, max_waiting: int = 256
        ) -> Site:
            device = Device(lambda *_: engine, EngineOptions("cpu", "f32", tmp_path / "cache"))
            dispatcher = Dispatcher(InProcessRunner(device), max_waiting=max_waiting)
            host = ModelHost(dispatcher)
            stack.callback(host.close)
            host.load(ModelVersion("fake", 1), Artifact(Path("nowhere"), FAKE_MANIFEST))
            return Site(host, dispatcher, Segmenter(pool, limits))

        yield open_site


@pytest.mark.parametrize("tile", [32, 64, 96, 512])
async def test_the_labels_are_those_of_the_slide_protocol(open_site: Open, tile: int) -> None:
    engine = FakeEngine()
    answer = await open_site(engine).labels(tiles=tile_protocol(tile, None))
    slide = find_protocol("slide").with_crop(tile)
    expected_HW = network_passes.segment(IMAGE_HW3, slide, FakeEngine().infer, FAKE_MANIFEST)
    assert np.array_equal(answer.label_map.ids_HW, expected_HW)
    assert np.mean(answer.label_map.ids_HW == IDS_HW) > 0.7  # borders of cells are blended
    assert answer.inference_size.shape == IDS_HW.shape
    assert {shape[0] for shape in engine.seen} == {1}
    assert max(max(shape[1:3]) for shape in engine.seen) <= max(tile, 224)


async def test_the_time_of_all_tiles_is_told(open_site: Open) -> None:
    began_s = time.monotonic()
    timings = (await open_site(FakeEngine()).labels(tiles=TILES_64)).timings
    assert min(timings.queue_s, timings.infer_s, timings.post_s) > 0
    assert timings.queue_s + timings.infer_s + timings.post_s < time.monotonic() - began_s


def test_the_default_overlap_is_that_of_evaluations() -> None:
    assert tile_protocol(1024, None) == find_protocol("slide") == FULL_DETAIL
    assert tile_protocol(1024, 0.25).advance == Fraction(3, 4)


def test_the_side_of_a_tile_is_a_multiple_of_32() -> None:
    with pytest.raises(ProtocolError, match="multiple of 32"):
        tile_protocol(1000, None)


async def test_pictures_of_others_are_answered_between_the_tiles(open_site: Open) -> None:
    engine = FakeEngine(held=True)
    site = open_site(engine)
    small = encoded(np.zeros((32, 32, 3), np.uint8))
    large_task = asyncio.create_task(site.labels(tiles=TILES_64, source="large"))
    await asyncio.to_thread(engine.wait_until_busy)
    small_task = asyncio.create_task(site.labels(small, source="small"))
    await until(lambda: site.queue.num_waiting == NUM_TILES)
    engine.go_on(2 + 1)
    await small_task
    assert not large_task.done()
    engine.go_on(NUM_TILES)
    await large_task
    assert (1, 32, 32, 3) in engine.seen[:3]


async def test_each_tile_has_its_place_in_the_queue_until_the_client_leaves(open_site: Open) -> None:
    engine = FakeEngine(held=True)
    site = open_site(engine)
    request = asyncio.create_task(site.labels(tiles=TILES_64))
    await asyncio.to_thread(engine.wait_until_busy)
    assert site.queue.num_waiting == NUM_TILES - 1
    request.cancel()
    await asyncio.wait([request])
    await until(lambda: site.queue.num_waiting == 0)
    engine.go_on()
    assert len(engine.seen) == 1


async def test_one_deadline_bounds_all_tiles(open_site: Open) -> None:
    engine = FakeEngine(held=True)
    site = open_site(engine)
    engine.go_on(3)
    with pytest.raises(DeadlineExceededError):
        await site.labels(tiles=TILES_64, deadline_s=time.monotonic() + 0.5)
    await until(lambda: site.queue.num_waiting == 0)
    engine.go_on()


async def test_a_picture_with_more_tiles_than_may_ever_wait_is_refused_before_it_is_read(
    open_site: Open,
) -> None:
    engine = FakeEngine()
    with pytest.raises(TooManyPixelsError, match=r"has 20 tiles.*limits\.max_waiting"):
        await open_site(engine, max_waiting=19).labels(tiles=TILES_64)
    assert not engine.seen


async def test_a_picture_whose_tiles_find_too_few_places_is_refused_as_a_whole(open_site: Open) -> None:
    engine = FakeEngine(held=True)
    site = open_site(engine, max_waiting=30)
    first = asyncio.create_task(site.labels(tiles=TILES_64))
    await asyncio.to_thread(engine.wait_until_busy)
    with pytest.raises(QueueFullError, match="has 20 tiles, and only 11 of them"):
        await site.labels(tiles=TILES_64)
    assert site.queue.num_waiting == NUM_TILES - 1
    engine.go_on(NUM_TILES)
    await first


async def test_scores_beyond_the_memory_of_all_pictures_are_refused(open_site: Open) -> None:
    engine = FakeEngine()
    limits = SegmenterLimits(max_pixels_in_flight=2 * IDS_HW.size)
    answer = await open_site(engine, limits).labels(tiles=TILES_64)
    assert answer.label_map.ids_HW.shape == IDS_HW.shape
    with pytest.raises(TooManyPixelsError, match=r"168x216 pixels in tiles.*limits\.max_pixels_in_flight"):
        await open_site(engine, limits).labels(tiles=tile_protocol(64, 0.9))


async def test_scores_that_are_not_finite_are_an_error(open_site: Open) -> None:
    def nonsense(images_NHW3: ImageBatch) -> Float32Array:
        count, height, width = images_NHW3.shape[:3]
        return np.full((count, 4, height // 8, width // 8), np.nan, np.float32)

    with pytest.raises(ModelOutputInvalidError, match="not finite"):
        await open_site(FakeEngine(answer=nonsense)).labels(tiles=TILES_64)


async def test_a_tile_that_does_not_fit_into_the_device_ends_the_picture(open_site: Open) -> None:
    def too_large(_: ImageBatch) -> Float32Array:
        raise DeviceMemoryError("out of memory")

    site = open_site(FakeEngine(answer=too_large))
    with pytest.raises(BusyError, match="the device has no memory"):
        await site.labels(tiles=TILES_64)
    assert site.queue.num_waiting == 0


async def test_a_picture_in_tiles_is_out_of_memory_when_its_request_is_over(
    open_site: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = PictureWatch(monkeypatch)
    engine = FakeEngine(held=True)
    site = open_site(engine)
    with no_garbage_collector():
        engine.go_on(2)
        with pytest.raises(DeadlineExceededError):
            await site.labels(tiles=TILES_64, deadline_s=time.monotonic() + 0.5)
        engine.go_on()
        await watch.wait_until_gone()
