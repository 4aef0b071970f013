"""The application as a whole: ids, log lines, unknown paths, access, probes, models, docs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio
import structlog
from fakes import FAKE_MANIFEST, FakeEngine, key_ring
from http_site import Site, encoded, open_site
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import LogCapture

from model.artifacts.manifest import ModelVersion
from service.core.keys.access_key import AccessKey
from service.core.keys.key_ring import KeyRing
from service.core.readiness import Readiness
from service.http_api.access import LOOPBACK_HOSTS, AccessPolicy
from service.http_api.app import HttpOptions
from service.http_api.docs import docs_page
from service.http_api.edge import READY_PATHS, HttpEdge
from service.http_api.problems import STATUS_OF_CODE
from service.telemetry import Metrics, ModelLabels

KEY = "a-long-random-key"


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    async with open_site() as site:
        yield site


@pytest.fixture
def log() -> Iterator[LogCapture]:
    capture = LogCapture()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture
    structlog.reset_defaults()


def request_lines(log: LogCapture) -> list[dict[str, Any]]:
    return [dict(entry) for entry in log.entries if entry["event"] == "request"]


async def test_the_id_of_a_sane_client_is_used(site: Site) -> None:
    response = await site.client.get("/nothing", headers={"X-Request-Id": "Trace-1.a:b_c"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "Trace-1.a:b_c"


@pytest.mark.parametrize("insane", ["", "a b", "a\tb", "<b>", "x" * 129, "\u00e9"])
async def test_any_other_client_gets_an_id(site: Site, insane: str) -> None:
    headers = {b"X-Request-Id": insane.encode("latin-1")}
    ids = [(await site.client.get("/livez", headers=headers)).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch(r"[0-9a-f]{32}", request_id) for request_id in ids)
    assert ids[0] != ids[1]


@pytest.mark.guarantee("G26")
async def test_a_request_is_one_line_of_facts_without_what_the_user_sent(site: Site, log: LogCapture) -> None:
    await site.client.post(
        "/v1/models/secret-model:segment",
        files={"file": ("secret-name.jpg", b"secret-bytes")},
        params={"output": "labels"},
        headers={"X-Request-Id": "id-1"},
    )
    (line,) = request_lines(log)
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/models/{model}:segment", 404)
    assert (line["code"], line["request_id"]) == ("model_not_found", "id-1")
    assert line["duration_ms"] > 0
    assert "secret" not in repr(line)


async def test_an_unknown_path_is_not_logged(site: Site, log: LogCapture) -> None:
    await site.client.get("/secret/path")
    (line,) = request_lines(log)
    assert line["route"] == "unmatched"
    assert "secret" not in repr(line)


async def test_a_probe_that_succeeds_is_logged_for_debugging_only(log: LogCapture) -> None:
    async with open_site(versions=()) as site:
        await site.client.get("/livez")
        await site.client.get("/readyz")
    assert [(line["route"], line["log_level"]) for line in request_lines(log)] == [
        ("/livez", "debug"),
        ("/readyz", "info"),
    ]


async def test_a_defect_of_the_application_is_logged_once_and_survived(log: LogCapture) -> None:
    async def broken(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("broken")

    await HttpEdge(broken, Readiness(), Metrics())(
        {"type": "http", "method": "GET", "path": "/", "headers": []}, _never_called, _never_called
    )
    assert [entry["event"] for entry in log.entries] == ["request failed", "request"]


async def test_a_defect_behind_a_route_of_pictures_is_answered_and_logged(
    site: Site, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(site.host, "hold", broken)
    response = await site.client.post("/v1/segment", content=b"picture")
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "secret" not in response.text
    assert [entry["event"] for entry in log.entries] == ["request failed", "request"]
    assert log.entries[-1]["code"] == "internal"


async def test_a_client_does_not_wait_for_the_log(log: LogCapture) -> None:
    """What was sent leaves at the end of a turn of the event loop, in which nothing is logged yet."""
    lines_at_the_end_of_the_turn = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            asyncio.get_running_loop().call_soon(
                lambda: lines_at_the_end_of_the_turn.append(len(request_lines(log)))
            )

    edge = HttpEdge(Response("answer"), Readiness(), Metrics())
    await edge({"type": "http", "method": "GET", "path": "/", "headers": []}, _never_called, send)
    assert lines_at_the_end_of_the_turn == [0]
    assert len(request_lines(log)) == 1


async def _never_called(*_args: object) -> Any:
    raise AssertionError


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/segment/", "/V1/SEGMENT", "/redoc", "/metrics", "/livez/x"]
)
async def test_an_unknown_path_is_not_found(site: Site, path: str) -> None:
    response = await site.client.get(path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/segment", "POST"), ("POST", "/v1/models", "GET"), ("DELETE", "/livez", "GET")],
)
async def test_a_wrong_method_is_told_the_right_one(site: Site, method: str, path: str, allowed: str) -> None:
    response = await site.client.request(method, path)
    assert (response.status_code, response.json()["code"]) == (405, "invalid_argument")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/v1/models", "/docs"])
async def test_what_can_be_got_has_a_head(site: Site, path: str) -> None:
    response = await site.client.head(path)
    assert response.status_code == 200
    assert int(response.headers["content-length"]) > 0


async def test_probes_follow_the_life_of_the_process() -> None:
    async with open_site(versions=()) as site:

        async def probe() -> list[int | str]:
            answers = [await site.client.get(path) for path in ("/livez", "/startupz", "/readyz")]
            return [a.json().get("code", a.status_code) for a in answers]

        site.host.expect(ModelVersion("fake", 3))
        assert await probe() == [200, "loading", "loading"]
        site.load(ModelVersion("fake", 3))
        site.lifecycle.started = True
        assert await probe() == [200, 200, 200]
        site.lifecycle.draining = True
        assert await probe() == [200, 200, "draining"]


async def test_a_worker_that_is_gone_is_no_model_that_is_being_loaded(site: Site) -> None:
    site.host._dispatcher.on_worker_lost([], [], retry_after_s=1.0)
    response = await site.client.get("/readyz")
    assert (response.status_code, response.json()["code"]) == (503, "no_worker")


async def test_a_probe_that_fails_is_a_503_that_says_when_to_come_back() -> None:
    async with open_site(versions=()) as site:
        for path in ("/readyz", "/startupz"):
            response = await site.client.get(path)
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1


async def test_readiness_tells_what_runs(site: Site) -> None:
    document = (await site.client.get("/readyz")).json()
    engine = {"engine": "fake", "device": "cpu", "precision": "f32", "refused": "", "choice": []}
    assert document == {
        "status": "ready",
        "models": [{"name": "fake", "version": 3, **engine}, {"name": "other", "version": 1, **engine}],
    }


async def test_load_balancers_find_readiness_under_the_names_that_they_ask_for(site: Site) -> None:
    for path in ("/healthz", "/health", "/ping"):
        assert (await site.client.get(path)).json() == (await site.client.get("/readyz")).json()
        assert (await site.client.head(path)).status_code == 200
    site.lifecycle.draining = True
    for path in ("/healthz", "/health", "/ping"):
        assert (await site.client.get(path)).status_code == 503


async def test_models_are_listed_with_their_classes_the_default_one_first(site: Site) -> None:
    models = (await site.client.get("/v1/models")).json()["models"]
    assert [(m["name"], m["version"], m["default"]) for m in models] == [
        ("fake", 3, True),
        ("other", 1, False),
    ]
    palette = FAKE_MANIFEST.palette
    assert models[0]["classes"] == [
        {"id": i, "name": name, "color": list(color)}
        for i, (name, color) in enumerate(zip(palette.names, palette.colors, strict=True))
    ]
    assert models[0]["ignore_id"] == 255


async def test_a_model_is_described_as_in_the_list(site: Site) -> None:
    listed = (await site.client.get("/v1/models")).json()["models"]
    for document in listed:
        assert (await site.client.get(f"/v1/models/{document['name']}")).json() == document


async def test_a_model_that_is_not_served_is_not_described(site: Site) -> None:
    response = await site.client.get("/v1/models/none")
    assert (response.status_code, response.json()["code"]) == (404, "model_not_found")


async def test_without_the_key_there_is_no_answer_but_probes_and_docs() -> None:
    options = HttpOptions(access=AccessPolicy(keys=key_ring(KEY)))
    async with open_site(options=options) as site:
        for path in ("/v1/models", "/v1/segment", "/unknown"):
            response = await site.client.get(path)
            assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/livez", "/startupz", *READY_PATHS, "/docs", "/openapi.json"):
            assert (await site.client.get(path)).status_code == 200
        answer = await site.client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200


async def test_a_key_has_its_limit_of_requests_at_the_same_time_and_gets_them_back() -> None:
    keys = KeyRing([msgspec.structs.replace(AccessKey.of_secret(KEY, name="one"), concurrency=1)])
    headers = {"Authorization": f"Bearer {KEY}"}
    engine = FakeEngine(held=True)
    async with open_site(engine, options=HttpOptions(access=AccessPolicy(keys=keys))) as site:
        first = asyncio.create_task(
            site.client.post("/v1/segment", content=encoded(np.zeros((8, 8, 3), np.uint8)), headers=headers)
        )
        await asyncio.to_thread(engine.wait_until_busy)
        refused = await site.client.get("/v1/models", headers=headers)
        engine.go_on(1)
        assert (await first).status_code == 200
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert refused.headers["retry-after"] == "1"
        for _ in range(3):
            assert (await site.client.get("/v1/models", headers=headers)).status_code == 200


async def test_a_key_that_sends_too_fast_is_told_when_to_come_again() -> None:
    keys = KeyRing([msgspec.structs.replace(AccessKey.of_secret(KEY, name="one"), rate_per_s=0.01)])
    headers = {"Authorization": f"Bearer {KEY}"}
    async with open_site(options=HttpOptions(access=AccessPolicy(keys=keys))) as site:
        assert (await site.client.get("/v1/models", headers=headers)).status_code == 200
        refused = await site.client.get("/v1/models", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 90 <= int(refused.headers["retry-after"]) <= 100


async def test_a_page_from_elsewhere_cannot_reach_a_loopback_service_by_another_name() -> None:
    async with open_site(options=HttpOptions(access=AccessPolicy(hosts=LOOPBACK_HOSTS))) as site:
        response = await site.client.get("/livez", headers={"Host": "rebound.example:8000"})
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        assert (await site.client.get("/livez", headers={"Host": "localhost:8000"})).status_code == 200


async def test_no_answer_allows_other_origins(site: Site) -> None:
    response = await site.client.post("/v1/segment", headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in response.headers


class Page(HTMLParser):
    """Collects the tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


async def test_the_docs_describe_every_route_and_code_and_need_no_network(site: Site) -> None:
    response = await site.client.get("/docs")
    paths = (await site.client.get("/openapi.json")).json()["paths"]
    page = Page(response.text)
    assert all(path in response.text for path in paths)
    assert all(f"{code} ({status.value})" in response.text for code, status in STATUS_OF_CODE.items())
    assert page.addresses == ["openapi.json"]
    assert "script" not in page.tags
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_the_docs_escape_what_they_show() -> None:
    openapi = {"info": {"title": "<img onerror>", "version": "1"}, "paths": {}}
    assert "img" not in Page(docs_page(openapi)).tags


async def test_the_openapi_document_names_the_forms_of_a_picture_and_of_a_mask(site: Site) -> None:
    operation = (await site.client.get("/openapi.json")).json()["paths"]["/v1/segment"]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "image/jpeg",
        "image/png",
        "image/webp",
        "application/octet-stream",
        "application/json",
        "multipart/form-data",
    }
    assert set(operation["responses"]["200"]["content"]) == {
        "image/png",
        "image/jpeg",
        "application/json",
        "application/x-npy",
        "application/octet-stream",
    }
    assert {p["name"] for p in operation["parameters"]} == {
        "output",
        "alpha",
        "classes",
        "mask",
        "confidence",
        "detail",
        "timeout_ms",
    }
    assert "application/problem+json" in operation["responses"]["default"]["content"]


async def test_each_operation_has_a_name_of_its_own_for_generated_clients(site: Site) -> None:
    paths = (await site.client.get("/openapi.json")).json()["paths"]
    names = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


async def test_the_openapi_document_names_the_errors_of_a_busy_service(site: Site) -> None:
    paths = (await site.client.get("/openapi.json")).json()["paths"]
    for path in ("/v1/segment", "/hf/{model}"):
        assert {"429", "503", "504", "default"} <= set(paths[path]["post"]["responses"])


async def test_the_openapi_document_describes_the_task_of_hugging_face(site: Site) -> None:
    document = (await site.client.get("/openapi.json")).json()
    operation = document["paths"]["/hf/{model}"]["post"]
    inputs = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(inputs) == {"inputs", "parameters"}
    (element,) = operation["responses"]["200"]["content"]["application/json"]["schema"]["items"].values()
    described = document["components"]["schemas"][element.rpartition("/")[2]]
    assert set(described["properties"]) == {"label", "score", "mask"}


async def test_the_openapi_document_refers_to_nothing_that_it_lacks(site: Site) -> None:
    text = (await site.client.get("/openapi.json")).text
    names = set(re.findall(r'"\$ref":"#/components/schemas/(\w+)"', text))
    assert "SegmentationDocument" in names
    assert names <= set(json.loads(text)["components"]["schemas"])
    assert text.count('"$ref"') == len(re.findall(r'"\$ref":"#/components/schemas/', text))


async def test_an_answer_is_counted_with_its_route_its_version_and_its_stages(site: Site) -> None:
    labels = ModelLabels("fake", 3, "fake", "cpu", "f32")
    site.metrics.model_loaded(labels, seconds=0)
    picture = encoded(np.zeros((32, 32, 3), np.uint8))
    await site.client.post("/v1/models/fake:segment", content=picture)
    await site.client.post("/v1/models/x\u00e4y:segment", content=picture)
    await site.client.post("/v1/elsewhere")
    text = site.metrics.exposition()[0].decode()
    route = "/v1/models/{model}:segment"
    for series in (
        f'bisenet_requests_total{{code="ok",model="fake",protocol="http",route="{route}",version="3"}} 1.0',
        f'bisenet_requests_total{{code="model_not_found",model="",protocol="http",route="{route}",version=""}}',
        'bisenet_requests_total{code="not_found",model="",protocol="http",route="unmatched",version=""} 1.0',
        'bisenet_stage_duration_seconds_count{stage="encode"} 1.0',
        'bisenet_stage_duration_seconds_count{stage="preprocess"} 1.0',
        "bisenet_inflight 0.0",
    ):
        assert series in text


async def test_a_picture_whose_client_left_is_counted_at_the_stage_of_its_end() -> None:
    engine = FakeEngine(held=True)
    picture = encoded(np.zeros((32, 32, 3), np.uint8))
    async with open_site(engine) as site:
        late = await site.client.post("/v1/segment?timeout_ms=200", content=picture)
        engine.go_on()
        assert late.status_code == 504
        text = site.metrics.exposition()[0].decode()
    assert 'bisenet_expired_total{stage="queue"} 1.0' in text
