"""``POST /v1/segment`` over the real application: pictures, answers, refusals."""

from __future__ import annotations

import asyncio
import base64
import re
import threading
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
import pytest_asyncio
from fakes import FAKE_MANIFEST, PATIENCE_S, FakeEngine, PictureWatch, no_garbage_collector, red_scores
from http_site import Site, encoded, open_site, picture_of
from PIL import Image
from starlette.types import Message

from model.artifacts.manifest import ModelVersion
from model.decoding.confidence import confidence
from model.evaluation import network_passes
from model.evaluation.protocols import find_protocol
from model.labels import LabelMap, UInt8Array
from model.pictures.image import ImageLimits
from model.pictures.preprocess import ImageSize
from service.core.device.engine import Float32Array, ImageBatch
from service.core.pictures import codec
from service.core.pictures.segmenter import SegmenterLimits
from service.http_api.app import HttpOptions
from service.http_api.segment.body import BodyLimits
from service.http_api.segment.intake import SegmentOptions

PALETTE = FAKE_MANIFEST.palette
IDS_HW = np.array([[0, 1, 2], [3, 3, 1]], np.uint8).repeat(16, axis=0).repeat(24, axis=1)
IMAGE_HW3 = picture_of(IDS_HW)
PICTURE = encoded(IMAGE_HW3)


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    async with open_site() as site:
        yield site


async def post(
    site: Site,
    content: bytes = PICTURE,
    path: str = "/v1/segment",
    accept: str | None = None,
    **query: Any,
) -> httpx2.Response:
    headers = {} if accept is None else {"Accept": accept}
    return await site.client.post(path, content=content, params=query, headers=headers)


def code_of(response: httpx2.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def served_labels(answer: bytes) -> UInt8Array:
    return np.asarray(Image.open(BytesIO(answer)))


async def expected_labels(site: Site) -> LabelMap:
    """The map as the service sees it: its borders are blended, so the test does not draw them itself."""
    response = await post(site, accept="application/x-npy", output="labels")
    return LabelMap(np.load(BytesIO(response.content)), PALETTE)


async def test_a_picture_comes_back_as_a_palette_png_of_its_own_size(site: Site) -> None:
    response = await post(site)
    mask = Image.open(BytesIO(response.content))
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert (mask.mode, mask.size) == ("P", (72, 32))
    assert mask.getpalette()[:12] == [value for color in PALETTE.colors for value in color]  # type: ignore[index]
    centres = np.ix_([8, 24], [12, 36, 60])  # borders are blended
    assert served_labels(response.content)[centres].tolist() == [[0, 1, 2], [3, 3, 1]]


async def test_labels_and_color_are_the_same_png(site: Site) -> None:
    assert (await post(site, output="labels")).content == (await post(site, output="color")).content


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 1), (31, 65)])
async def test_a_picture_of_any_size_is_answered_in_that_size(site: Site, size: tuple[int, int]) -> None:
    response = await post(site, encoded(np.zeros((*size, 3), np.uint8)))
    assert served_labels(response.content).shape == size


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
async def test_each_format_is_known_by_its_bytes_whatever_the_content_type_says(
    site: Site, image_format: str
) -> None:
    content = encoded(IMAGE_HW3, image_format)
    response = await site.client.post(
        "/v1/segment", content=content, headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert response.status_code == 200


async def test_a_form_is_answered_like_a_raw_body(site: Site) -> None:
    as_form = await site.client.post(
        "/v1/segment", files={"file": ("../x.jpg", PICTURE, "text/html")}, data={"note": "kept out"}
    )
    assert as_form.content == (await post(site)).content


@pytest.mark.parametrize(("output", "mode"), [("color", "P"), ("labels", "P"), ("overlay", "RGB")])
async def test_a_png_shows_what_was_asked_for(site: Site, output: str, mode: str) -> None:
    response = await post(site, accept="image/png", output=output)
    assert (response.headers["content-type"], Image.open(BytesIO(response.content)).mode) == (
        "image/png",
        mode,
    )


@pytest.mark.parametrize("output", ["color", "overlay"])
async def test_a_jpeg_shows_colours(site: Site, output: str) -> None:
    response = await post(site, accept="image/jpeg", output=output)
    picture = Image.open(BytesIO(response.content))
    assert (response.headers["content-type"], picture.format, picture.size) == (
        "image/jpeg",
        "JPEG",
        (72, 32),
    )


@pytest.mark.parametrize("output", ["labels", "color", "overlay"])
async def test_arrays_hold_ids_or_rgb_and_tell_their_size(site: Site, output: str) -> None:
    label_map = await expected_labels(site)
    expected = {
        "labels": label_map.ids_HW,
        "color": codec.colorize(label_map).pixels(),
        "overlay": codec.overlay(IMAGE_HW3, label_map, alpha=0.25).pixels(),
    }[output]
    npy = await post(site, accept="application/x-npy", output=output, alpha=0.25)
    raw = await post(site, accept="application/octet-stream", output=output, alpha=0.25)
    assert np.array_equal(np.load(BytesIO(npy.content)), expected)
    assert raw.content == expected.tobytes()
    assert (raw.headers["x-image-width"], raw.headers["x-image-height"]) == ("72", "32")


async def test_an_overlay_without_strength_is_the_picture(site: Site) -> None:
    response = await post(site, accept="application/octet-stream", output="overlay", alpha=0)
    assert response.content == IMAGE_HW3.tobytes()


async def test_json_counts_the_classes_and_carries_the_mask(site: Site) -> None:
    label_map = await expected_labels(site)
    document = (await post(site, accept="application/json")).json()
    assert (document["model"], document["version"]) == ("fake", 3)
    assert (document["width"], document["height"]) == (72, 32)
    assert [c["name"] for c in document["classes"]] == list(PALETTE.names)
    assert [tuple(c["color"]) for c in document["classes"]] == list(PALETTE.colors)
    assert [c["pixels"] for c in document["classes"]] == label_map.counts[:4].tolist()
    assert sum(c["fraction"] for c in document["classes"]) == pytest.approx(1)
    assert document["mask"]["encoding"] == "png"
    mask = base64.b64decode(document["mask"]["data"])
    assert np.array_equal(served_labels(mask), label_map.ids_HW)
    assert set(document["timings_ms"]) == {"receive", "decode", "queue", "infer", "post", "encode"}


async def test_json_carries_the_mask_as_run_lengths_or_not_at_all(site: Site) -> None:
    label_map = await expected_labels(site)
    as_runs = (await post(site, accept="application/json", mask="coco_rle")).json()["mask"]
    without = (await post(site, accept="application/json", mask="none")).json()["mask"]
    assert as_runs == {"encoding": "coco_rle", "data": codec.coco_rle(label_map)}
    assert without == {"encoding": "none", "data": None}


def expected_confidence(label_map: LabelMap) -> UInt8Array:
    """As the service sees it, from the scores of the fake engine."""
    padded_HW3 = np.zeros((32, 96, 3), np.uint8)
    padded_HW3[:, :72] = IMAGE_HW3
    size, content = ImageSize(32, 96), ImageSize(32, 72)
    return confidence(
        red_scores(padded_HW3[np.newaxis])[0],
        label_map.ids_HW,
        upsample="bilinear",
        stride=8,
        padded=size,
        content=content,
        original=content,
    )


async def test_the_mean_confidence_of_each_class_is_told_on_request(site: Site) -> None:
    label_map = await expected_labels(site)
    expected_HW = expected_confidence(label_map)
    document = (await post(site, confidence="mean")).json()
    means = [float(expected_HW[label_map.ids_HW == k].mean()) / 255 for k in range(4)]
    assert [c["confidence"] for c in document["classes"]] == pytest.approx(means)
    assert document["confidence"] is None
    alone = (await post(site, confidence="mean", classes="white")).json()["classes"]
    assert [c["confidence"] for c in alone] == [None, None, None, pytest.approx(means[3])]


async def test_the_confidence_of_each_pixel_is_a_grey_png_on_request(site: Site) -> None:
    label_map = await expected_labels(site)
    document = (await post(site, confidence="png", mask="none")).json()
    assert document["confidence"]["encoding"] == "png"
    levels = Image.open(BytesIO(base64.b64decode(document["confidence"]["data"])))
    assert levels.mode == "L"
    assert np.array_equal(np.asarray(levels), expected_confidence(label_map))
    assert all(c["confidence"] > 0 for c in document["classes"])


async def test_confidence_is_not_told_unless_it_is_asked_for(site: Site) -> None:
    document = (await post(site, accept="application/json")).json()
    assert document["confidence"] is None
    assert {c["confidence"] for c in document["classes"]} == {None}


async def test_confidence_needs_a_json_answer(site: Site) -> None:
    response = await post(site, accept="image/png", confidence="mean")
    assert code_of(response) == (406, "not_acceptable")
    assert response.json()["detail"] == "an answer with confidence is one of application/json"
    assert code_of(await post(site, confidence="all")) == (400, "invalid_argument")


@pytest.mark.parametrize("classes", [["1,white"], ["dark", "3"], [" 1 , 3 "]])
async def test_only_the_wanted_classes_are_kept(site: Site, classes: list[str]) -> None:
    label_map = await expected_labels(site)
    response = await post(site, accept="application/x-npy", output="labels", classes=classes)
    kept = np.load(BytesIO(response.content))
    assert np.array_equal(kept, label_map.keep(frozenset({1, 3})).ids_HW)
    assert 255 in kept


async def test_an_answer_tells_who_made_it_and_where_the_time_went(site: Site) -> None:
    headers = (await post(site)).headers
    assert (headers["x-model-name"], headers["x-model-version"]) == ("fake", "3")
    stages = re.findall(r"(\w+);dur=[0-9.]+", headers["server-timing"])
    assert stages == ["receive", "decode", "queue", "infer", "post", "encode"]
    assert "x-inference-size" not in headers
    assert "x-image-width" not in headers


async def test_a_large_picture_is_reduced_before_the_network_and_answered_in_its_own_size() -> None:
    async with open_site(limits=SegmenterLimits(max_infer_pixels=1024)) as site:
        response = await post(site)
        assert response.headers["x-inference-size"] == "21x48"
        assert served_labels(response.content).shape == IDS_HW.shape
        assert site.engine.seen == [(1, 32, 64, 3)]


async def test_full_detail_is_what_evaluations_by_slide_give_and_nothing_is_reduced() -> None:
    ids_HW = np.random.default_rng(1).integers(0, 4, (150, 190), np.uint8).repeat(8, 0).repeat(8, 1)
    image_HW3 = picture_of(ids_HW)
    async with open_site(limits=SegmenterLimits(max_infer_pixels=1024)) as site:
        response = await post(site, encoded(image_HW3), output="labels", detail="full")
        assert "x-inference-size" not in response.headers
        expected_HW = network_passes.segment(image_HW3, find_protocol("slide"), red_scores, FAKE_MANIFEST)
        assert np.array_equal(served_labels(response.content), expected_HW)
        assert site.engine.seen == [(1, 1024, 1024, 3)] * 4
        stages = re.findall(r"(\w+);dur=[0-9.]+", response.headers["server-timing"])
        assert stages == ["receive", "decode", "queue", "infer", "post", "encode"]


async def test_full_detail_with_confidence_is_refused_before_the_picture_is_received(site: Site) -> None:
    response = await post(site, b"", detail="full", confidence="mean")
    assert code_of(response) == (400, "invalid_argument")
    assert "detail=full gives no confidence" in response.json()["detail"]


async def test_full_detail_of_a_picture_with_too_many_tiles_says_what_to_do() -> None:
    async with open_site(max_waiting=3) as site:
        response = await post(site, encoded(np.zeros((1100, 1100, 3), np.uint8)), detail="full")
        assert code_of(response) == (413, "too_many_pixels")
        assert "has 4 tiles, and the queue has 3 places" in response.json()["detail"]
        assert not site.engine.seen


@pytest.mark.parametrize(
    ("path", "name", "version"),
    [
        ("/v1/models/other:segment", "other", "1"),
        ("/v1/models/fake/versions/3:segment", "fake", "3"),
        ("/v1/models/other/versions/1:segment", "other", "1"),
    ],
)
async def test_a_model_can_be_asked_by_name_and_version(
    site: Site, path: str, name: str, version: str
) -> None:
    response = await post(site, path=path)
    assert (response.status_code, response.headers["x-model-name"]) == (200, name)
    assert response.headers["x-model-version"] == version


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/models/none:segment", "model_not_found"),
        ("/v1/models/Bad%20Name:segment", "model_not_found"),
        ("/v1/models/none/versions/1:segment", "model_not_found"),
        ("/v1/models/fake/versions/4:segment", "version_not_found"),
        ("/v1/models/fake/versions/0:segment", "version_not_found"),
        ("/v1/models/fake/versions/latest:segment", "version_not_found"),
        (f"/v1/models/fake/versions/{'9' * 5000}:segment", "version_not_found"),
    ],
)
async def test_a_model_that_is_not_served_is_not_found(site: Site, path: str, code: str) -> None:
    assert code_of(await post(site, path=path)) == (404, code)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ({"colour": "1"}, "colour"),
        ({"output": "mask"}, "output"),
        ({"output": ""}, "output"),
        ({"output": ["labels", "color"]}, "output"),
        ({"alpha": "1.01"}, "alpha"),
        ({"alpha": "-0.1"}, "alpha"),
        ({"alpha": "nan"}, "alpha"),
        ({"alpha": "half"}, "alpha"),
        ({"mask": "rle"}, "mask"),
        ({"detail": "high"}, "detail"),
        ({"classes": "road"}, "classes"),
        ({"classes": "4"}, "classes"),
        ({"classes": "255"}, "classes"),
        ({"classes": ""}, "classes"),
        ({"classes": "1,,2"}, "classes"),
        ({"timeout_ms": "0"}, "timeout_ms"),
        ({"timeout_ms": "600001"}, "timeout_ms"),
        ({"timeout_ms": "1.5"}, "timeout_ms"),
        ({"timeout_ms": "soon"}, "timeout_ms"),
    ],
)
async def test_a_parameter_that_is_unknown_or_out_of_range_is_named(
    site: Site, query: dict[str, Any], name: str
) -> None:
    response = await post(site, **query)
    assert code_of(response) == (400, "invalid_argument")
    assert repr(name) in response.json()["detail"]


async def test_who_names_a_model_in_the_query_is_led_to_the_path(site: Site) -> None:
    response = await post(site, model="city")
    assert "/v1/models/{model}:segment" in response.json()["detail"]


@pytest.mark.parametrize("value", ["0", "600001", "-5", "1e3", "", "0000000000001", "soon"])
async def test_a_timeout_header_that_is_no_number_in_range_is_named(site: Site, value: str) -> None:
    response = await site.client.post("/v1/segment", content=PICTURE, headers={"X-Request-Timeout-Ms": value})
    assert code_of(response) == (400, "invalid_argument")
    assert "X-Request-Timeout-Ms" in response.json()["detail"]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"GIF89a" + bytes(50), 415, "unsupported_media"),
        (b"<svg/>", 415, "unsupported_media"),
        (b"%PDF-1.7", 415, "unsupported_media"),
        (PICTURE[:-30], 422, "undecodable_image"),
        (b"\xff\xd8\xff\xe0", 422, "undecodable_image"),
    ],
)
async def test_a_body_that_is_no_picture_is_refused_by_what_it_is(
    site: Site, content: bytes, status: int, code: str
) -> None:
    assert code_of(await post(site, content)) == (status, code)
    assert not site.engine.seen


async def test_a_picture_with_too_many_pixels_is_refused() -> None:
    async with open_site(limits=SegmenterLimits(image=ImageLimits(max_pixels=2303))) as site:
        assert code_of(await post(site)) == (413, "too_many_pixels")


async def test_a_body_over_the_limit_is_refused() -> None:
    options = HttpOptions(segment=SegmentOptions(body=BodyLimits(max_bytes=len(PICTURE) - 1)))
    async with open_site(options=options) as site:
        assert code_of(await post(site)) == (413, "payload_too_large")


async def test_a_body_that_does_not_arrive_is_given_up() -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"\x89PNG"
        await asyncio.Event().wait()

    options = HttpOptions(segment=SegmentOptions(body=BodyLimits(receive_timeout_s=0.001)))
    async with open_site(options=options) as site:
        response = await site.client.post("/v1/segment", content=stuck())
        assert code_of(response) == (408, "request_too_slow")
        assert "limits.receive_timeout_s" in response.json()["detail"]


async def test_a_compressed_body_is_refused(site: Site) -> None:
    response = await site.client.post("/v1/segment", content=PICTURE, headers={"Content-Encoding": "gzip"})
    assert code_of(response) == (415, "unsupported_media")


@pytest.mark.parametrize("files", [{"other": PICTURE}, [("file", PICTURE), ("file", PICTURE)]])
async def test_a_form_needs_exactly_one_file(site: Site, files: Any) -> None:
    assert code_of(await site.client.post("/v1/segment", files=files)) == (400, "invalid_argument")


@pytest.mark.parametrize(("accept", "output"), [("image/jpeg", "labels"), ("text/html", "color")])
async def test_what_cannot_be_represented_is_not_acceptable(site: Site, accept: str, output: str) -> None:
    assert code_of(await post(site, accept=accept, output=output)) == (406, "not_acceptable")
    assert not site.engine.seen


async def test_before_the_models_are_loaded_a_client_is_asked_to_come_back() -> None:
    async with open_site(versions=()) as site:
        response = await post(site)
        assert code_of(response) == (503, "loading")
        assert int(response.headers["retry-after"]) >= 1
        site.host.expect(ModelVersion("fake", 3))
        assert code_of(await post(site, path="/v1/models/fake:segment")) == (503, "loading")


async def test_an_answer_that_comes_too_late_is_a_gateway_timeout() -> None:
    engine = FakeEngine(held=True)
    in_header = {"X-Request-Timeout-Ms": "500"}  # long enough to reach the queue on a busy machine
    async with open_site(engine) as site:
        for late in await asyncio.gather(
            post(site, timeout_ms=500),
            site.client.post("/v1/segment", content=PICTURE, headers=in_header),
        ):
            assert code_of(late) == (504, "deadline_exceeded")
        engine.go_on(2)


async def test_the_timeout_of_the_query_wins_over_that_of_the_header(site: Site) -> None:
    response = await site.client.post(
        "/v1/segment?timeout_ms=600000", content=PICTURE, headers={"X-Request-Timeout-Ms": "1"}
    )
    assert response.status_code == 200


async def test_a_client_that_says_nothing_waits_as_long_as_the_service_thinks_right() -> None:
    async with open_site(options=HttpOptions(segment=SegmentOptions(default_timeout_s=1e-6))) as site:
        assert code_of(await post(site)) == (504, "deadline_exceeded")


async def test_a_full_waiting_room_refuses_with_advice() -> None:
    engine = FakeEngine(held=True)
    async with open_site(engine, max_waiting=1) as site:
        begun = asyncio.create_task(post(site))
        await asyncio.to_thread(engine.wait_until_busy)
        rivals = [asyncio.create_task(post(site)) for _ in range(2)]
        refused, _ = await asyncio.wait(rivals, return_when=asyncio.FIRST_COMPLETED)
        response = refused.pop().result()
        assert code_of(response) == (429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        engine.go_on(2)
        answered = [await task for task in (begun, *rivals)]
        assert sorted(r.status_code for r in answered) == [200, 200, 429]


async def test_what_has_no_place_is_refused_before_its_picture_is_received() -> None:
    engine = FakeEngine(held=True)
    received = []

    async def picture() -> AsyncIterator[bytes]:
        received.append(PICTURE)
        yield PICTURE

    async with open_site(engine, max_waiting=1) as site:
        begun = asyncio.create_task(post(site))
        await asyncio.to_thread(engine.wait_until_busy)
        waiting = asyncio.create_task(post(site))
        while not site.host._dispatcher.num_waiting:  # noqa: ASYNC110 - nothing tells when a request waits
            await asyncio.sleep(0)
        response = await site.client.post("/v1/segment", content=picture())
        engine.go_on(2)
        assert code_of(response) == (429, "queue_full")
        assert not received
        assert [(await task).status_code for task in (begun, waiting)] == [200, 200]


async def test_no_memory_for_another_picture_is_busy() -> None:
    engine = FakeEngine(held=True)
    async with open_site(engine, limits=SegmenterLimits(max_pixels_in_flight=IDS_HW.size)) as site:
        begun = asyncio.create_task(post(site))
        await asyncio.to_thread(engine.wait_until_busy)
        response = await post(site, timeout_ms=50)
        assert code_of(response) == (503, "busy")
        assert "retry-after" in response.headers
        engine.go_on()
        assert (await begun).status_code == 200


async def test_a_model_whose_scores_are_no_numbers_is_our_fault() -> None:
    async with open_site(FakeEngine(answer=not_finite)) as site:
        assert code_of(await post(site)) == (500, "model_output_invalid")


async def test_a_defect_is_answered_without_its_details() -> None:
    def broken(_images_NHW3: ImageBatch) -> Float32Array:
        raise RuntimeError("/secret/path: libfoo says no")

    async with open_site(FakeEngine(answer=broken)) as site:
        response = await post(site)
        assert code_of(response) == (500, "internal")
        assert "secret" not in response.text
        assert "libfoo" not in response.text


async def test_a_service_that_stops_tells_clients_to_go_elsewhere() -> None:
    async with open_site() as site:
        site.host.close()
        response = await post(site)
        assert code_of(response) == (503, "draining")


async def test_work_that_waits_is_withdrawn_when_its_client_leaves() -> None:
    engine = FakeEngine(held=True)
    async with open_site(engine) as site:
        begun = asyncio.create_task(post(site))
        await asyncio.to_thread(engine.wait_until_busy)
        leaver = Visitor()
        waiting = asyncio.ensure_future(site.app(leaver.scope, leaver.receive, leaver.send))
        await leaver.sent_everything.wait()
        leaver.leave.set()
        await waiting
        engine.go_on(2)
        assert (await begun).status_code == 200
        assert (await post(site)).status_code == 200
        assert len(engine.seen) == 2  # the first and the last; not the leaver's
    assert leaver.answer[0]["status"] == 499


class Visitor:
    """A client by hand: sends its picture, waits, and leaves when told to."""

    def __init__(self) -> None:
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/segment",
            "raw_path": b"/v1/segment",
            "query_string": b"",
            "headers": [],
        }
        self.sent_everything = asyncio.Event()
        self.leave = asyncio.Event()
        self.answer: list[Message] = []
        self._sent = False

    async def receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": PICTURE, "more_body": False}
        self.sent_everything.set()
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.answer.append(message)


async def test_the_event_loop_never_encodes(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    threads = []
    encode = codec.encode_palette_png

    def watched(label_map: LabelMap) -> bytes:
        threads.append(threading.current_thread())
        return encode(label_map)

    monkeypatch.setattr(codec, "encode_palette_png", watched)
    await asyncio.wait_for(post(site), PATIENCE_S)
    assert threads
    assert threading.main_thread() not in threads


def not_finite(images_NHW3: ImageBatch) -> Float32Array:
    return np.full_like(red_scores(images_NHW3), np.nan)


@pytest.mark.parametrize(
    ("engine", "status"),
    [(FakeEngine(), 200), (FakeEngine(held=True), 504), (FakeEngine(answer=not_finite), 500)],
    ids=["answered", "late", "failed"],
)
async def test_nothing_of_a_picture_waits_for_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, status: int
) -> None:
    watch = PictureWatch(monkeypatch)
    async with open_site(engine) as site:
        with no_garbage_collector():
            response = await post(site, timeout_ms=300 if status == 504 else 30_000)
            assert response.status_code == status
            engine.go_on()
            await watch.wait_until_gone()
