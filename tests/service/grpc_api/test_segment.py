"""Single pictures over gRPC."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc
import msgspec
import numpy as np
import pytest
from fakes import PATIENCE_S, FakeEngine, key_ring, until
from grpc_site import GrpcSite, details_of, open_grpc_site, reason_of
from http_site import FAKE_VERSIONS, encoded, picture_of
from PIL import Image

from model.labels import UInt8Array
from model.pictures.image import ImageLimits
from service.core.keys.access_key import AccessKey, Scope
from service.core.keys.key_ring import KeyRing
from service.core.pictures.segmenter import SegmenterLimits
from service.grpc_api.servicer import ServicerOptions
from service.wire import segmentation_pb2 as wire

IDS_hw = np.repeat(np.repeat(np.array([[0, 1, 2], [3, 2, 1]], np.uint8), 2, 0), 2, 1)
IMAGE_HW3 = picture_of(np.repeat(np.repeat(IDS_hw, 8, 0), 8, 1))
PICTURE = encoded(IMAGE_HW3)
KEY = "a-key-of-a-client"


@pytest.fixture
async def site() -> AsyncIterator[GrpcSite]:
    async with open_grpc_site() as site:
        yield site


def request(mask: int = wire.RAW, **changes: object) -> wire.SegmentRequest:
    fields = {"image": wire.Image(data=PICTURE), "mask": mask, **changes}
    return wire.SegmentRequest(**fields)  # type: ignore[arg-type]


def ids_of(mask: wire.Mask) -> UInt8Array:
    """Return one id of each 8x8 cell: between cells the model interpolates."""
    return np.frombuffer(mask.data, np.uint8).reshape(mask.height, mask.width)[4::8, 4::8]


async def refusal(site: GrpcSite, message: wire.SegmentRequest, **options: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.stub.Segment(message, timeout=PATIENCE_S, **options)
    return caught.value


async def test_a_picture_gets_its_mask_its_model_and_its_timings(site: GrpcSite) -> None:
    response = await site.stub.Segment(request(), timeout=PATIENCE_S)
    assert np.array_equal(ids_of(response.mask), IDS_hw)
    assert (response.mask.encoding, response.mask.width, response.mask.height) == (wire.RAW, 48, 32)
    assert (response.model, response.version) == ("fake", 3)
    assert response.timings.decode_ms > 0
    assert response.timings.batch_size == 1


async def test_the_same_picture_gets_the_same_bytes_as_over_http(site: GrpcSite) -> None:
    response = await site.stub.Segment(request(wire.PNG), timeout=PATIENCE_S)
    over_http = await site.site.client.post("/v1/segment", content=PICTURE)
    assert response.mask.data == over_http.content


async def test_the_confidence_is_that_of_http(site: GrpcSite) -> None:
    over_http = await site.site.client.post("/v1/segment?confidence=png", content=PICTURE)
    shares = [share for share in over_http.json()["classes"] if share["pixels"]]
    response = await site.stub.Segment(request(confidence=wire.CONFIDENCE_PNG), timeout=PATIENCE_S)
    assert [one.id for one in response.confidence.classes] == [share["id"] for share in shares]
    means = [one.mean for one in response.confidence.classes]
    assert means == pytest.approx([share["confidence"] for share in shares])
    assert response.confidence.png == base64.b64decode(over_http.json()["confidence"]["data"])
    without_pixels = await site.stub.Segment(request(confidence=wire.CONFIDENCE_MEAN), timeout=PATIENCE_S)
    assert without_pixels.confidence.classes == response.confidence.classes
    assert not without_pixels.confidence.png


async def test_confidence_is_not_told_unless_it_is_asked_for_and_not_in_unknown_detail(
    site: GrpcSite,
) -> None:
    response = await site.stub.Segment(request(), timeout=PATIENCE_S)
    assert not response.HasField("confidence")
    error = await refusal(site, request(confidence=9))
    assert error.details() == "confidence: there is no detail 9"


async def test_full_detail_is_that_of_http_and_comes_without_confidence() -> None:
    large = encoded(picture_of(np.repeat(np.repeat(IDS_hw, 270, 0), 200, 1)))
    async with open_grpc_site(limits=SegmenterLimits(max_infer_pixels=1024)) as site:
        over_http = await site.site.client.post("/v1/segment?output=labels&detail=full", content=large)
        wanted = request(wire.PNG, image=wire.Image(data=large), detail=wire.DETAIL_FULL)
        response = await site.stub.Segment(wanted, timeout=PATIENCE_S)
        assert response.mask.data == over_http.content
        assert set(site.engine.seen) == {(1, 1024, 1024, 3)}
        wanted.confidence = wire.CONFIDENCE_MEAN
        assert "DETAIL_FULL gives no confidence" in (await refusal(site, wanted)).details()
        error = await refusal(site, request(detail=9))
        assert error.details() == "detail: there is no 9"


async def test_a_mask_that_is_not_specified_is_a_palette_png(site: GrpcSite) -> None:
    response = await site.stub.Segment(request(wire.MASK_ENCODING_UNSPECIFIED), timeout=PATIENCE_S)
    assert response.mask.encoding == wire.PNG
    picture = Image.open(io.BytesIO(response.mask.data))
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture)[4::8, 4::8], IDS_hw)


async def test_run_lengths_and_overlays_are_offered_too(site: GrpcSite) -> None:
    runs = await site.stub.Segment(request(wire.COCO_RLE), timeout=PATIENCE_S)
    assert [entry["id"] for entry in json.loads(runs.mask.data)] == [0, 1, 2, 3]
    overlay = await site.stub.Segment(request(wire.OVERLAY_JPEG), timeout=PATIENCE_S)
    assert Image.open(io.BytesIO(overlay.mask.data)).size == (48, 32)


async def test_classes_that_are_not_kept_become_the_ignore_id(site: GrpcSite) -> None:
    response = await site.stub.Segment(request(classes=[1, 3]), timeout=PATIENCE_S)
    expected = np.where(np.isin(IDS_hw, [1, 3]), IDS_hw, 255)
    assert np.array_equal(ids_of(response.mask), expected)


@pytest.mark.parametrize(("encoding", "step"), [(wire.RGB8, 1), (wire.BGR8, -1)])
async def test_raw_pixels_are_answered_like_the_picture_they_are(
    site: GrpcSite, encoding: int, step: int
) -> None:
    image_HW3 = IMAGE_HW3.copy()
    image_HW3[..., 2] = 7  # so that the order of the channels matters
    data = np.ascontiguousarray(image_HW3[..., ::step]).tobytes()
    image = wire.Image(data=data, encoding=encoding, width=48, height=32)  # type: ignore[arg-type]
    response = await site.stub.Segment(request(image=image), timeout=PATIENCE_S)
    assert np.array_equal(ids_of(response.mask), IDS_hw)


@pytest.mark.parametrize("model", ["", "fake", "fake@3", "other@1", "other"])
async def test_a_model_is_asked_for_by_name_or_by_version(site: GrpcSite, model: str) -> None:
    response = await site.stub.Segment(request(model=model), timeout=PATIENCE_S)
    assert response.model == (model.partition("@")[0] or "fake")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (request(model="nobody"), "model_not_found"),
        (request(model="fake@9"), "version_not_found"),
        (request(model="Fake"), "invalid_argument"),
        (request(model="fake:production"), "invalid_argument"),
        (request(model="fake@0"), "invalid_argument"),
        (request(mask=17), "invalid_argument"),
        (request(classes=[4]), "invalid_argument"),
        (request(classes=[1] * 256), "invalid_argument"),
        (request(image=wire.Image()), "empty_body"),
        (wire.SegmentRequest(), "empty_body"),
        (request(image=wire.Image(data=b"GIF89a")), "unsupported_media"),
        (request(image=wire.Image(data=PICTURE[:100])), "undecodable_image"),
        (request(image=wire.Image(data=b"x" * 5000)), "payload_too_large"),
        (request(image=wire.Image(data=encoded(np.zeros((65, 2, 3), np.uint8)))), "too_many_pixels"),
        (request(image=wire.Image(data=PICTURE, encoding=9)), "invalid_argument"),  # type: ignore[arg-type]
        (request(image=wire.Image(data=b"123", encoding=wire.RGB8)), "invalid_argument"),
        (request(image=wire.Image(data=b"1234", encoding=wire.RGB8, width=1, height=1)), "invalid_argument"),
        (request(image=wire.Image(data=b"123", encoding=wire.BGR8, width=65, height=1)), "too_many_pixels"),
        (
            request(image=wire.Image(data=b"123", encoding=wire.RGB8, width=2**32 - 1, height=2**32 - 1)),
            "too_many_pixels",
        ),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong_with_it(message: wire.SegmentRequest, code: str) -> None:
    limits = SegmenterLimits(image=ImageLimits(max_side=64))
    options = ServicerOptions(max_image_bytes=4999)
    async with open_grpc_site(options=options, limits=limits) as site:
        error = await refusal(site, message)
        assert reason_of(error) == code
        assert (await site.stub.Segment(request(), timeout=PATIENCE_S)).mask.data


async def test_a_message_above_the_limit_never_reaches_the_service(site: GrpcSite) -> None:
    image = wire.Image(data=b"x" * (21 * 1024 * 1024))
    error = await refusal(site, request(image=image))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_before_a_model_is_loaded_the_service_is_unavailable() -> None:
    async with open_grpc_site(versions=()) as site:
        error = await refusal(site, request())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(error) == "loading"
        assert details_of(error)["RetryInfo"].retry_delay.ToMilliseconds() > 0


async def test_a_full_queue_is_told_with_the_time_to_come_back() -> None:
    async with open_grpc_site(FakeEngine(held=True), max_waiting=1) as site:
        calls = [site.stub.Segment(request(), timeout=PATIENCE_S)]
        await asyncio.to_thread(site.engine.wait_until_busy)
        errors = await asyncio.gather(*(refusal_or_none(site) for _ in range(4)))
        site.engine.go_on(8)
        assert await calls[0]
        refused = [error for error in errors if error is not None]
        assert {reason_of(error) for error in refused} == {"queue_full"}
        assert all("RetryInfo" in details_of(error) for error in refused)


async def test_a_picture_without_room_is_refused_at_once() -> None:
    options = ServicerOptions(max_image_bytes_in_flight=2 * len(PICTURE) - 1)
    async with open_grpc_site(FakeEngine(held=True), options=options) as site:
        first = site.stub.Segment(request(), timeout=PATIENCE_S)
        await asyncio.to_thread(site.engine.wait_until_busy)
        error = await refusal(site, request())
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "busy")
        assert "RetryInfo" in details_of(error)
        site.engine.go_on(2)
        await first
        assert (await site.stub.Segment(request(), timeout=PATIENCE_S)).mask.data


async def test_a_client_that_fills_the_queue_does_not_keep_another_one_out() -> None:
    options = ServicerOptions(keys=key_ring("greedy", "modest"))
    async with open_grpc_site(FakeEngine(held=True), max_waiting=8, options=options) as site:

        async def reason(key: str) -> str:
            try:
                await site.stub.Segment(
                    request(), timeout=PATIENCE_S, metadata=(("authorization", f"Bearer {key}"),)
                )
            except grpc.aio.AioRpcError as error:
                return str(reason_of(error))
            return "answered"

        greedy = [asyncio.create_task(reason("greedy")) for _ in range(12)]
        refused, _ = await asyncio.wait(greedy, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        assert {one.result() for one in refused} == {"queue_full"}
        modest = asyncio.create_task(reason("modest"))
        settled, _ = await asyncio.wait([modest], timeout=0.2)
        assert not settled
        site.engine.go_on(12)
        assert await modest == "answered"
        await asyncio.gather(*greedy)


@pytest.mark.parametrize("method", ["Segment", "ListModels"])
async def test_a_message_that_never_comes_is_not_waited_for(method: str) -> None:
    async with open_grpc_site(options=ServicerOptions(receive_timeout_s=0.05)) as site:
        call = site.channel.stream_unary(f"/segmentation.v1.Segmentation/{method}")(timeout=PATIENCE_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert reason_of(caught.value) == "request_too_slow"


async def refusal_or_none(site: GrpcSite) -> grpc.aio.AioRpcError | None:
    try:
        await site.stub.Segment(request(), timeout=1)
    except grpc.aio.AioRpcError as error:
        return error if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED else None
    return None


async def test_a_cancelled_call_leaves_the_queue() -> None:
    async with open_grpc_site(FakeEngine(held=True)) as site:
        first = site.stub.Segment(request(), timeout=PATIENCE_S)
        await asyncio.to_thread(site.engine.wait_until_busy)
        second = site.stub.Segment(request(), timeout=PATIENCE_S)
        await until(lambda: site.metric("bisenet_inflight") == 2)
        second.cancel()
        await until(lambda: site.metric("bisenet_inflight") == 1)
        third = site.stub.Segment(request(), timeout=PATIENCE_S)
        site.engine.go_on(2)
        await first
        await third
        assert len(site.engine.seen) == 2


async def test_a_deadline_ends_a_call_that_waits() -> None:
    async with open_grpc_site(FakeEngine(held=True)) as site:
        first = site.stub.Segment(request(), timeout=PATIENCE_S)
        await asyncio.to_thread(site.engine.wait_until_busy)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.stub.Segment(request(), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        site.engine.go_on(2)
        await first


async def test_without_a_deadline_the_service_has_its_own() -> None:
    async with open_grpc_site(FakeEngine(held=True), options=ServicerOptions(default_timeout_s=0.2)) as site:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.stub.Segment(request())
        assert reason_of(caught.value) == "deadline_exceeded"
        site.engine.go_on(1)


async def test_models_are_listed_with_their_classes_the_default_first(site: GrpcSite) -> None:
    response = await site.stub.ListModels(wire.ListModelsRequest(), timeout=PATIENCE_S)
    assert [(model.name, model.version) for model in response.models] == [
        (version.name, version.number) for version in FAKE_VERSIONS
    ]
    default = response.models[0]
    assert [(c.id, c.name, c.red) for c in default.classes][1] == (1, "dark", 85)
    assert (default.ignore_id, default.architecture, default.engine) == (255, "fake", "fake")


async def test_where_keys_are_asked_for_a_call_without_one_is_refused() -> None:
    async with open_grpc_site(options=ServicerOptions(keys=key_ring(KEY))) as site:
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", KEY),)):
            error = await refusal(site, request(), metadata=metadata)
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", f"Bearer {KEY}"),)
        assert await site.stub.Segment(request(), timeout=PATIENCE_S, metadata=metadata)


def bearer(secret: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {secret}"),)


_SCOPES: tuple[Scope, ...] = ("infer", "stream", "admin")


async def test_a_key_opens_the_methods_of_its_scopes() -> None:
    keys = KeyRing(AccessKey.of_secret(name, (name,)) for name in _SCOPES)
    async with open_grpc_site(options=ServicerOptions(keys=keys)) as site:
        assert await site.stub.Segment(request(), timeout=PATIENCE_S, metadata=bearer("infer"))
        for secret in ("stream", "admin"):
            error = await refusal(site, request(), metadata=bearer(secret))
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.PERMISSION_DENIED, "forbidden")
        for secret in ("infer", "stream"):
            listed = site.stub.ListModels(
                wire.ListModelsRequest(), timeout=PATIENCE_S, metadata=bearer(secret)
            )
            assert (await listed).models
        for secret, code in (("infer", grpc.StatusCode.PERMISSION_DENIED), ("stream", grpc.StatusCode.OK)):
            call = site.stub.SegmentStream(timeout=PATIENCE_S, metadata=bearer(secret))
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(wire.StreamRequest(open=wire.StreamOpen()))
                await call.done_writing()
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert await call.code() is code


async def test_a_key_has_its_limit_of_calls_at_the_same_time_and_gets_them_back() -> None:
    keys = KeyRing([msgspec.structs.replace(AccessKey.of_secret(KEY, name="one"), concurrency=1)])
    async with open_grpc_site(FakeEngine(held=True), options=ServicerOptions(keys=keys)) as site:
        first = site.stub.Segment(request(), timeout=PATIENCE_S, metadata=bearer(KEY))
        await asyncio.to_thread(site.engine.wait_until_busy)
        error = await refusal(site, request(), metadata=bearer(KEY))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limited")
        assert "RetryInfo" in details_of(error)
        site.engine.go_on(2)
        await first
        assert await site.stub.Segment(request(), timeout=PATIENCE_S, metadata=bearer(KEY))


async def test_the_id_of_a_request_comes_back_unless_it_could_forge_a_log_line(site: GrpcSite) -> None:
    for asked, is_kept in (("my-id", True), ("two words", False)):
        call = site.stub.Segment(request(), timeout=PATIENCE_S, metadata=(("x-request-id", asked),))
        await call
        answered = dict(await call.trailing_metadata())["x-request-id"]
        assert (answered == asked) == is_kept


async def test_a_defect_is_internal_and_tells_nothing() -> None:
    def broken(_: object) -> object:
        raise ValueError("a secret")

    async with open_grpc_site(FakeEngine(answer=broken)) as site:  # type: ignore[arg-type]
        error = await refusal(site, request())
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(error.details())


async def test_calls_are_counted_by_method_and_code(site: GrpcSite) -> None:
    await site.stub.Segment(request(), timeout=PATIENCE_S)
    await refusal(site, request(model="nobody"))
    route = 'protocol="grpc",route="/segmentation.v1.Segmentation/Segment"'
    text = site.site.metrics.exposition()[0].decode()
    counted = [
        line for line in text.splitlines() if line.startswith("bisenet_requests_total") and route in line
    ]
    assert [('code="ok"' in line, 'code="model_not_found"' in line) for line in counted] == [
        (True, False),
        (False, True),
    ]
