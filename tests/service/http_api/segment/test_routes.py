"""What the routes ask for, and that the head of a request is enough to refuse it under overload."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import numpy as np
import pytest
from fakes import FakeEngine, key_ring, red_scores, until
from http_site import Site, encoded, open_site, picture_of
from starlette.datastructures import Headers
from starlette.types import Scope

from model.pictures.preprocess import ImageSize
from service.core.device.engine import Float32Array, ImageBatch
from service.core.errors import VersionNotFoundError
from service.http_api.access import AccessPolicy
from service.http_api.app import HttpOptions
from service.http_api.exchange import Exchange
from service.http_api.segment.routes import INFER_ROUTES, ROUTES, SegmentTarget, target_of

PICTURE = encoded(picture_of(np.zeros((16, 24), np.uint8)))


@asynccontextmanager
async def a_full_site() -> AsyncIterator[tuple[Site, list[bytes]]]:
    """Yield a service whose one waiting place is taken, and what it receives of further bodies."""
    engine = FakeEngine(held=True)
    received: list[bytes] = []
    async with open_site(engine, max_waiting=1) as site:
        tasks = [asyncio.create_task(site.client.post("/v1/segment", content=PICTURE))]
        await asyncio.to_thread(engine.wait_until_busy)
        tasks.append(asyncio.create_task(site.client.post("/v1/segment", content=PICTURE)))
        while not site.host._dispatcher.num_waiting:  # noqa: ASYNC110 - nothing tells when a request waits
            await asyncio.sleep(0)
        try:
            yield site, received
        finally:
            engine.go_on(len(tasks))
        assert [(await task).status_code for task in tasks] == [200, 200]


async def refusal(site: Site, received: list[bytes], target: str, **headers: str) -> httpx2.Response:
    async def picture() -> AsyncIterator[bytes]:
        received.append(PICTURE)
        yield PICTURE

    return await site.client.post(target, content=picture(), headers=headers)


async def test_another_client_finds_a_place_behind_a_flood_and_the_flood_has_its_share() -> None:
    engine = FakeEngine(held=True)
    keys = key_ring("one", "another")
    async with open_site(engine, options=HttpOptions(AccessPolicy(keys)), max_waiting=8) as site:

        async def ask(key: str) -> httpx2.Response:
            headers = {"Authorization": f"Bearer {key}"}
            return await site.client.post("/v1/segment", content=PICTURE, headers=headers)

        async def wait_until(waiting: int) -> None:
            while site.host._dispatcher.num_waiting < waiting:  # noqa: ASYNC110 - nothing tells when it waits
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(ask("one"))]
        await asyncio.to_thread(engine.wait_until_busy)
        tasks += [asyncio.create_task(ask("one")) for _ in range(8)]
        await wait_until(8)
        tasks.append(asyncio.create_task(ask("another")))
        await wait_until(9)
        refused = await ask("one")
        engine.go_on(10)
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert [(await task).status_code for task in tasks] == [200] * 10


async def test_of_several_clients_none_fills_more_than_its_share() -> None:
    async with open_site(max_waiting=8) as site:
        promises = [
            site.host.find().reserve(ImageSize(32, 32), deadline_s=time.monotonic() + 60, source=source)
            for source in ("192.0.2.1", *["127.0.0.1"] * 4)
        ]
        refused = await site.client.post("/v1/segment", content=PICTURE)
        for promise in promises:
            promise.future.cancel()
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")


def test_who_asks_is_a_key_or_where_there_are_none_an_address() -> None:
    def source(client: tuple[str, int] | None, authorization: str | None = None) -> str | None:
        scope: Scope = {"type": "http", "client": client, "headers": [], "path": "/v1/segment"}
        exchange = Exchange.begin(scope, now_s=0.0)
        policy = AccessPolicy(None if authorization is None else key_ring("one", "another"))
        admission = policy.admit(Headers({"authorization": authorization or ""}), "/v1/segment")
        if admission is not None:
            exchange.admitted(admission)
        return policy.source(scope)

    address = ("192.0.2.1", 5000)
    asking = {source(address, f"{kind} one") for kind in ("Bearer", "bearer", "Bearer ")}
    assert len(asking) == 1
    assert asking != {source(address, "Bearer another")}
    assert source(address) == "192.0.2.1"
    assert source(None) is None


async def test_what_has_no_place_is_refused_on_every_route_before_its_picture_is_received() -> None:
    async with a_full_site() as (site, received):
        for route in (*ROUTES, *INFER_ROUTES):
            target = route.format(model="fake", version=3)
            response = await refusal(site, received, target)
            assert (response.status_code, response.json()["code"]) == (429, "queue_full")
            assert int(response.headers["retry-after"]) >= 1
            counted = (
                f'bisenet_requests_total{{code="queue_full",model="unknown",protocol="http",route="{route}"'
            )
            assert counted in site.metrics.exposition()[0].decode()
        assert not received


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        ("/v1/models/nobody:segment", {}, 404),
        ("/v1/models/fake/versions/9:segment", {}, 404),
        ("/v1/models/fake/versions/one:segment", {}, 404),
        ("/v1/segment?timeout_ms=soon", {}, 400),
        ("/v1/segment?timeout_ms=1&timeout_ms=2", {}, 400),
        ("/v1/segment", {"X-Request-Timeout-Ms": "soon"}, 400),
        ("/v1/segments", {}, 404),
    ],
)
async def test_what_is_wrong_anyway_is_told_by_the_route(
    target: str, headers: dict[str, str], status: int
) -> None:
    async with a_full_site() as (site, received):
        assert (await refusal(site, received, target, **headers)).status_code == status


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1/segment", SegmentTarget("/v1/segment")),
        ("/v1/models/a.b-c:segment", SegmentTarget("/v1/models/{model}:segment", "a.b-c")),
        (
            "/v1/models/a/versions/12:segment",
            SegmentTarget("/v1/models/{model}/versions/{version}:segment", "a", "12"),
        ),
        ("/v1/segment/", None),
        ("/v1/models/a", None),
        ("/v1/models/a/b:segment", None),
        ("/v1/models/:segment", None),
        ("/v1/segment\n", None),
    ],
)
def test_a_path_says_which_model_is_asked(path: str, target: SegmentTarget | None) -> None:
    assert target_of(path) == target


def test_the_number_of_a_version_is_a_number() -> None:
    assert SegmentTarget("", "a", "12").version_number == 12
    assert SegmentTarget("", "a").version_number is None
    for text in ("0", "01", "latest", "1.0", "9" * 5000):
        with pytest.raises(VersionNotFoundError):
            _ = SegmentTarget("", "a", text).version_number


async def test_another_method_than_post_is_told_which_one_is_allowed() -> None:
    async with open_site() as site:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            response = await site.client.request(method, "/v1/models/fake:segment")
            assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_after_three_tiny_pictures_as_many_large_ones_are_all_answered() -> None:
    tiny, large = (encoded(np.zeros((side, side, 3), np.uint8)) for side in (16, 2048))

    def scores(images_NHW3: ImageBatch) -> Float32Array:
        if images_NHW3.shape[1] < 2048:
            time.sleep(0.05)  # of which 2048x2048 pixels would take 3 minutes, if pixels were all that counts
        return red_scores(images_NHW3)

    engine = FakeEngine(held=True, answer=scores)
    async with open_site(engine) as site:

        def ask(picture: bytes) -> asyncio.Task[httpx2.Response]:
            return asyncio.create_task(site.client.post("/v1/segment?timeout_ms=30000", content=picture))

        for _ in range(3):
            engine.go_on()
            assert (await ask(tiny)).status_code == 200
        tasks = [ask(large)]
        await until(lambda: engine.seen[-1][1] == 2048)
        tasks += [ask(large), ask(large)]
        await until(lambda: any(task.done() for task in tasks) or site.host._dispatcher.num_waiting == 2)
        engine.go_on(3)
        assert [(await task).status_code for task in tasks] == [200, 200, 200]
