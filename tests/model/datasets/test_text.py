from __future__ import annotations

import os
from pathlib import Path

import pytest

from model.datasets.text import decode_text, expand_home, printable, read_toml
from model.errors import DatasetError


@pytest.mark.parametrize("name", [b"sch\xf6n.jpg", b"\xff\xfe", "schön".encode()])
def test_any_file_name_can_be_printed(name: bytes) -> None:
    text = printable(os.fsdecode(name))
    assert text.encode().decode() == text
    assert printable(Path("a/b")) == "a/b"


def test_text_has_a_byte_order_mark_or_not() -> None:
    assert decode_text(b"\xef\xbb\xbfname") == decode_text(b"name") == "name"


def test_text_that_is_not_utf_8_is_refused_with_the_byte_and_the_command() -> None:
    with pytest.raises(ValueError, match=r"byte 3 \(0xf6\) is not UTF-8; .*iconv -f CP1252"):
        decode_text(b"sch\xf6n")
    assert os.fsencode(decode_text(b"sch\xf6n", errors="surrogateescape")) == b"sch\xf6n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_utf_16_is_refused_with_the_command(encoding: str) -> None:
    with pytest.raises(ValueError, match="UTF-16"):
        decode_text("name".encode(encoding))


def test_the_home_folder_is_put_in_place_of_a_tilde_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert expand_home("~/data") == "/home/ann/data"
    assert [expand_home(path) for path in ("a/~/b", "~no such user~/x", "")] == [
        "a/~/b",
        "~no such user~/x",
        "",
    ]


def test_toml_has_a_byte_order_mark_or_not(tmp_path: Path) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "d.toml").write_bytes(mark + b'name = "d"\r\n')
        assert read_toml(tmp_path / "d.toml") == {"name": "d"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"name", "not TOML"),
        (b'root = "C:\\data"', r"not TOML: .*; Windows paths need slashes"),
        ("name = 1".encode("utf-16"), "cannot be read: it is UTF-16"),
        (b"name = '\xf6'", "cannot be read: byte 8"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / "d.toml").write_bytes(data)
    with pytest.raises(DatasetError, match=rf"d\.toml: {message}"):
        read_toml(tmp_path / "d.toml")
