"""``bisenet keys`` makes keys that a service accepts, and takes them away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.keys import app
from service.core.errors import UnauthenticatedError
from service.core.keys.key_ring import KeyRing


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "api-keys"


def test_the_secret_that_is_printed_opens_the_service_and_is_not_in_the_file(file: Path) -> None:
    result = run("create", "camera-3", "--file", file, "--scope", "stream", "--expires", "90d")
    assert result.exit_code == 0
    secret = result.stdout.strip()
    assert secret not in file.read_text()
    admission = KeyRing((), file).admit(f"Bearer {secret}", "stream", needed="")
    assert admission.key.name == "camera-3"
    assert admission.key.scopes == ("stream",)


def test_all_that_a_key_may_is_reported_as_json(file: Path) -> None:
    limits = ("--rate", "2.5", "--concurrency", "3", "--expires", "2001-01-31")
    made = json.loads(run("create", "ci", "--file", file, *limits, "--json").stdout)
    (listed,) = json.loads(run("list", "--file", file, "--json").stdout)
    assert made == {"key": made["key"], **listed}
    assert listed == {
        "name": "ci",
        "scopes": ["infer", "stream"],
        "expires": "2001-01-31T00:00:00+00:00",
        "expired": True,
        "rate_per_s": 2.5,
        "concurrency": 3,
    }
    assert run("list", "--file", file).stdout == (
        "ci: infer, stream; expired 2001-01-31T00:00:00+00:00; 2.5 requests a second; 3 at the same time\n"
    )


def test_a_revoked_key_opens_nothing(file: Path) -> None:
    secret = run("create", "one", "--file", file).stdout.strip()
    run("create", "two", "--file", file)
    assert run("revoke", "one", "--file", file).exit_code == 0
    with pytest.raises(UnauthenticatedError):
        KeyRing((), file).admit(f"Bearer {secret}", "infer", needed="")
    assert run("revoke", "one", "--file", file).exit_code == 1


def test_the_keys_file_of_the_configuration_is_the_default(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BISENET_AUTH__KEYS_FILE", raising=False)
    config = tmp_path / "bisenet.toml"
    config.write_text(f'[auth]\nkeys_file = "{file}"\n')
    assert run("create", "one", "--config", config).exit_code == 0
    assert run("list", "--file", file).stdout.startswith("one: ")
    without = run("list")
    assert without.exit_code == 2
    assert "--file" in without.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["Upper"],
        ["a", "--scope", "root"],
        ["a", "--expires", "soon"],
        ["a", "--rate", "0"],
        ["a", "--concurrency", "-1"],
    ],
)
def test_a_wrong_word_is_a_usage_error_in_one_line(words: list[str], file: Path) -> None:
    result = run("create", *words, "--file", file)
    assert (result.exit_code, file.exists()) == (2, False)
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_name_that_is_taken_is_a_failure(file: Path) -> None:
    run("create", "one", "--file", file)
    result = run("create", "one", "--file", file)
    assert result.exit_code == 1
    assert "choose another name" in result.stderr
