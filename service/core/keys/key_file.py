"""The keys file: one key a line, as a JSON object without the secret, or as the bare secret."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from service.core.keys.access_key import AccessKey, is_secret

_NEW_FILE_MODE = 0o600


class KeyFileError(Exception):
    """The keys file cannot be used; the message names the file, and the line without its content."""


def read_keys(path: Path) -> tuple[AccessKey, ...]:
    """Return all keys of a file, expired ones too.

    Raises:
        KeyFileError: the file cannot be read, a line is no key, or two keys share a name or a secret.
    """
    return tuple(key for key, _ in _entries(path))


def add_key(path: Path, key: AccessKey) -> None:
    """Append a key; the file is made (0600) where there is none.

    Raises:
        KeyFileError: the file cannot be read or written, or has a key of this name.
    """
    with _changing(path):
        entries = _entries(path) if path.exists() else []
        if any(present.name == key.name for present, _ in entries):
            raise KeyFileError(
                f"{path} has a key {key.name!r}: choose another name, or revoke that key first"
            )
        _replace(path, [*(line for _, line in entries), msgspec.json.encode(key).decode()])


def revoke_key(path: Path, name: str) -> None:
    """Remove the key of a name.

    Raises:
        KeyFileError: the file cannot be read or written, or has no such key.
    """
    with _changing(path):
        entries = _entries(path)
        kept = [line for key, line in entries if key.name != name]
        if len(kept) == len(entries):
            raise KeyFileError(f"{path} has no key {name!r}: `bisenet keys list` names those it has")
        _replace(path, kept)


def _entries(path: Path) -> list[tuple[AccessKey, str]]:
    """Return each key and its line; empty lines are left out."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise KeyFileError(f"cannot read {path}: {reason}") from error
    entries = [
        (_key(path, number, line.strip()), line.strip())
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    _check_distinct(path, "name", [key.name for key, _ in entries])
    _check_distinct(path, "secret", [key.sha256 for key, _ in entries])
    return entries


def _key(path: Path, number: int, line: str) -> AccessKey:
    if not line.startswith("{"):
        if not is_secret(line):
            raise KeyFileError(f"{path}, line {number}: a key is printable ASCII without spaces")
        return AccessKey.of_secret(line)
    try:
        return msgspec.json.decode(line, type=AccessKey)
    except msgspec.MsgspecError as error:
        raise KeyFileError(f"{path}, line {number}: {error}") from error


def _check_distinct(path: Path, what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for number, value in enumerate(values, start=1):
        if value in seen:
            raise KeyFileError(f"{path}: key number {number} has the {what} of an earlier one")
        seen.add(value)


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Let one process at a time change the files of a folder; failures to write get a name."""
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KeyFileError(f"cannot write {path}: {error.strerror}") from error


def _replace(path: Path, lines: Iterable[str]) -> None:
    """Write the file beside itself and rename it: who reads it sees the old keys or the new ones."""
    mode = path.stat().st_mode & 0o777 if path.exists() else _NEW_FILE_MODE
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(descriptor)
            os.fchmod(descriptor, mode)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
