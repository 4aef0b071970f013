"""``/v2``: what the server and its models say of themselves; and versions that are loaded through it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from http_site import Site, open_site

from model.artifacts.manifest import ModelVersion


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    async with open_site() as site:
        yield site


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_the_server_names_its_extensions(site: Site, path: str) -> None:
    document = (await site.client.get(path)).json()
    assert document["name"] == "bisenet-service"
    assert document["version"][0].isdigit()
    assert "binary_tensor_data" in document["extensions"]


async def test_health_suits_clients_that_read_the_body_and_those_that_read_the_status(site: Site) -> None:
    live, ready = [(await site.client.get(f"/v2/health/{name}")) for name in ("live", "ready")]
    assert (live.status_code, live.json()) == (200, {"live": True})
    assert (ready.status_code, ready.json()) == (200, {"ready": True})
    site.lifecycle.draining = True
    refused = await site.client.get("/v2/health/ready")
    assert (refused.status_code, refused.headers["content-type"]) == (503, "application/json")
    assert refused.json()["error"] == "the service is about to stop"
    assert (await site.client.get("/v2/health/live")).status_code == 200


async def test_health_without_a_model_says_that_it_is_loading() -> None:
    async with open_site(versions=()) as site:
        refused = await site.client.get("/v2/health/ready")
        assert (refused.status_code, refused.json()["code"]) == (503, "loading")
        site.host.expect(ModelVersion("fake", 3))
        assert (await site.client.get("/v2/models/fake/ready")).status_code == 503
        index = (await site.client.post("/v2/repository/index")).json()
        assert index == [{"name": "fake", "version": "3", "state": "LOADING", "reason": ""}]
        assert (await site.client.post("/v2/repository/index", json={"ready": True})).json() == []


@pytest.mark.parametrize("path", ["/v2/models/fake", "/v2/models/fake/versions/3"])
async def test_a_model_describes_its_tensors(site: Site, path: str) -> None:
    document = (await site.client.get(path)).json()
    assert (document["name"], document["versions"]) == ("fake", ["3"])
    assert document["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
    ]
    outputs = {output["name"]: (output["datatype"], output["shape"]) for output in document["outputs"]}
    assert outputs == {
        "labels": ("UINT8", [-1, -1, -1]),
        "mask_png": ("BYTES", [-1]),
        "overlay_jpeg": ("BYTES", [-1]),
        "class_pixels": ("INT64", [-1, 4]),
        "confidence": ("FP16", [-1, 4]),
    }
    assert (await site.client.get(f"{path}/ready")).json() == {"name": "fake", "ready": True}
    config = (await site.client.get(f"{path}/config")).json()
    assert config["input"][1] == {"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, -1, 3]}
    assert config["max_batch_size"] == 0
    stats = (await site.client.get(f"{path}/stats")).json()["model_stats"]
    assert [(one["name"], one["inference_count"]) for one in stats] == [("fake", 0)]


async def test_all_models_are_listed_with_their_statistics(site: Site) -> None:
    assert (await site.client.get("/v2/models")).json() == {"models": ["fake", "other"]}
    stats = (await site.client.get("/v2/models/stats")).json()["model_stats"]
    assert [one["name"] for one in stats] == ["fake", "other"]
    index = (await site.client.post("/v2/repository/index", content=b"")).json()
    assert [(one["name"], one["version"], one["state"]) for one in index] == [
        ("fake", "3", "READY"),
        ("other", "1", "READY"),
    ]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v2/models/nope", "model_not_found"),
        ("/v2/models/nope/ready", "model_not_found"),
        ("/v2/models/fake/versions/4/config", "version_not_found"),
        ("/v2/models/fake/versions/0/stats", "version_not_found"),
        ("/v2/anything", "not_found"),
    ],
)
async def test_what_is_not_there_is_a_plain_error(site: Site, path: str, code: str) -> None:
    response = await site.client.get(path)
    assert (response.status_code, response.headers["content-type"]) == (404, "application/json")
    assert response.json()["code"] == code
    assert response.json()["error"]


async def test_an_index_query_that_is_none_is_refused(site: Site) -> None:
    for body in (b"[", b"[]", b'{"ready": 1}'):
        assert (await site.client.post("/v2/repository/index", content=body)).status_code == 400


async def test_the_openapi_document_describes_the_protocol(site: Site) -> None:
    paths = (await site.client.get("/openapi.json")).json()["paths"]
    for path in ("/v2", "/v2/models/{model}/versions/{version}", "/v2/repository/index"):
        assert path in paths
    assert "post" in paths["/v2/models/{model}/infer"]
