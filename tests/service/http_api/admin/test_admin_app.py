"""The admin frontend: nothing without a token, whatever trick is tried; and what it does with one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from fakes import admin_keys, write_pooling_artifact
from http_site import Site, open_site
from structlog.testing import capture_logs

from model.artifacts.manifest import ModelReference, ModelVersion
from model.artifacts.registry import ModelRegistry
from service.core.models.live_versions import LiveVersions
from service.http_api.access import LOOPBACK_HOSTS
from service.http_api.admin.access import AdminPolicy
from service.http_api.admin.app import create_admin_app
from service.http_api.admin.drain import drain_router
from service.http_api.admin.metrics import metrics_router
from service.http_api.admin.versions import versions_router
from service.http_api.open_inference.repository import repository_admin_router

ADMIN, SCRAPE = "the-token-of-the-admin", "the-token-of-the-scraper"
ALIAS = "/admin/v1/models/pool/aliases/production"
VERSION_2 = "/admin/v1/models/pool/versions/2"


class AdminSite:
    """The admin application of a site, and a client that shows a token or none."""

    def __init__(self, site: Site, registry: ModelRegistry) -> None:
        self.site = site
        self.registry = registry
        versions = LiveVersions(registry, site.host, [ModelReference("pool")])
        routers = [
            metrics_router(site.metrics),
            drain_router(site.lifecycle),
            versions_router(versions),
            repository_admin_router(versions),
        ]
        self.app = create_admin_app(
            routers,
            policy=AdminPolicy(admin_keys(ADMIN, SCRAPE), LOOPBACK_HOSTS),
            lifecycle=site.lifecycle,
            metrics=site.metrics,
        )

    async def ask(
        self, method: str, path: str, *, token: str = ADMIN, json: object = None, content: bytes | None = None
    ) -> httpx2.Response:
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers, json=json, content=content)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    folder = tmp_path_factory.mktemp("registry")
    registry = ModelRegistry(folder / "registry")
    for seed in range(2):
        registry.publish(write_pooling_artifact(folder / f"artifact-{seed}", seed=seed).folder, "pool")
    registry.publish(folder / "artifact-0", "other")
    return registry


@asynccontextmanager
async def administrated(registry: ModelRegistry) -> AsyncIterator[AdminSite]:
    async with open_site(versions=()) as site:
        version = ModelVersion("pool", 1)
        registry.promote(version)
        site.host.expect(version)
        site.host.load(version, registry.open(version))
        yield AdminSite(site, registry)


@pytest.fixture
async def admin(registry: ModelRegistry) -> AsyncIterator[AdminSite]:
    async with administrated(registry) as admin:
        yield admin


def code_of(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


async def test_the_scraper_sees_the_metrics_and_nothing_else(admin: AdminSite) -> None:
    await admin.site.client.get("/v1/models")
    response = await admin.ask("GET", "/metrics", token=SCRAPE)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert 'bisenet_requests_total{code="ok",model="",protocol="http",route="/v1/models"' in response.text
    assert code_of(await admin.ask("POST", "/admin/v1/drain", token=SCRAPE)) == (403, "forbidden")
    assert not admin.site.lifecycle.draining


async def test_a_stranger_is_told_which_token_is_needed(admin: AdminSite) -> None:
    for path, said in (("/metrics", "the scrape token or the admin token"), (ALIAS, "the admin token")):
        response = await admin.ask("GET", path, token="no")
        assert response.json()["detail"].startswith(f"{said} is needed")


async def test_the_admin_sees_them_too(admin: AdminSite) -> None:
    assert (await admin.ask("GET", "/metrics")).status_code == 200


async def test_a_promotion_is_served_at_once_and_rolled_back_as_fast(admin: AdminSite) -> None:
    response = await admin.ask("PUT", ALIAS, json={"version": 2})
    moved = {"model": "pool", "alias": "production", "served": True}
    assert response.json() == {**moved, "version": 2, "previous": [1]}
    assert admin.site.host.find("pool").version.number == 2
    response = await admin.ask("POST", f"{ALIAS}:rollback")
    assert response.json() == {**moved, "version": 1, "previous": []}
    assert admin.site.host.find("pool").version.number == 1


async def test_the_audit_log_tells_what_was_served_before_and_after(admin: AdminSite) -> None:
    with capture_logs() as log:
        await admin.ask("PUT", ALIAS, json={"version": 2})
        await admin.ask("POST", f"{ALIAS}:rollback")
        await admin.ask("PUT", ALIAS.replace("production", "fresh"), json={"version": 1})
        await admin.ask("POST", f"{VERSION_2}:load")
        await admin.ask("POST", f"{VERSION_2}:unload")
        for action in ("load", "unload"):
            await admin.ask("POST", f"/v2/repository/models/pool@2/{action}")
        await admin.ask("PUT", ALIAS, json={"version": 9})
    done = [entry for entry in log if entry["event"] == "audit" and entry["phase"] == "done"]
    assert [(entry.get("before"), entry.get("after")) for entry in done] == [
        ({"version": 1}, {"version": 2}),
        ({"version": 2}, {"version": 1}),
        (None, {"version": 1}),
        ({"loaded": [1]}, {"loaded": [1, 2]}),
        ({"loaded": [1, 2]}, {"loaded": [1]}),
        ({"loaded": [1]}, {"loaded": [1, 2]}),
        ({"loaded": [1, 2]}, {"loaded": [1]}),
        (None, None),
    ]
    assert done[-1]["code"] == "version_not_found"


async def test_a_promotion_that_changes_the_registry_alone_says_so(admin: AdminSite) -> None:
    response = await admin.ask("PUT", ALIAS.replace("production", "staging"), json={"version": 2})
    assert response.json()["served"] is False
    response = await admin.ask("POST", "/admin/v1/models/other/versions/1:load")
    assert response.status_code == 200
    response = await admin.ask("PUT", ALIAS.replace("pool", "other"), json={"version": 1})
    assert (response.status_code, response.json()["served"]) == (200, False)


@pytest.mark.parametrize(
    "content",
    [b"", b"2", b"{", b"[]", b"{}", b'{"version": "2"}', b'{"version": 2.5}', b'{"version": 0}', b"\xff",
     b'{"version": true}', b'{"version": 2, "force": true}', b'{"version": 9999999999999999999999}'],
)  # fmt: skip
async def test_a_promotion_to_nonsense_is_refused(admin: AdminSite, content: bytes) -> None:
    assert code_of(await admin.ask("PUT", ALIAS, content=content)) == (400, "invalid_argument")


async def test_a_document_has_an_end(admin: AdminSite) -> None:
    response = await admin.ask("PUT", ALIAS, content=b" " * 70_000)
    assert code_of(response) == (413, "payload_too_large")


async def test_the_registry_is_listed_with_what_is_served_and_where_aliases_point(admin: AdminSite) -> None:
    models = {model["name"]: model for model in (await admin.ask("GET", "/admin/v1/models")).json()["models"]}
    assert models["pool"]["versions"] == [{"version": 1, "served": True}, {"version": 2, "served": False}]
    aliases = {one["alias"]: one for one in models["pool"]["aliases"]}
    assert (aliases["production"]["version"], aliases["production"]["served"]) == (1, True)
    assert models["pool"]["bare_version"] == 1
    assert models["other"]["bare_version"] is None


async def test_a_version_comes_and_goes_by_its_number(admin: AdminSite) -> None:
    response = await admin.ask("POST", f"{VERSION_2}:load")
    assert (response.status_code, response.json()["version"]) == (200, 2)
    assert (await admin.site.client.get("/v1/models")).json()["models"][1]["version"] == 2
    response = await admin.ask("POST", f"{VERSION_2}:unload")
    assert response.json() == {"name": "pool", "version": 2, "state": "unloaded"}
    assert code_of(await admin.ask("POST", f"{VERSION_2}:unload")) == (404, "version_not_found")
    served = VERSION_2.replace("2", "1")
    assert code_of(await admin.ask("POST", f"{served}:unload")) == (409, "conflict")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("PUT", "/admin/v1/models/nobody/aliases/production", (404, "model_not_found")),
        ("PUT", "/admin/v1/models/pool/aliases/PRODUCTION", (400, "invalid_argument")),
        ("PUT", "/admin/v1/models/pool/aliases/a%20b", (400, "invalid_argument")),
        ("POST", "/admin/v1/models/pool/aliases/staging:rollback", (404, "version_not_found")),
        ("POST", "/admin/v1/models/pool/versions/0:load", (404, "version_not_found")),
        ("POST", "/admin/v1/models/pool/versions/9:load", (404, "version_not_found")),
        ("POST", "/admin/v1/models/..%2f..%2fetc/versions/1:load", (404, "not_found")),
        ("POST", "/admin/v1/models/pool/versions/1", (404, "not_found")),
        ("DELETE", "/admin/v1/models/pool/aliases/production", (405, "invalid_argument")),
        ("GET", "/docs", (404, "not_found")),
    ],
)
async def test_what_is_wrong_is_said(
    admin: AdminSite, method: str, path: str, expected: tuple[int, str]
) -> None:
    assert code_of(await admin.ask(method, path, json={"version": 2})) == expected


async def test_a_version_comes_and_goes_through_the_open_inference_protocol(admin: AdminSite) -> None:
    models = "/v2/repository/models"
    loaded = await admin.ask("POST", f"{models}/pool@2/load", json={"parameters": {}})
    assert (loaded.status_code, loaded.content) == (200, b"")
    assert [str(one.version) for one in admin.site.host.models] == ["pool@1", "pool@2"]
    assert (await admin.ask("POST", f"{models}/pool@2/unload")).status_code == 200
    assert (await admin.ask("POST", f"{models}/pool/load")).status_code == 200  # its alias means version 1
    assert [str(one.version) for one in admin.site.host.models] == ["pool@1"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("pool/unload", 409, "conflict"),
        ("pool@9/load", 404, "version_not_found"),
        ("pool@9/unload", 404, "version_not_found"),
        ("nobody/load", 404, "model_not_found"),
        ("nobody/unload", 404, "model_not_found"),
        ("pool:production/load", 400, "invalid_argument"),
        ("a b/load", 400, "invalid_argument"),
    ],
)
async def test_what_the_protocol_cannot_load_or_unload_is_a_plain_error(
    admin: AdminSite, path: str, status: int, code: str
) -> None:
    response = await admin.ask("POST", f"/v2/repository/models/{path}")
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]


async def test_draining_turns_readiness_and_ends_connections_but_not_answers(admin: AdminSite) -> None:
    assert (await admin.site.client.get("/readyz")).status_code == 200
    for _ in range(2):
        response = await admin.ask("POST", "/admin/v1/drain")
        assert (response.status_code, response.json()) == (202, {"state": "draining"})
    ready = await admin.site.client.get("/readyz")
    assert code_of(ready) == (503, "draining")
    assert ready.headers["connection"] == "close"
    answer = await admin.site.client.get("/v1/models")
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
