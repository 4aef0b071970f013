"""``docker/Dockerfile`` and ``.dockerignore``: what gets into the image, and how it says that it is run."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from service.settings import Layer, Settings, SettingsError, load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(keyword, rest) for keyword, _, rest in (line.partition(" ") for line in joined.splitlines())]


ALL = instructions(DOCKERFILE)
STAGE_STARTS = [i for i, (keyword, _) in enumerate(ALL) if keyword == "FROM"]
CPU_IMAGE = ALL[STAGE_STARTS[-1] :]


def only(keyword: str) -> str:
    (rest,) = (rest for name, rest in CPU_IMAGE if name == keyword)
    return rest


def image_environment() -> dict[str, str]:
    pairs = (word.split("=", 1) for word in shlex.split(only("ENV")))
    return {name: value for name, value in pairs if name.startswith("BISENET_")}


def copied_from_the_project() -> set[str]:
    copies = [shlex.split(rest) for keyword, rest in ALL if keyword == "COPY"]
    copied = {source for words in copies if not words[0].startswith("--from=") for source in words[:-1]}
    mounts = re.findall(r"--mount=type=bind,source=([^,]+),", DOCKERFILE)
    return copied | set(mounts)


def let_through() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return {line[1:] for line in lines if line.startswith("!")}


def test_the_base_image_has_a_python_that_the_project_supports() -> None:
    found = re.fullmatch(r"PYTHON_IMAGE=python:(\d+\.\d+)-slim-\w+", ALL[0][1])
    assert found is not None
    minimum = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert [int(part) for part in found[1].split(".")] >= [int(part) for part in minimum.split(".")]


def test_every_stage_stands_on_the_one_base_image() -> None:
    assert {rest.partition(" ")[0] for keyword, rest in ALL if keyword == "FROM"} == {"${PYTHON_IMAGE}"}


def test_no_frontend_has_to_be_pulled_to_read_it() -> None:
    assert not re.search(r"^#\s*syntax\s*=", DOCKERFILE, re.MULTILINE | re.IGNORECASE)


def test_the_builder_is_sent_what_is_copied_and_nothing_else() -> None:
    first_rule = next(
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    )
    assert first_rule == "*"
    assert let_through() == copied_from_the_project()


def test_what_is_copied_exists() -> None:
    assert [name for name in sorted(copied_from_the_project()) if not (ROOT / name).exists()] == []


def test_all_that_the_wheel_is_made_of_is_copied() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = PROJECT["project"]
    parts = {*wheel["packages"], *wheel["force-include"], *project["license-files"], project["readme"]}
    assert parts <= copied_from_the_project()


def command() -> list[str]:
    words: list[str] = json.loads(only("CMD"))
    return words


def settings(**environment: str) -> Settings:
    flags: Layer = {"server": {"host": command()[command().index("--host") + 1]}}
    return load_settings(flags=flags, environment=image_environment() | environment)


def anonymous_settings() -> Settings:
    return settings(BISENET_AUTH__ALLOW_ANONYMOUS="true")


def test_all_that_the_service_writes_lies_in_the_volume() -> None:
    volume = Path(only("VOLUME"))
    assert volume in anonymous_settings().models.cache_folder.parents
    assert volume in Path(anonymous_settings().registry.url).parents


def test_the_ports_that_are_exposed_and_probed_are_those_that_are_listened_on() -> None:
    server = anonymous_settings().server
    assert [int(port) for port in only("EXPOSE").split()] == [server.http_port, server.grpc_port]
    assert f"HTTPConnection('127.0.0.1', {server.http_port})" in only("HEALTHCHECK")


def test_it_can_be_published_but_serves_no_other_machine_without_keys() -> None:
    assert not anonymous_settings().server.is_loopback
    with pytest.raises(SettingsError, match="is open to other machines"):
        settings()


def test_the_user_is_a_number_and_not_root() -> None:
    user, _, group = only("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_no_shell_stands_between_docker_and_the_process() -> None:
    assert json.loads(only("ENTRYPOINT")) == ["bisenet"]
    assert command()[0] == "serve"
    assert json.loads(only("HEALTHCHECK").partition(" CMD ")[2])[0] == "python"
