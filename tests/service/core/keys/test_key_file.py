"""The keys file is read whole or not at all, and changed whole or not at all."""

from __future__ import annotations

import datetime as dt
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from service.core.keys.access_key import AccessKey, is_secret, new_secret, secret_digest
from service.core.keys.key_file import KeyFileError, add_key, read_keys, revoke_key

FULL = AccessKey(
    "camera-3",
    secret_digest("hush"),
    ("stream", "infer"),
    dt.datetime(2027, 1, 2, tzinfo=dt.UTC),
    rate_per_s=2.5,
    concurrency=4,
)


def test_a_key_that_is_added_is_read_again_and_its_secret_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, FULL)
    assert read_keys(path) == (FULL,)
    assert "hush" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys"]


def test_bare_keys_of_earlier_files_open_inference_and_stay_when_others_are_added(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("first\n\n  second  \n")
    path.chmod(0o640)
    add_key(path, FULL)
    first, second, third = read_keys(path)
    assert (first.sha256, second.sha256) == (secret_digest("first"), secret_digest("second"))
    assert first.scopes == second.scopes == ("infer", "stream")
    assert third == FULL
    assert path.read_text().startswith("first\nsecond\n{")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_name_is_given_once_and_free_again_when_it_is_revoked(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, FULL)
    with pytest.raises(KeyFileError, match="has a key 'camera-3'"):
        add_key(path, msgspec.structs.replace(FULL, sha256=secret_digest("other")))
    revoke_key(path, "camera-3")
    assert read_keys(path) == ()
    with pytest.raises(KeyFileError, match="has no key 'camera-3'"):
        revoke_key(path, "camera-3")


def test_all_who_add_keys_at_once_are_heard(tmp_path: Path) -> None:
    path = tmp_path / "keys"

    def add(number: int) -> None:
        add_key(path, AccessKey.of_secret(f"secret-{number}", name=f"key-{number}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(32)))
    assert {key.name for key in read_keys(path)} == {f"key-{number}" for number in range(32)}


@pytest.mark.parametrize(
    "line",
    [
        "two words",
        "bell\a",
        "café",
        "{",
        '{"name": "a", "sha256": "00", "scopes": ["infer"]}',
        f'{{"name": "A b", "sha256": "{"0" * 64}", "scopes": ["infer"]}}',
        f'{{"name": "a", "sha256": "{"0" * 64}", "scopes": []}}',
        f'{{"name": "a", "sha256": "{"0" * 64}", "scopes": ["root"]}}',
        f'{{"name": "a", "sha256": "{"0" * 64}", "scopes": ["infer"], "extra": 1}}',
        f'{{"name": "a", "sha256": "{"0" * 64}", "scopes": ["infer"], "expires": "2027-01-01T00:00:00"}}',
        f'{{"name": "a", "sha256": "{"0" * 64}", "scopes": ["infer"], "rate_per_s": 0}}',
        f'{{"name": "a", "sha256": "{"0" * 64}", "scopes": ["infer"], "concurrency": 0}}',
    ],
)
def test_a_line_that_is_no_key_is_named_by_its_number(line: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"good\n{line}\n", "utf-8")
    with pytest.raises(KeyFileError, match=r"keys, line 2: ") as caught:
        read_keys(path)
    assert "00000000" not in str(caught.value)


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (AccessKey.of_secret("hush", name="other"), "secret"),
        (AccessKey.of_secret("x", name="camera-3"), "name"),
    ],
)
def test_two_keys_with_one_name_or_secret_are_refused(second: AccessKey, what: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, (FULL, second))))
    with pytest.raises(KeyFileError, match=f"number 2 has the {what}"):
        read_keys(path)


@pytest.mark.parametrize("name", ["none", "folder", "file/keys"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match=name):
        read_keys(tmp_path / name)
    with pytest.raises(KeyFileError, match="none"):
        add_key(tmp_path / "none" / "keys", FULL)


def test_new_secrets_are_long_and_differ() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(is_secret(secret) and len(secret) >= 48 for secret in made)
