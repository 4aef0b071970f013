"""``POST /v2/models/{model}/infer`` over the real application: tensors in, tensors out, errors by index."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
import pytest_asyncio
from fakes import FakeEngine, PictureWatch, key_ring, no_garbage_collector, until
from http_site import Site, encoded, open_site, picture_of
from infer_bodies import HEADER_LENGTH, answer_of, binary_body, elements, elements_of
from PIL import Image

from model.labels import UInt8Array
from model.pictures.image import ImageLimits
from service.core.pictures.segmenter import SegmenterLimits
from service.http_api.access import AccessPolicy
from service.http_api.app import HttpOptions
from service.http_api.open_inference.message import MAX_OBJECTS, parse_message
from service.http_api.segment.body import BodyLimits
from service.http_api.segment.intake import SegmentOptions
from service.open_inference.images import MAX_PICTURES

PATH = "/v2/models/fake/infer"
IDS_HW = np.array([[0, 1, 2], [3, 3, 1]], np.uint8).repeat(16, axis=0).repeat(24, axis=1)
IMAGE_HW3 = picture_of(IDS_HW)
PICTURE = encoded(IMAGE_HW3)
OTHER = encoded(picture_of(np.full((16, 16), 2, np.uint8)))


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    async with open_site() as site:
        yield site


async def infer(site: Site, *files: bytes, path: str = PATH, **changes: Any) -> httpx2.Response:
    body, headers = binary_body(elements(*files), shape=[len(files)], **changes)
    return await site.client.post(path, content=body, headers=headers)


def tensors_of(response: httpx2.Response) -> tuple[dict[str, Any], dict[str, bytes]]:
    assert response.status_code == 200, response.text
    return answer_of(response.content, response.headers.get(HEADER_LENGTH))


def refusal_of(response: httpx2.Response) -> tuple[int, str, str]:
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert document["request_id"] == response.headers["x-request-id"]
    return response.status_code, document["code"], document["error"]


async def native_labels(site: Site) -> UInt8Array:
    response = await site.client.post(
        "/v1/segment", content=PICTURE, params={"output": "labels"}, headers={"Accept": "application/x-npy"}
    )
    labels_HW: UInt8Array = np.load(BytesIO(response.content))
    return labels_HW


async def native_confidence(site: Site, picture: bytes) -> list[float]:
    response = await site.client.post("/v1/segment", content=picture, params={"confidence": "mean"})
    return [share["confidence"] or 0.0 for share in response.json()["classes"]]


async def test_files_and_pixels_give_the_labels_of_the_native_route(site: Site) -> None:
    expected_HW = await native_labels(site)
    _, tensors = tensors_of(await infer(site, PICTURE, PICTURE))
    assert tensors["labels"] == 2 * expected_HW.tobytes()
    raw = IMAGE_HW3.tobytes() * 3
    body, headers = binary_body(raw, shape=[3, *IMAGE_HW3.shape], datatype="UINT8")
    document, tensors = tensors_of(await site.client.post(PATH, content=body, headers=headers))
    assert document["outputs"][0]["shape"] == [3, 32, 72]
    assert tensors["labels"] == 3 * expected_HW.tobytes()


async def test_every_output_comes_as_binary_with_the_shape_that_metadata_promises(site: Site) -> None:
    outputs = ("mask_png", "labels", "class_pixels", "overlay_jpeg")
    document, tensors = tensors_of(await infer(site, PICTURE, PICTURE, outputs=outputs, id="r-1"))
    assert (document["model_name"], document["model_version"], document["id"]) == ("fake", "3", "r-1")
    assert [output["name"] for output in document["outputs"]] == list(outputs)
    shapes = {output["name"]: (output["datatype"], output["shape"]) for output in document["outputs"]}
    assert shapes == {
        "mask_png": ("BYTES", [2]),
        "labels": ("UINT8", [2, 32, 72]),
        "class_pixels": ("INT64", [2, 4]),
        "overlay_jpeg": ("BYTES", [2]),
    }
    labels_NHW = np.frombuffer(tensors["labels"], np.uint8).reshape(2, 32, 72)
    counts_NK = np.frombuffer(tensors["class_pixels"], "<i8").reshape(2, 4)
    assert counts_NK[1].tolist() == np.bincount(labels_NHW[1].ravel(), minlength=4).tolist()
    masks, overlays = elements_of(tensors["mask_png"]), elements_of(tensors["overlay_jpeg"])
    assert np.array_equal(np.asarray(Image.open(BytesIO(masks[1]))), labels_NHW[1])
    assert Image.open(BytesIO(overlays[1])).format == "JPEG"


async def test_json_alone_carries_files_and_masks_as_base64_and_labels_as_numbers(site: Site) -> None:
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "data": [[base64.b64encode(PICTURE).decode()]],
    }
    response = await site.client.post(PATH, json={"inputs": [tensor]})
    document, tensors = tensors_of(response)
    assert response.headers["content-type"] == "application/json"
    assert not tensors
    data = {output["name"]: output["data"] for output in document["outputs"]}
    labels_HW = np.asarray(Image.open(BytesIO(base64.b64decode(data["mask_png"][0]))))
    assert data["labels"] == labels_HW.ravel().tolist()
    assert data["class_pixels"] == np.bincount(labels_HW.ravel(), minlength=4).tolist()
    assert base64.b64decode(data["overlay_jpeg"][0]).startswith(b"\xff\xd8")
    assert "id" not in document


@pytest.mark.parametrize("is_flat", [False, True])
async def test_pixels_come_as_numbers_nested_or_flat(site: Site, *, is_flat: bool) -> None:
    pixels: Any = IMAGE_HW3.ravel().tolist() if is_flat else [IMAGE_HW3.tolist()]
    tensor = {"name": "image", "shape": [1, *IMAGE_HW3.shape], "datatype": "UINT8", "data": pixels}
    request = {
        "inputs": [tensor],
        "outputs": [{"name": "labels"}],
        "parameters": {"binary_data_output": True},
    }
    _, tensors = tensors_of(await site.client.post(PATH, json=request))
    assert tensors["labels"] == (await native_labels(site)).tobytes()


async def test_an_output_may_differ_from_the_default_of_its_request(site: Site) -> None:
    body, headers = binary_body(
        elements(PICTURE), shape=[1], outputs=(), parameters={"binary_data_output": True}
    )
    _, tensors = tensors_of(await site.client.post(PATH, content=body, headers=headers))
    assert set(tensors) == {"labels", "mask_png", "overlay_jpeg", "class_pixels"}
    outputs = [{"name": "labels"}, {"name": "class_pixels", "parameters": {"binary_data": False}}]
    body, headers = binary_body(
        elements(PICTURE), shape=[1], parameters={"binary_data_output": True}, outputs=()
    )
    changed = json.loads(body[: int(headers[HEADER_LENGTH])]) | {"outputs": outputs}
    head = json.dumps(changed).encode()
    headers = {HEADER_LENGTH: str(len(head))}
    response = await site.client.post(PATH, content=head + elements(PICTURE), headers=headers)
    document, tensors = tensors_of(response)
    assert set(tensors) == {"labels"}
    assert sum(document["outputs"][1]["data"]) == IDS_HW.size


async def test_the_confidence_is_the_native_routes_and_0_for_a_class_without_pixels(site: Site) -> None:
    expected_NK = [await native_confidence(site, picture) for picture in (PICTURE, OTHER)]
    document, tensors = tensors_of(await infer(site, PICTURE, OTHER, outputs=("confidence",)))
    assert document["outputs"][0]["datatype"] == "FP16"
    assert document["outputs"][0]["shape"] == [2, 4]
    confidence_NK = np.frombuffer(tensors["confidence"], "<f2").reshape(2, 4)
    np.testing.assert_allclose(confidence_NK, expected_NK, rtol=2**-11)
    assert confidence_NK[1, [1, 3]].tolist() == [0, 0]
    body, headers = binary_body(elements(PICTURE), shape=[1], outputs=())
    head = json.loads(body[: int(headers[HEADER_LENGTH])]) | {"outputs": [{"name": "confidence"}]}
    json_head = json.dumps(head).encode()
    headers = {HEADER_LENGTH: str(len(json_head))}
    response = await site.client.post(PATH, content=json_head + elements(PICTURE), headers=headers)
    assert response.json()["outputs"][0]["data"] == confidence_NK[0].tolist()


async def test_a_raw_body_is_one_file_and_is_answered_with_the_outputs_but_confidence(site: Site) -> None:
    response = await site.client.post(PATH, content=PICTURE, headers={HEADER_LENGTH: "0"})
    _, tensors = tensors_of(response)
    assert set(tensors) == {"labels", "mask_png", "overlay_jpeg", "class_pixels"}


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_body_is_inflated(site: Site, encoding: str, compress: Any) -> None:
    body, headers = binary_body(elements(PICTURE), shape=[1])
    headers["Content-Encoding"] = encoding
    _, tensors = tensors_of(await site.client.post(PATH, content=compress(body), headers=headers))
    assert tensors["labels"] == (await native_labels(site)).tobytes()


async def test_a_body_that_inflates_beyond_the_limit_is_refused(site: Site) -> None:
    bomb = gzip.compress(bytes(1 << 28))
    response = await site.client.post(PATH, content=bomb, headers={"Content-Encoding": "gzip"})
    assert refusal_of(response)[:2] == (413, "payload_too_large")
    response = await site.client.post(PATH, content=bomb, headers={"Content-Encoding": "br"})
    assert refusal_of(response)[:2] == (415, "unsupported_media")


async def test_a_version_is_named_in_the_path(site: Site) -> None:
    path = "/v2/models/other/versions/1/infer"
    document, _ = tensors_of(await infer(site, PICTURE, path=path))
    assert (document["model_name"], document["model_version"]) == ("other", "1")
    for wrong, code in (("nope", "model_not_found"), ("fake/versions/9", "version_not_found")):
        status, found, text = refusal_of(await infer(site, PICTURE, path=f"/v2/models/{wrong}/infer"))
        assert (status, found) == (404, code)
        assert "is served" in text or "is not served" in text


async def test_the_index_of_a_picture_that_fails_is_named_and_the_others_leave_no_memory() -> None:
    limits = SegmenterLimits(image=ImageLimits(max_pixels=10_000))
    async with open_site(limits=limits) as site:
        large = encoded(np.zeros((200, 100, 3), np.uint8))
        for wrong, code in (
            (b"GIF89a", "unsupported_media"),
            (large, "too_many_pixels"),
            (b"", "empty_body"),
        ):
            response = await infer(site, PICTURE, PICTURE, wrong, PICTURE, outputs=("mask_png",))
            status, found, text = refusal_of(response)
            assert (400 <= status < 500, found) == (True, code)
            assert text.startswith("image[2]: ")
        status, _, text = refusal_of(await infer(site, b"GIF89a"))
        assert not text.startswith("image[")  # there is one picture


async def test_a_failed_batch_is_out_of_memory_without_a_garbage_collector(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = PictureWatch(monkeypatch)
    with no_garbage_collector():
        response = await infer(site, PICTURE, PICTURE[:-50], outputs=("mask_png",))
        assert refusal_of(response)[:2] == (422, "undecodable_image")
        await watch.wait_until_gone()


async def test_pictures_of_two_sizes_have_masks_but_no_tensor_of_labels(site: Site) -> None:
    _, tensors = tensors_of(await infer(site, PICTURE, OTHER, outputs=("mask_png", "class_pixels")))
    sizes = [Image.open(BytesIO(mask)).size for mask in elements_of(tensors["mask_png"])]
    assert sizes == [(72, 32), (16, 16)]
    status, code, text = refusal_of(await infer(site, PICTURE, OTHER))
    assert (status, code) == (400, "invalid_argument")
    assert "mask_png" in text


async def test_the_pictures_of_a_request_take_places_in_the_queue_one_by_one() -> None:
    engine = FakeEngine(held=True)
    async with open_site(engine, options=HttpOptions(pictures_at_once=8), max_waiting=4) as site:
        status, code, text = refusal_of(await infer(site, *[PICTURE] * 8))
        engine.go_on(20)
        assert (status, code) == (429, "queue_full")
        assert text.startswith("image[")
    async with open_site(options=HttpOptions(pictures_at_once=2), max_waiting=4) as site:
        tensors_of(await infer(site, *[PICTURE] * 16))


async def test_a_timeout_and_a_priority_are_honoured(site: Site) -> None:
    response = await infer(site, PICTURE, parameters={"timeout": 1})
    assert refusal_of(response)[:2] == (504, "deadline_exceeded")
    tensors_of(await infer(site, PICTURE, parameters={"timeout": 20_000_000, "priority": 3}))
    for parameters in ({"timeout": -1}, {"timeout": "1"}, {"priority": 1.5}, {"binary_data_output": 1}):
        assert refusal_of(await infer(site, PICTURE, parameters=parameters))[0] == 400


async def test_a_client_that_leaves_takes_its_pictures_out_of_the_queue() -> None:
    engine = FakeEngine(held=True)
    async with open_site(engine) as site:
        asking = asyncio.create_task(infer(site, *[PICTURE] * 4))
        await asyncio.to_thread(engine.wait_until_busy)
        asking.cancel()
        await asyncio.wait([asking])
        engine.go_on(4)
        await until(lambda: site.host._dispatcher.num_waiting == 0)
        assert len(engine.seen) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": []}, "one input"),
        ({"inputs": None}, "no infer request"),
        ({"outputs": [{"name": "nothing"}]}, "no output 'nothing'"),
        ({"outputs": [{"name": "labels"}, {"name": "labels"}]}, "more than once"),
        ({"outputs": [{"name": "labels", "parameters": {"classification": 3}}]}, "no classification"),
        ({"outputs": [{"name": "labels", "parameters": {"shared_memory_region": "x"}}]}, "shared memory"),
        ({"parameters": [1]}, "parameters"),
        ({"parameters": {"a": "x" * 20_000}}, "parameters take more"),
        ({"id": "x" * 300}, "'id'"),
        ({"id": 1}, "id"),
        ({"inputs": [{"name": "image"}]}, "datatype"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": []}]}, "no input 'x'"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"}]}, "neither"),
        ({"inputs": [{"name": "image", "shape": [1] * 200, "datatype": "BYTES", "data": []}]}, "too long"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["a", "b"]}]}, "2"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["%"]}]}, "base64"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["é"]}]}, "base64"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [1]}]}, "base64"),
        ({"inputs": [{"name": "image", "shape": ["1"], "datatype": "BYTES", "data": []}]}, "whole numbers"),
        ({"inputs": [{"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2]}]}, "2"),
        (
            {"inputs": [{"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 256]}]},
            "255",
        ),
        (
            {"inputs": [{"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, -2, 3]}]},
            "255",
        ),
        (
            {"inputs": [{"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [[], [], []]}]},
            "miss",
        ),
    ],
)
async def test_a_request_that_is_none_is_refused_by_what_is_wrong(
    site: Site, change: dict[str, Any], words: str
) -> None:
    tensor = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "data": [base64.b64encode(PICTURE).decode()],
    }
    response = await site.client.post(PATH, json={"inputs": [tensor], **change})
    status, code, text = refusal_of(response)
    assert (status, code) == (400, "invalid_argument")
    assert words in text


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"{", {}),
        (b"[]", {}),
        (b'{"inputs": ' + b"[" * 10_000, {}),
        (b'{"inputs": [' + b'{"a":' * 10_000, {}),
        (b'{"a": 1}' + b"{}" * MAX_OBJECTS, {}),
        (b"{}", {HEADER_LENGTH: "3"}),
        (b"{}", {HEADER_LENGTH: "-1"}),
        (b"{}", {HEADER_LENGTH: "x"}),
        (b"{}", {HEADER_LENGTH: "9" * 30}),
        (b"{}", {HEADER_LENGTH: "1"}),
    ],
)
async def test_a_body_that_is_no_message_is_refused(site: Site, body: bytes, headers: dict[str, str]) -> None:
    assert refusal_of(await site.client.post(PATH, content=body, headers=headers))[0] == 400


@pytest.mark.parametrize("change", [-1, 1, 1 << 40, True, "3", -3])
async def test_binary_data_of_another_size_than_declared_is_refused(site: Site, change: Any) -> None:
    raw = elements(PICTURE)
    size = len(raw) + change if type(change) is int else change
    tensor = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    response = await site.client.post(PATH, content=head + raw, headers={HEADER_LENGTH: str(len(head))})
    status, _, text = refusal_of(response)
    assert status == 400
    assert "binary_data_size" in text


async def test_more_pictures_than_a_request_may_hold_are_refused(site: Site) -> None:
    status, _, text = refusal_of(await infer(site, *[OTHER] * (MAX_PICTURES + 1)))
    assert status == 400
    assert f"1 to {MAX_PICTURES} pictures" in text


async def test_only_post_infers_and_a_key_is_asked_for() -> None:
    keys = AccessPolicy(key_ring("a-key"))
    async with open_site(options=HttpOptions(access=keys)) as site:
        assert refusal_of(await infer(site, PICTURE))[:2] == (401, "unauthenticated")
        assert refusal_of(await site.client.get("/v2/models"))[:2] == (401, "unauthenticated")
        assert (await site.client.get("/v2/health/ready")).status_code == 200
        site.client.headers["Authorization"] = "Bearer a-key"
        tensors_of(await infer(site, PICTURE))
        response = await site.client.get(PATH)
        assert refusal_of(response)[:2] == (405, "invalid_argument")
        assert response.headers["allow"] == "POST"


async def test_the_body_limit_and_the_body_budget_are_those_of_the_native_route() -> None:
    options = SegmentOptions(body=BodyLimits(max_bytes=1000), max_body_bytes_in_flight=4000)
    async with open_site(options=HttpOptions(segment=options)) as site:
        response = await infer(site, bytes(2000))
        assert refusal_of(response)[:2] == (413, "payload_too_large")


async def test_the_metrics_know_the_route_and_the_stages(site: Site) -> None:
    tensors_of(await infer(site, PICTURE, PICTURE))
    text = site.metrics.exposition()[0].decode()
    assert 'route="/v2/models/{model}/infer"' in text
    assert 'bisenet_stage_duration_seconds_count{stage="infer"} 2.0' in text


def test_numbers_take_little_memory_beside_their_text() -> None:
    import tracemalloc  # noqa: PLC0415 - of this test alone

    count = 1 << 20
    data = b"1," * (3 * count - 1) + b"1"
    tensor = b'{"name":"image","datatype":"UINT8","shape":[1,1024,1024,3],"data":[%b]}' % data
    body = b'{"inputs":[%b]}' % tensor
    tracemalloc.start()
    try:
        message = parse_message(body, None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message.pictures[0].header(ImageLimits()).size.pixels == count
    assert peak < 5 * len(body)
