"""``docker-compose.yml``: it works on a new machine, and lets no other machine in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from service.settings import Layer, Settings, is_loopback, load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
ANONYMOUS = {"BISENET_AUTH__ALLOW_ANONYMOUS": "true"}
ON_ALL_ADDRESSES: Layer = {"server": {"host": "0.0.0.0"}}  # as the image's command says


def service() -> dict[str, Any]:
    services: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())[
        "services"
    ]
    (only,) = services.values()
    return only


def settings(**from_dotenv: str) -> Settings:
    written: dict[str, str | None] = service()["environment"]
    passed = {name: passed_on(name, value, from_dotenv) for name, value in written.items()}
    present = {name: value for name, value in passed.items() if value is not None}
    return load_settings(flags=ON_ALL_ADDRESSES, environment=present)


def passed_on(name: str, value: str | None, from_dotenv: Mapping[str, str]) -> str | None:
    if value is None:
        return from_dotenv.get(name)
    default = re.fullmatch(rf"\${{{name}:-(.*)}}", value)
    return value if default is None else from_dotenv.get(name, default[1])


def test_a_page_from_elsewhere_reaches_it_under_no_name_of_its_own() -> None:
    assert settings().server.allowed_hosts == ("localhost",)
    named = settings(BISENET_SERVER__ALLOWED_HOSTS="masks.example,localhost")
    assert named.server.allowed_hosts == ("masks.example", "localhost")


def test_without_keys_only_this_machine_can_ask() -> None:
    assert settings().auth.allow_anonymous
    assert not settings().auth.needs_key
    assert [port for port in service()["ports"] if not port.startswith("127.0.0.1:")] == []


def test_keys_in_dotenv_are_asked_for() -> None:
    keys = settings(BISENET_AUTH__KEYS="one,another").auth.keys
    assert [key.get_secret_value() for key in keys] == ["one", "another"]


def test_the_published_ports_are_those_that_are_listened_on_and_only_on_loopback() -> None:
    server = settings().server
    published = [port.rpartition(":") for port in service()["ports"]]
    assert [int(inside) for _, _, inside in published] == [server.http_port, server.grpc_port]
    assert all(outside.startswith("127.0.0.1:") for outside, _, _ in published)


def test_the_admin_port_can_be_let_out_to_this_machine_alone() -> None:
    written = (ROOT / "docker-compose.yml").read_text()
    opened = re.sub(r"^( +)# (?=(BISENET_SERVER__ADMIN_HOST|- ).)", r"\1", written, flags=re.MULTILINE)
    (service,) = yaml.safe_load(opened)["services"].values()
    environment = {"BISENET_SERVER__ADMIN_HOST": service["environment"]["BISENET_SERVER__ADMIN_HOST"]}
    server = load_settings(flags=ON_ALL_ADDRESSES, environment={**ANONYMOUS, **environment}).server
    assert not is_loopback(server.admin_host)
    assert f"127.0.0.1:${{BISENET_ADMIN_PORT:-8002}}:{server.admin_port}" in service["ports"]


def test_the_tokens_are_where_it_says() -> None:
    for token in re.findall(r"segmentation cat (\S+)", (ROOT / "docker-compose.yml").read_text()):
        assert f"_TOKEN_FILE={token}" in DOCKERFILE


def test_the_container_can_change_nothing_but_its_volume_and_tmp() -> None:
    compose = service()
    assert compose["read_only"] is True
    assert compose["cap_drop"] == ["ALL"]
    assert compose["security_opt"] == ["no-new-privileges:true"]
    assert [entry.partition(":")[0] for entry in compose["tmpfs"]] == ["/tmp"]
    (volume,) = compose["volumes"]
    assert f"\nVOLUME {volume.partition(':')[2]}\n" in DOCKERFILE


def test_requests_may_finish_before_the_container_is_killed() -> None:
    period = re.fullmatch(r"(\d+)s", service()["stop_grace_period"])
    assert period is not None
    assert int(period[1]) > settings().server.grace_s


def test_it_builds_a_stage_of_the_dockerfile() -> None:
    build = service()["build"]
    assert build["context"] == "."
    assert f" AS {build['target']}\n" in (ROOT / build["dockerfile"]).read_text()
