"""Pages of other origins: which may ask, and what they can read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import key_ring
from http_site import encoded, open_site

from service.http_api.access import AccessPolicy
from service.http_api.app import HttpOptions

APP = "https://app.example.org"
PREFLIGHT = {
    "Origin": APP,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-request-timeout-ms",
}
KEYED = AccessPolicy(key_ring("key"))


def options(*origins: str) -> HttpOptions:
    return HttpOptions(access=KEYED, cors_origins=origins)


async def test_a_preflight_of_a_known_origin_needs_no_key() -> None:
    async with open_site(options=options(APP)) as site:
        answer = await site.client.options("/v1/segment", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == APP
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "content-type", "x-request-timeout-ms"))


async def test_a_page_of_a_known_origin_can_read_answers_and_errors_with_their_headers() -> None:
    picture = encoded(np.zeros((16, 16, 3), np.uint8))
    async with open_site(options=options(APP)) as site:
        for key, status in (("key", 200), ("wrong", 401)):
            headers = {"Origin": APP, "Authorization": f"Bearer {key}"}
            answer = await site.client.post("/v1/segment", content=picture, headers=headers)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == APP
            exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
            told = {name for name in answer.headers if name.startswith("x-")} | {"retry-after"}
            assert told <= set(exposed)


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ((APP,), "https://other.example.org", None),
        ((APP,), "http://app.example.org", None),
        ((APP,), "null", None),
        (("*",), "https://other.example.org", "*"),
    ],
)
async def test_another_origin_is_allowed_only_if_all_are(
    origins: tuple[str, ...], origin: str, allowed: str | None
) -> None:
    async with open_site(options=options(*origins)) as site:
        headers: dict[str, Any] = {**PREFLIGHT, "Origin": origin}
        preflight = await site.client.options("/v1/segment", headers=headers)
        answer = await site.client.get("/livez", headers={"Origin": origin})
    assert preflight.headers.get("access-control-allow-origin") == allowed
    assert answer.headers.get("access-control-allow-origin") == allowed
    assert (preflight.status_code == 200) is (allowed is not None)


async def test_without_origins_there_are_no_preflights() -> None:
    async with open_site(options=options()) as site:
        answer = await site.client.options("/v1/segment", headers=PREFLIGHT)
    assert answer.status_code == 401
    assert "access-control-allow-origin" not in answer.headers
