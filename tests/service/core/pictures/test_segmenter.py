from __future__ import annotations

import asyncio
import io
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest
from fakes import FAKE_MANIFEST, PATIENCE_S, FakeEngine, PictureWatch, no_garbage_collector, until
from PIL import Image

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.errors import ImageError
from model.evaluation import network_passes
from model.labels import UInt8Array
from model.pictures.image import ImageHeader, ImageLimits, decode_image
from model.pictures.preprocess import ImageSize
from service.core.device.device import Device
from service.core.device.engine import EngineOptions
from service.core.device.in_process import InProcessRunner
from service.core.errors import (
    BusyError,
    DeadlineExceededError,
    DrainingError,
    EmptyBodyError,
    InvalidArgumentError,
    QueueFullError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedMediaError,
)
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost
from service.core.pictures.passes import WholePass
from service.core.pictures.picture import IMAGE_ERRORS, EncodedPicture, Picture, RawPicture
from service.core.pictures.segmenter import Segmentation, Segmenter, SegmenterLimits, bytes_needed
from service.core.scheduling.dispatcher import Answer, Dispatcher, Reservation

CITY_1 = ModelVersion("city", 1)
T = TypeVar("T")
SHORT_S = 0.5  # long enough to read a small picture on a busy machine


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    network_passes.warm_up()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def held() -> FakeEngine:
    return FakeEngine(held=True)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


class Site:
    """A segmenter and the one model that answers it."""

    def __init__(self, host: ModelHost, segmenter: Segmenter) -> None:
        self.model = host.find()
        self.segmenter = segmenter
        self.queue = host._dispatcher._scheduler

    def segment(
        self, picture: bytes | Picture, render: Callable[[Segmentation], T], **options: Any
    ) -> AbstractAsyncContextManager[T]:
        source = EncodedPicture(picture) if isinstance(picture, bytes) else picture
        return self.segmenter.segment(self.model, source, render, **options)


MakeSite = Callable[..., Site]


@pytest.fixture
def make(pool: ThreadPoolExecutor, tmp_path: Path) -> Iterator[MakeSite]:
    hosts = []

    def make(engine: FakeEngine, limits: SegmenterLimits | None = None) -> Site:
        options = EngineOptions("cpu", "auto", tmp_path / "cache")
        host = ModelHost(Dispatcher(InProcessRunner(Device(lambda *_: engine, options))))
        host.load(CITY_1, Artifact(Path("nowhere"), FAKE_MANIFEST))
        hosts.append(host)
        return Site(host, Segmenter(pool, limits))

    yield make
    for host in hosts:
        host.close()


def soon() -> float:
    return time.monotonic() + PATIENCE_S


def itself(segmentation: Segmentation) -> Segmentation:
    """Encode nothing."""
    return segmentation


def png(height: int, width: int, value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (33, 50), (64, 96)])
async def test_a_picture_of_any_size_is_answered_at_its_own_size(
    make: MakeSite, engine: FakeEngine, size: tuple[int, int]
) -> None:
    async with make(engine).segment(png(*size, value=170), itself, deadline_s=soon()) as answer:
        assert answer.label_map.ids_HW.shape == size
        assert answer.image_HW3.shape == (*size, 3)
        assert (answer.image_HW3 == [170, 0, 0]).all()
        assert answer.inference_size == ImageSize(*size)
    assert answer.version == CITY_1
    assert answer.label_map.palette is FAKE_MANIFEST.palette


async def test_labels_belong_to_the_picture(make: MakeSite, engine: FakeEngine) -> None:
    site = make(engine)

    async def label(value: int) -> int:
        async with site.segment(png(32, 32, value), itself, deadline_s=soon()) as answer:
            return int(answer.label_map.ids_HW[0, 0])

    assert await asyncio.gather(*(label(85 * k) for k in (3, 0, 2, 1))) == [3, 0, 2, 1]


async def test_a_large_picture_is_reduced_for_the_network_only(make: MakeSite, engine: FakeEngine) -> None:
    site = make(engine, SegmenterLimits(max_infer_pixels=64 * 64))
    async with site.segment(png(128, 128), itself, deadline_s=soon()) as answer:
        assert answer.inference_size == ImageSize(64, 64)
        assert answer.label_map.ids_HW.shape == (128, 128)
    assert engine.seen == [(1, 64, 64, 3)]


async def test_each_stage_is_timed(make: MakeSite, engine: FakeEngine) -> None:
    began_s = time.monotonic()
    async with make(engine).segment(png(64, 64), itself, deadline_s=soon()) as answer:
        timings = answer.timings
    stages = (timings.decode_s, timings.preprocess_s, timings.queue_s, timings.infer_s, timings.post_s)
    assert all(stage >= 0 for stage in stages)
    assert 0 < sum(stages) <= time.monotonic() - began_s


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyBodyError),
        (b"GIF89a...", UnsupportedMediaError),
        (png(32, 32)[:60], UndecodableImageError),
        (png(32, 33), TooManyPixelsError),
    ],
)
async def test_bytes_that_are_no_picture_never_reach_the_engine(
    make: MakeSite, engine: FakeEngine, data: bytes, error: type[Exception]
) -> None:
    limits = SegmenterLimits(image=ImageLimits(max_pixels=32 * 32))
    with pytest.raises(error):
        async with make(engine, limits).segment(data, itself, deadline_s=soon()):
            pass
    assert engine.seen == []


def test_every_error_of_a_picture_has_a_name_of_the_service() -> None:
    assert set(IMAGE_ERRORS) == set(ImageError.__subclasses__())


async def in_thread(call: Callable[[], object]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, call)


async def test_a_deadline_that_passes_in_the_engine_is_answered_without_waiting_for_it(
    make: MakeSite, held: FakeEngine
) -> None:
    with pytest.raises(DeadlineExceededError):
        async with make(held).segment(png(32, 32), itself, deadline_s=time.monotonic() + 0.05):
            pass
    held.go_on()


async def test_a_deadline_in_the_past_is_exceeded_before_the_picture_is_read(
    make: MakeSite, engine: FakeEngine
) -> None:
    with pytest.raises(DeadlineExceededError):
        async with make(engine).segment(png(32, 32), itself, deadline_s=time.monotonic() - 1):
            pass
    assert engine.seen == []


async def test_a_request_that_finds_no_place_is_refused_before_its_picture_is_read(
    make: MakeSite, engine: FakeEngine
) -> None:
    site = make(engine)
    broken = png(64, 64)[:-20]
    reservations = [site.model.reserve(ImageSize(64, 64), deadline_s=soon()) for _ in range(256)]
    with pytest.raises(QueueFullError):
        async with site.segment(broken, itself, deadline_s=soon()):
            pass
    for reservation in reservations:
        reservation.future.cancel()
    for _ in range(300):  # a request that fails gives its place back
        with pytest.raises(UndecodableImageError):
            async with site.segment(broken, itself, deadline_s=soon()):
                pass


@pytest.mark.parametrize(("encode_s", "kept_s"), [(5.0, 5.0), (1e6, PATIENCE_S / 2)])
async def test_labels_are_wanted_as_long_before_the_deadline_as_encoding_takes(
    make: MakeSite,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    encode_s: float,
    kept_s: float,
) -> None:
    site = make(engine)
    site.segmenter._rendering.learn(pixels=64 * 64, duration_s=encode_s)
    deadlines_s = []

    def reserve(*_: object, deadline_s: float, **__: object) -> Reservation:
        deadlines_s.append(deadline_s)
        raise QueueFullError("that was all to be known")

    monkeypatch.setattr(LoadedModel, "reserve", reserve)
    wanted_s = soon()
    with pytest.raises(QueueFullError):
        async with site.segment(png(64, 64), itself, deadline_s=wanted_s):
            pass
    assert wanted_s - deadlines_s[0] == pytest.approx(kept_s, abs=1.0)


async def test_how_long_encoding_takes_is_learnt(make: MakeSite, engine: FakeEngine) -> None:
    site = make(engine)

    def encode(_: Segmentation) -> str:
        threading.Event().wait(0.05)
        return "encoded"

    async with site.segment(png(64, 64), encode, deadline_s=soon()) as answer:
        assert answer == "encoded"
    assert 0.05 <= site.segmenter._rendering.kept_s(64 * 64, soon()) < PATIENCE_S / 2


async def test_what_threads_work_on_a_picture_is_counted(make: MakeSite, engine: FakeEngine) -> None:
    site = make(engine)

    def encode(_: Segmentation) -> None:
        until_s = time.thread_time() + 0.01
        while time.thread_time() < until_s:
            pass

    async with site.segment(png(64, 64), encode, deadline_s=soon()):
        pass
    text = site.segmenter._metrics.exposition()[0].decode()
    spent_s = dict(re.findall(r'bisenet_picture_cpu_seconds_total{stage="(.*)"} (.*)', text))
    assert float(spent_s["encode"]) >= 0.01
    assert 0 < float(spent_s["decode"]) < 1


async def test_labels_that_are_there_by_the_deadline_are_encoded_after_it(
    make: MakeSite, engine: FakeEngine
) -> None:
    site = make(engine)
    deadline_s = time.monotonic() + SHORT_S
    too_late = threading.Event()  # never set

    def encode(_: Segmentation) -> str:
        too_late.wait(deadline_s + 0.05 - time.monotonic())
        return "late"

    async with site.segment(png(32, 32), encode, deadline_s=deadline_s) as answer:
        assert answer == "late"
        assert time.monotonic() > deadline_s


async def test_an_answer_that_cannot_be_encoded_raises_what_encoding_raised(
    make: MakeSite, engine: FakeEngine
) -> None:
    site = make(engine, SegmenterLimits(max_pixels_in_flight=64 * 64))

    def encode(_: Segmentation) -> str:
        raise OSError("disk full")

    for _ in range(2):  # the second one finds the memory of the first one free
        with pytest.raises(OSError, match="disk full"):
            async with site.segment(png(64, 64), encode, deadline_s=soon()):
                pass


async def test_the_user_hears_when_the_device_is_done_before_the_answer_is_encoded(
    make: MakeSite, engine: FakeEngine
) -> None:
    heard: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    is_encoding, go_on = threading.Event(), threading.Event()

    def encode(_: Segmentation) -> bool:
        is_encoding.set()
        return go_on.wait(PATIENCE_S)

    site = make(engine)

    async def segment() -> bool:
        async with site.segment(png(32, 32), encode, deadline_s=soon(), labelled=heard.set_result) as answer:
            return answer

    running = asyncio.create_task(segment())
    async with asyncio.timeout(PATIENCE_S):
        assert (await heard).labels_HW.shape == (32, 32)
    await in_thread(lambda: is_encoding.wait(PATIENCE_S))
    assert not running.done()
    go_on.set()
    assert await running


async def test_a_picture_that_waits_for_memory_goes_on_when_there_is_some(
    make: MakeSite, engine: FakeEngine
) -> None:
    site = make(engine, SegmenterLimits(max_pixels_in_flight=64 * 64))

    async def label(value: int) -> int:
        async with site.segment(png(64, 64, value), itself, deadline_s=soon()) as answer:
            return int(answer.label_map.ids_HW[0, 0])

    assert await asyncio.gather(*(label(85 * (k % 4)) for k in range(16))) == [k % 4 for k in range(16)]


async def test_when_the_pool_is_closed_the_service_is_about_to_stop(
    make: MakeSite, engine: FakeEngine, pool: ThreadPoolExecutor
) -> None:
    site = make(engine)
    pool.shutdown()
    with pytest.raises(DrainingError):
        async with site.segment(png(32, 32), itself, deadline_s=soon()):
            pass


async def test_who_leaves_while_a_place_is_reserved_gives_it_back_and_nothing_is_read(
    make: MakeSite, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make(engine)
    reserving, go_on = threading.Event(), threading.Event()
    reserve = LoadedModel.reserve

    def slow_reserve(*arguments: Any, **keywords: Any) -> Reservation:
        reservation = reserve(*arguments, **keywords)
        reserving.set()
        assert go_on.wait(PATIENCE_S)
        return reservation

    read: list[bytes] = []
    monkeypatch.setattr(LoadedModel, "reserve", slow_reserve)
    monkeypatch.setattr("service.core.pictures.picture.decode_image", lambda data, _limits: read.append(data))

    async def segment() -> None:
        async with site.segment(png(32, 32), itself, deadline_s=soon()):
            pass

    leaving = asyncio.create_task(segment())
    await in_thread(lambda: reserving.wait(PATIENCE_S))
    leaving.cancel()
    await asyncio.wait([leaving])
    assert len(site.queue) == 1
    go_on.set()
    await until(lambda: not site.queue)
    assert not read


async def test_the_file_of_a_picture_that_is_given_up_does_not_wait_for_the_device(
    make: MakeSite, held: FakeEngine
) -> None:
    site, data = make(held), png(32, 32)
    references = sys.getrefcount(data)
    with no_garbage_collector():
        with pytest.raises(DeadlineExceededError):
            async with site.segment(data, itself, deadline_s=time.monotonic() + SHORT_S):
                pass
        await until(lambda: sys.getrefcount(data) == references)
    held.go_on()


async def test_a_cancelled_request_withdraws_its_picture(make: MakeSite, held: FakeEngine) -> None:
    site = make(held)

    async def request() -> None:
        async with site.segment(png(32, 32), itself, deadline_s=soon()):
            pass

    running = asyncio.ensure_future(request())
    await in_thread(held.wait_until_busy)
    waiting = asyncio.ensure_future(request())
    await until(lambda: bool(site.queue))
    waiting.cancel()
    await asyncio.wait([waiting])
    await until(lambda: not site.queue)
    held.go_on()
    await running
    assert len(held.seen) == 1


async def test_pixels_count_as_in_flight_until_the_answer_is_encoded(
    make: MakeSite, engine: FakeEngine
) -> None:
    site = make(engine, SegmenterLimits(max_pixels_in_flight=64 * 64))
    async with site.segment(png(64, 64), itself, deadline_s=soon()):
        with pytest.raises(BusyError):
            async with site.segment(png(64, 64), itself, deadline_s=time.monotonic() + SHORT_S):
                pass
    async with site.segment(png(64, 64), itself, deadline_s=soon()) as answer:
        assert answer.version == CITY_1


async def test_small_pictures_are_answered_while_large_ones_wait_for_memory(
    make: MakeSite, engine: FakeEngine
) -> None:
    site = make(engine, SegmenterLimits(max_pixels_in_flight=256 * 256))

    async def large() -> None:
        async with site.segment(png(256, 256), itself, deadline_s=soon()):
            pass

    async with site.segment(png(256, 256), itself, deadline_s=soon()):
        crowd = [asyncio.create_task(large()) for _ in range(8)]
        for _ in range(8):
            async with site.segment(png(16, 16), itself, deadline_s=soon()) as answer:
                assert answer.label_map.ids_HW.shape == (16, 16)
        assert not any(task.done() for task in crowd)
    await asyncio.gather(*crowd)


@pytest.mark.parametrize(
    ("decode_bytes", "side", "encode_bytes", "expected"),
    [
        (4, 1024, 1, 5 + 0.75 + 1),  # the network sees a quarter
        (4, 1024, 5, 5 + 0.75 + 5),
        (4, 512, 1, 5 + 3 + 1),
        (4, 512, 5, 5 + 3 + 5),
        (12, 1000, 1, 12),
    ],
)
def test_a_picture_costs_what_its_dearest_moment_takes(
    decode_bytes: int, side: int, encode_bytes: int, expected: int
) -> None:
    header = ImageHeader(ImageSize(side, side), decode_bytes * side * side)
    model = cast("LoadedModel", None)  # it only answers pictures
    whole = WholePass(model, header.size, max_infer_pixels=512 * 512, confidence=False)
    assert bytes_needed(header, whole.network_bytes, encode_bytes) == expected * side * side


async def test_pixels_of_an_abandoned_picture_count_until_its_thread_lets_go(
    make: MakeSite, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make(engine, SegmenterLimits(max_pixels_in_flight=64 * 64))
    reading, go_on = threading.Event(), threading.Event()

    def slow_decode(data: bytes, limits: ImageLimits) -> UInt8Array:
        reading.set()
        assert go_on.wait(PATIENCE_S)
        return decode_image(data, limits)

    monkeypatch.setattr("service.core.pictures.picture.decode_image", slow_decode)

    async def segment(deadline_s: float) -> None:
        async with site.segment(png(64, 64), itself, deadline_s=deadline_s):
            pass

    abandoned = asyncio.ensure_future(segment(soon()))
    await in_thread(lambda: reading.wait(PATIENCE_S))
    abandoned.cancel()
    await asyncio.wait([abandoned])
    with pytest.raises(BusyError):
        await segment(time.monotonic() + SHORT_S)
    go_on.set()
    await segment(soon())


def test_a_picture_that_is_read_after_the_end_of_the_service_does_no_harm(
    make: MakeSite,
    engine: FakeEngine,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = make(engine)
    reading, go_on = threading.Event(), threading.Event()

    def slow_decode(data: bytes, limits: ImageLimits) -> UInt8Array:
        reading.set()
        assert go_on.wait(PATIENCE_S)
        return decode_image(data, limits)

    monkeypatch.setattr("service.core.pictures.picture.decode_image", slow_decode)

    async def segment() -> None:
        async with site.segment(png(64, 64), itself, deadline_s=soon()):
            pass

    async def leave_early() -> None:
        request = asyncio.create_task(segment())
        await in_thread(lambda: reading.wait(PATIENCE_S))
        request.cancel()
        await asyncio.wait([request])

    asyncio.run(leave_early())
    go_on.set()
    pool.shutdown()
    assert not caplog.records
    assert not site.queue
    assert not site.segmenter._budget.used_bytes


@pytest.mark.parametrize("in_time", [True, False])
async def test_a_picture_is_out_of_memory_when_its_request_is_over(
    make: MakeSite,
    engine: FakeEngine,
    held: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    *,
    in_time: bool,
) -> None:
    watch = PictureWatch(monkeypatch)
    site = make(engine if in_time else held)
    with no_garbage_collector():
        with nullcontext() if in_time else pytest.raises(DeadlineExceededError):
            async with site.segment(png(64, 64), itself, deadline_s=time.monotonic() + SHORT_S):
                pass
        held.go_on()
        await watch.wait_until_gone()


RED_HW3 = np.full((32, 64, 3), (170, 3, 9), np.uint8)
RED_SIZE = ImageSize(32, 64)


@pytest.mark.parametrize(("step", "bgr"), [(1, False), (-1, True)])
async def test_pixels_are_answered_like_the_picture_they_are(
    make: MakeSite, engine: FakeEngine, step: int, *, bgr: bool
) -> None:
    data = np.ascontiguousarray(RED_HW3[..., ::step]).tobytes()
    async with make(engine).segment(RawPicture(data, RED_SIZE, bgr), itself, deadline_s=soon()) as answer:
        assert np.array_equal(answer.image_HW3, RED_HW3)
        assert set(np.unique(answer.label_map.ids_HW)) == {2}
        assert answer.version == CITY_1


@pytest.mark.parametrize(
    ("data", "size", "error"),
    [
        (b"", RED_SIZE, EmptyBodyError),
        (bytes(32 * 64 * 3 - 1), RED_SIZE, InvalidArgumentError),
        (bytes(32 * 64 * 3 + 1), RED_SIZE, InvalidArgumentError),
        (bytes(32 * 64 * 4), RED_SIZE, InvalidArgumentError),
        (bytes(3 * 65), ImageSize(1, 65), TooManyPixelsError),
        (bytes(3), ImageSize(2**31, 2**31), TooManyPixelsError),
    ],
)
async def test_pixels_that_do_not_fit_their_size_reach_no_thread(
    make: MakeSite, engine: FakeEngine, data: bytes, size: ImageSize, error: type[Exception]
) -> None:
    site = make(engine, SegmenterLimits(image=ImageLimits(max_side=64)))
    with pytest.raises(error):
        async with site.segment(RawPicture(data, size), itself, deadline_s=soon()):
            pass
    assert not engine.seen


async def test_pixels_wait_for_memory_like_any_picture(make: MakeSite, engine: FakeEngine) -> None:
    site = make(engine, SegmenterLimits(max_pixels_in_flight=32 * 64))
    data = RED_HW3.tobytes()
    async with site.segment(RawPicture(data, RED_SIZE), itself, deadline_s=soon()):
        with pytest.raises(BusyError):
            async with site.segment(
                RawPicture(data, RED_SIZE), itself, deadline_s=time.monotonic() + SHORT_S
            ):
                pass
