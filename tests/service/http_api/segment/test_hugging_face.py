"""``POST /hf/{model}``: the image-segmentation task of Hugging Face."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
import pytest_asyncio
from fakes import FAKE_MANIFEST, key_ring
from http_site import Site, encoded, open_site, picture_of
from PIL import Image

from model.labels import UInt8Array
from service.http_api.access import AccessPolicy
from service.http_api.app import HttpOptions
from service.http_api.segment.body import BodyLimits
from service.http_api.segment.intake import SegmentOptions

IDS_HW = np.array([[0, 1, 2], [0, 0, 1]], np.uint8).repeat(16, axis=0).repeat(24, axis=1)
PICTURE = encoded(picture_of(IDS_HW))
NAMES = FAKE_MANIFEST.palette.names


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    async with open_site() as site:
        yield site


def as_json(parameters: Any = None, **more: Any) -> bytes:
    document = {"inputs": base64.b64encode(PICTURE).decode(), **more}
    return json.dumps(document if parameters is None else {**document, "parameters": parameters}).encode()


async def ask(site: Site, content: bytes = PICTURE, path: str = "/hf/fake") -> httpx2.Response:
    return await site.client.post(path, content=content)


async def masks(
    site: Site, content: bytes = PICTURE, path: str = "/hf/fake"
) -> dict[str, tuple[float, UInt8Array]]:
    response = await ask(site, content, path)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    return {one["label"]: (one["score"], decoded(one["mask"])) for one in response.json()}


def decoded(mask: str) -> UInt8Array:
    picture = Image.open(BytesIO(base64.b64decode(mask)))
    assert picture.mode == "L"
    return np.asarray(picture)


async def native(site: Site) -> tuple[UInt8Array, UInt8Array]:
    """Labels and confidence as the native route tells them."""
    document = (await site.client.post("/v1/segment?confidence=png", content=PICTURE)).json()
    images = [base64.b64decode(document[key]["data"]) for key in ("mask", "confidence")]
    labels_HW, confidence_HW = (np.asarray(Image.open(BytesIO(image))) for image in images)
    return labels_HW, confidence_HW


@pytest.mark.parametrize("path", ["/hf/fake", "/models/fake"])
@pytest.mark.parametrize("content", [PICTURE, as_json(), as_json({}), as_json({"subtask": "semantic"})])
async def test_each_class_that_occurs_has_a_mask_and_its_mean_confidence(
    site: Site, content: bytes, path: str
) -> None:
    labels_HW, confidence_HW = await native(site)
    answer = await masks(site, content, path)
    assert list(answer) == list(NAMES[:3])
    for class_id, (score, mask_HW) in enumerate(answer.values()):
        is_inside_HW = labels_HW == class_id
        assert np.array_equal(mask_HW, np.where(is_inside_HW, 255, 0))
        assert score == pytest.approx(confidence_HW[is_inside_HW].mean() / 255)


async def test_unsure_pixels_are_left_out_of_their_mask(site: Site) -> None:
    labels_HW, confidence_HW = await native(site)
    is_sure_HW = confidence_HW >= 0.9 * 255
    assert 0 < is_sure_HW.mean() < 1
    answer = await masks(site, as_json({"mask_threshold": 0.9, "threshold": None}))
    for name, (score, mask_HW) in answer.items():
        is_inside_HW = (labels_HW == NAMES.index(name)) & is_sure_HW
        assert np.array_equal(mask_HW == 255, is_inside_HW)
        assert score == pytest.approx(confidence_HW[is_inside_HW].mean() / 255)


async def test_classes_of_a_lower_score_are_left_out(site: Site) -> None:
    scores = {name: score for name, (score, _) in (await masks(site)).items()}
    between = (min(scores.values()) + max(scores.values())) / 2
    answer = await masks(site, as_json({"threshold": between}))
    assert set(answer) == {name for name, score in scores.items() if score > between}
    assert await masks(site, as_json({"threshold": 1})) == {}


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (as_json({"threshold": 2}), "parameter 'threshold' is not valid. Classes with a lower score are"),
        (as_json({"subtask": "panoptic"}), "parameter 'subtask' is not valid. semantic: one mask for each"),
        (as_json({"top_k": 2}), "unknown parameter 'top_k'"),
        (as_json([]), "'parameters' is an object"),
        (as_json(model="x"), "unknown key 'model' in the JSON body"),
        (b'{"inputs": 3}', "the JSON body needs 'inputs': the file as base64"),
        (b'{"inputs": "https://host/x.jpg"}', "'inputs': URLs are not fetched"),
        (b'{"inputs": "?"}', "'inputs' is not base64"),
        (b"{", "the body is not JSON"),
        (b'{"a":' * 10_000, "the body is not JSON"),
    ],
)
async def test_what_is_wrong_is_said_where_clients_look_for_it(
    site: Site, content: bytes, detail: str
) -> None:
    response = await ask(site, content)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_argument")
    assert response.json()["error"].startswith(detail)
    assert response.json()["error"] == response.json()["detail"]


async def test_the_native_routes_keep_their_errors(site: Site) -> None:
    response = await site.client.post("/v1/segment", content=b"x")
    assert "error" not in response.json()


async def test_the_query_has_no_parameters_but_the_deadline(site: Site) -> None:
    assert (await ask(site, path="/hf/fake?timeout_ms=20000")).status_code == 200
    refused = await ask(site, path="/hf/fake?output=labels")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")


async def test_an_unknown_model_is_not_found(site: Site) -> None:
    response = await ask(site, path="/hf/none")
    assert (response.status_code, response.json()["code"]) == (404, "model_not_found")


async def test_keys_and_body_limits_hold() -> None:
    limits = SegmentOptions(body=BodyLimits(max_bytes=len(PICTURE) - 1))
    keys = AccessPolicy(keys=key_ring("a-key-of-a-client"))
    async with open_site(options=HttpOptions(segment=limits, access=keys)) as site:
        refused = await ask(site)
        assert (refused.status_code, "error" in refused.json()) == (401, True)
        site.client.headers["Authorization"] = "Bearer a-key-of-a-client"
        assert (await ask(site)).json()["code"] == "payload_too_large"
