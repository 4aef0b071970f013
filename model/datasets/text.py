"""Text files as people save them, and file names that any terminal, JSON or HTML document can show."""

from __future__ import annotations

import codecs
import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from model.errors import DatasetError

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def printable(name: str | Path) -> str:
    r"""Return a file name as valid Unicode: bytes that are not UTF-8 become ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def expand_home(path: str) -> str:
    """Replace ``~`` at the start of a path by the home folder, where one is known."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path


def decode_text(data: bytes, *, errors: Literal["strict", "surrogateescape"] = "strict") -> str:
    """Decode UTF-8 with or without a byte-order mark.

    Args:
        data: the whole file.
        errors: ``surrogateescape`` keeps bytes that are not UTF-8, so that names in other encodings still
            name their files.

    Raises:
        ValueError: the file is UTF-16 or not UTF-8; the message contains the command that converts it.
    """
    if data.startswith(_UTF16_MARKS) or b"\0" in data:
        raise ValueError("it is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW")
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8;"
            " convert the file: iconv -f CP1252 -t UTF-8 FILE > NEW"
        ) from error


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file with or without a byte-order mark.

    Raises:
        DatasetError: the file cannot be read, is not UTF-8 or is not TOML.
    """
    try:
        return parse_toml(decode_text(path.read_bytes()), printable(path))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{printable(path)}: cannot be read: {error}") from error


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """Parse TOML.

    Args:
        text: the document.
        origin: its name in messages.

    Raises:
        DatasetError: the text is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = ""
        if "\\" in text:
            hint = "; Windows paths need slashes (C:/data) or single quotes ('C:\\data')"
        raise DatasetError(f"{origin}: not TOML: {error}{hint}") from error
