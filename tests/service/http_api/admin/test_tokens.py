"""Tokens are made once, for their owner's eyes."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.http_api.admin.tokens import TokenFileError, obtain_token


def test_the_first_start_makes_a_token_and_the_next_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "admin-token"
    token = obtain_token(path)
    assert len(token) >= 40
    assert obtain_token(path) == token == path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_two_tokens_differ(tmp_path: Path) -> None:
    assert obtain_token(tmp_path / "one") != obtain_token(tmp_path / "two")


def test_all_who_start_at_once_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        tokens = set(pool.map(obtain_token, [tmp_path / "token"] * 64))
    assert len(tokens) == 1


def test_a_token_that_somebody_wrote_is_used(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  chosen-by-hand\n")
    path.chmod(0o440)
    assert obtain_token(path) == "chosen-by-hand"


@pytest.mark.parametrize(
    ("mode", "is_told"), [(0o600, False), (0o400, False), (0o440, False), (0o640, True), (0o644, True)]
)
def test_who_lets_others_read_a_token_is_told_so(tmp_path: Path, mode: int, *, is_told: bool) -> None:
    path = tmp_path / "token"
    path.write_text("chosen-by-hand")
    path.chmod(mode)
    with capture_logs() as log:
        assert obtain_token(path) == "chosen-by-hand"
    assert [entry["mode"] for entry in log] == [f"{mode:04o}"] * is_told


@pytest.mark.parametrize("content", ["", "\n", "two words", "caf\u00e9", "a\tb"])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content, "utf-8")
    with pytest.raises(TokenFileError, match="holds no token"):
        obtain_token(path)


def test_a_file_that_anybody_may_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("chosen-by-somebody")
    path.chmod(0o666)
    with pytest.raises(TokenFileError, match="written to by others"):
        obtain_token(path)


@pytest.mark.parametrize("name", ["folder", "file/token"])
def test_a_place_where_no_file_can_be_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenFileError, match=name):
        obtain_token(tmp_path / name)
