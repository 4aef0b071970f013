from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import write_pooling_artifact
from typer.testing import CliRunner, Result

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import WEIGHTS_FILE
from service.cli import models

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return what runs ``bisenet models`` on an empty registry of its own."""

    def run(*arguments: object) -> Result:
        environment = {
            "BISENET_REGISTRY": str(tmp_path / "registry"),
            "BISENET_MODELS__CACHE_FOLDER": str(tmp_path / "cache"),
        }
        return CliRunner().invoke(models.app, [str(argument) for argument in arguments], env=environment)

    return run


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _: None)


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_pooling_artifact(tmp_path_factory.mktemp("pooling") / "artifact")


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_model_is_published_listed_shown_and_verified(run: Run, tiny_artifact: Artifact) -> None:
    published = answer(run("publish", tiny_artifact.folder, "--name", "tiny", "--json"))
    assert published == {"name": "tiny", "version": 1, "weights": "proven"}
    assert {"name": "tiny", "version": 1, "aliases": []} in answer(run("list", "--json"))
    shown = answer(run("show", "tiny", "--json"))
    assert shown["version"] == 1
    assert shown["architecture"] == "bisenetv2"
    assert shown["palette"]["names"] == list(tiny_artifact.manifest.palette.names)
    verified = answer(run("verify", "tiny@1", "--json"))
    assert verified == {
        "name": "tiny",
        "version": 1,
        "files": "intact",
        "graph": "proven",
        "weights": "proven",
    }


@pytest.mark.usefixtures("without_torch")
def test_a_model_says_what_it_was_fine_tuned_from(run: Run, tmp_path: Path) -> None:
    for name, provenance in (
        ("tuned", {"started_from": "city@3"}),
        ("new", {"started_from": "random weights"}),
    ):
        artifact = write_pooling_artifact(tmp_path / name, provenance=provenance)
        assert run("publish", artifact.folder, "--name", name).exit_code == 0
    assert "finetuned_from   city@3" in run("show", "tuned").stdout
    assert "finetuned_from" not in run("show", "new").stdout


@pytest.mark.usefixtures("without_torch")
def test_where_torch_is_missing_the_answer_says_what_was_not_checked(run: Run, pooling: Artifact) -> None:
    not_checked = "not checked: torch is not installed"
    assert answer(run("publish", pooling.folder, "--name", "city", "--json"))["weights"] == not_checked
    assert answer(run("verify", "city", "--json"))["weights"] == not_checked


@pytest.mark.usefixtures("without_torch")
def test_people_get_lines_of_text(run: Run, pooling: Artifact) -> None:
    assert run("publish", pooling.folder, "--name", "city").stdout.startswith("published city@1 (weights: ")
    assert run("publish", pooling.folder, "--name", "city").stdout.startswith("published city@2 ")
    promoted = run("promote", "city@1")
    assert promoted.stdout == "city:production points at city@1\n"
    assert "after PUT on its admin port" in promoted.stderr
    assert "city@1  production\ncity@2\n" in run("list").stdout
    assert "names" in run("show", "city").stdout
    assert run("verify", "city").stdout.startswith("city@1: files intact, graph proven, weights ")
    run("promote", "city@2")
    assert run("rollback", "city").stdout == "city:production points at city@1\n"
    assert run("delete", "city@2").stdout == "deleted city@2\n"


@pytest.mark.usefixtures("without_torch")
def test_aliases_are_moved_back_and_forth_and_what_they_left_is_deleted(run: Run, pooling: Artifact) -> None:
    for _ in range(3):
        run("publish", pooling.folder, "--name", "city")
    move = {"name": "city", "alias": "production"}
    assert answer(run("promote", "city@1", "--json")) == {**move, "version": 1, "previous": []}
    assert answer(run("promote", "city@3", "--json")) == {**move, "version": 3, "previous": [1]}
    assert answer(run("rollback", "city", "--json")) == {**move, "version": 1, "previous": []}
    canary = answer(run("promote", "city@2", "--alias", "canary", "--json"))
    assert canary == {"name": "city", "alias": "canary", "version": 2, "previous": []}
    assert answer(run("delete", "city@3", "--json")) == {"name": "city", "version": 3}
    rows = [row for row in answer(run("list", "--json")) if row["name"] == "city"]
    assert [(row["version"], row["aliases"]) for row in rows] == [(1, ["production"]), (2, ["canary"])]


@pytest.mark.usefixtures("without_torch")
def test_a_change_that_is_refused_exits_with_1_and_one_line(run: Run, pooling: Artifact) -> None:
    run("publish", pooling.folder, "--name", "city")
    run("promote", "city@1")
    for arguments, named in (
        (("delete", "city@1"), "city:production points at city@1"),
        (("delete", "city@2"), "city@2"),
        (("promote", "city@2"), "city@2"),
        (("rollback", "city"), "no earlier version"),
        (("rollback", "city", "--alias", "canary"), "city:canary"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert named in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["import", "export"])
def test_what_has_a_file_of_its_own_is_a_command_too(run: Run, command: str) -> None:
    assert run(command, "--help").exit_code == 0


@pytest.mark.usefixtures("without_torch")
def test_the_flag_wins_over_the_environment(run: Run, pooling: Artifact, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert run("publish", pooling.folder, "--name", "city", "--registry", other).exit_code == 0
    assert "city@1" not in run("list").stdout
    assert "city@1" in run("list", "--registry", other).stdout


@pytest.mark.usefixtures("without_torch")
def test_what_fails_exits_with_1_and_one_line(run: Run, pooling: Artifact, tmp_path: Path) -> None:
    run("publish", pooling.folder, "--name", "city")
    taken = run("publish", pooling.folder, "--name", "city", "--version", 1)
    missing = run("show", "village")
    empty = run("publish", tmp_path, "--name", "city")
    (tmp_path / "registry" / "models" / "city" / "1" / WEIGHTS_FILE).write_bytes(b"other")
    damaged = run("verify", "city")
    for result, named in ((taken, "city@1"), (missing, "village"), (empty, "manifest"), (damaged, "SHA-256")):
        assert result.exit_code == 1
        assert named in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_weights_of_an_unknown_architecture_are_not_published(run: Run, pooling: Artifact) -> None:
    refused = run("publish", pooling.folder, "--name", "city")
    assert refused.exit_code == 1
    assert "pooling" in refused.stderr
    assert "city" not in run("list").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", "/nowhere", "--name", "city"),
        ("publish", "."),
        ("publish", ".", "--name", "city", "--version", "0"),
        ("show", "City"),
        ("verify", "city@x"),
        ("promote", "city"),
        ("promote", "city:canary"),
        ("promote", "city@1", "--alias", "Canary"),
        ("rollback", "City"),
        ("delete", "city"),
        ("list", "--registry", "ftp://host/models"),
        ("lst",),
    ],
)
def test_bad_usage_exits_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.usefixtures("without_torch")
def test_a_name_that_is_none_exits_with_2(run: Run, pooling: Artifact) -> None:
    assert run("publish", pooling.folder, "--name", "City").exit_code == 2
