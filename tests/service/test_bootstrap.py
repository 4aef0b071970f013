"""The composition root: it runs the configuration, or says why it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from http_site import encoded

from model.errors import ModelNotFoundError, VersionNotFoundError
from model.labels import UInt8Array
from service.bootstrap import Service, StartError, open_service, run_service
from service.core.device.engine import EngineUnavailableError
from service.http_api.connection.server import listen
from service.settings import Layer, RegistrySettings, Settings, SettingsError, load_settings


@pytest.fixture
def settings(tiny_registry: Path, shared_cache: Path) -> Settings:
    return configured(tiny_registry, shared_cache)


def configured(registry: Path, cache: Path, **sections: Mapping[str, Any]) -> Settings:
    models = {"serve": ["tiny"], "cache_folder": cache} | dict(sections.pop("models", {}))
    jobs = {"mode": "off"} | dict(sections.pop("jobs", {}))
    server = {"admin_port": 0, "grpc_port": 0} | dict(sections.pop("server", {}))
    tokens = {f"{name}_token_file": cache / f"{name}-token" for name in ("admin", "scrape")}
    auth = tokens | dict(sections.pop("auth", {}))
    flags: Layer = {
        "registry": {"url": str(registry)},
        "models": models,
        "jobs": jobs,
        "server": server,
        "auth": auth,
        **sections,
    }
    return load_settings(flags=flags, environment={})


def client_of(service: Service, host: str = "localhost") -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app=service.app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url=f"http://{host}")


async def test_a_service_answers_once_its_models_are_loaded(settings: Settings, photo: UInt8Array) -> None:
    with open_service(settings) as service:
        async with client_of(service) as client:
            assert (await client.post("/v1/segment", content=encoded(photo))).status_code == 503
            service.load_models()
            response = await client.post("/v1/segment", content=encoded(photo))
    assert (response.status_code, response.headers["x-model-name"]) == (200, "tiny")
    (served,) = service.host.models
    assert served.engine.engine == "openvino"


async def test_limits_of_the_settings_are_kept(
    tiny_registry: Path, shared_cache: Path, photo: UInt8Array
) -> None:
    limits = {"max_body_bytes": 50_000, "max_pixels": 10_000, "max_infer_pixels": 1000}
    with open_service(configured(tiny_registry, shared_cache, limits=limits)) as service:
        service.load_models()
        async with client_of(service) as client:

            async def code(content: bytes) -> object:
                response = await client.post("/v1/segment", content=content)
                return response.headers.get("x-inference-size") or response.json()["code"]

            assert await code(bytes(50_001)) == "payload_too_large"
            assert await code(encoded(photo[:101, :100])) == "too_many_pixels"
            assert await code(encoded(photo[:100, :100])) == "31x31"


@pytest.mark.parametrize("named", ["localhost", "127.0.0.1:8000", "proxy.example"])
async def test_a_loopback_service_answers_to_its_own_and_to_allowed_names(
    tiny_registry: Path, shared_cache: Path, named: str
) -> None:
    server = {"allowed_hosts": ["Proxy.example"]}
    with open_service(configured(tiny_registry, shared_cache, server=server)) as service:
        async with client_of(service, named) as client:
            assert (await client.get("/livez")).status_code == 200
        async with client_of(service, "other.example") as client:
            assert (await client.get("/livez")).status_code == 403


async def test_a_public_service_answers_to_any_name_but_asks_for_a_key(
    tiny_registry: Path, shared_cache: Path
) -> None:
    public, keys = {"host": "0.0.0.0"}, {"keys": ["key-1"]}
    with open_service(configured(tiny_registry, shared_cache, server=public, auth=keys)) as service:
        async with client_of(service, "any.example") as client:
            assert (await client.get("/v1/models")).status_code == 401
            authorized = {"Authorization": "Bearer key-1"}
            assert (await client.get("/v1/models", headers=authorized)).status_code == 200


@pytest.mark.parametrize(
    ("reference", "error"),
    [("none", ModelNotFoundError), ("tiny@2", VersionNotFoundError), ("tiny:staging", VersionNotFoundError)],
)
def test_a_model_that_is_not_there_is_not_loaded(
    tiny_registry: Path, shared_cache: Path, reference: str, error: type[Exception]
) -> None:
    with (
        open_service(configured(tiny_registry, shared_cache, models={"serve": [reference]})) as service,
        pytest.raises(error),
    ):
        service.load_models()


def test_an_engine_that_cannot_run_here_is_not_replaced_by_another(
    tiny_registry: Path, shared_cache: Path
) -> None:
    models = {"engine": "openvino", "device": "cuda:0"}
    with (
        open_service(configured(tiny_registry, shared_cache, models=models)) as service,
        pytest.raises(EngineUnavailableError),
    ):
        service.load_models()


@pytest.mark.guarantee("G24")
@pytest.mark.parametrize("key", ["http_port", "grpc_port", "admin_port"])
def test_a_taken_port_stops_the_start(tiny_registry: Path, shared_cache: Path, key: str) -> None:
    try:
        with listen("127.0.0.1", 0) as holder:
            port = holder.getsockname()[1]
            server = {"http_port": 0, key: port}
            with pytest.raises(StartError, match=str(port)):
                run_service(configured(tiny_registry, shared_cache, server=server), on_ready=print)
    finally:
        structlog.reset_defaults()


def test_a_url_that_names_no_registry_is_a_wrong_setting(shared_cache: Path) -> None:
    wrong = configured(Path("unused"), shared_cache).model_copy(
        update={"registry": RegistrySettings(url="ftp://host/models")}
    )
    with pytest.raises(SettingsError, match=r"registry\.url: .*ftp://host"), open_service(wrong):
        pass


def test_a_token_file_that_cannot_be_made_is_a_wrong_setting(tiny_registry: Path, shared_cache: Path) -> None:
    auth = {"scrape_token_file": "/dev/null/token"}
    with (
        pytest.raises(SettingsError, match=r"auth\.scrape_token_file"),
        open_service(configured(tiny_registry, shared_cache, auth=auth)),
    ):
        pass


async def test_allowed_hosts_are_kept_to_on_a_public_address_too(
    tiny_registry: Path, shared_cache: Path
) -> None:
    public = {"host": "0.0.0.0", "allowed_hosts": ["api.example"]}
    settings = configured(tiny_registry, shared_cache, server=public, auth={"allow_anonymous": True})
    with open_service(settings) as service:
        for host, status in (("api.example", 200), ("localhost", 200), ("other.example", 403)):
            async with client_of(service, host) as client:
                assert (await client.get("/livez")).status_code == status


def test_a_keys_file_that_is_not_there_stops_the_start(tiny_registry: Path, shared_cache: Path) -> None:
    auth = {"keys_file": "/nonexistent/keys"}
    with (
        pytest.raises(SettingsError, match="keys_file"),
        open_service(configured(tiny_registry, shared_cache, auth=auth)),
    ):
        pass
