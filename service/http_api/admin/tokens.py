"""Tokens in files that only their owner can read, made at the first start."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

import structlog

_log = structlog.get_logger()

_MOUNTED = 0o440
"""File mode of a secret that Kubernetes mounts for the group of a pod."""

_TOKEN_BYTES = 32
_MAX_FILE_BYTES = 4096


class TokenFileError(Exception):
    """A token cannot be read or written; the message names the file."""


def obtain_token(path: Path) -> str:
    """Return the token of a file; if the file does not exist, create it with a new token (mode 0600).

    Processes that start at the same time get the same token. A file that others may read gives a warning.

    Raises:
        TokenFileError: the file cannot be read or written, others may write to it, or it holds no token.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read(path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create(path, secrets.token_urlsafe(_TOKEN_BYTES))
        return _read(path)
    except OSError as error:
        raise TokenFileError(f"token file {path}: {error.strerror}") from error


def _read(path: Path) -> str:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & stat.S_IWOTH:
            raise TokenFileError(f"token file {path} can be written to by others")
        if mode & (stat.S_IRWXG | stat.S_IRWXO) and mode != _MOUNTED:
            _log.warning("token file may be read by others", path=str(path), mode=f"{mode:04o}")
        token = file.read(_MAX_FILE_BYTES).strip().decode("ascii", "replace")
    if not token.isprintable() or not token.isascii() or " " in token or not token:
        raise TokenFileError(f"token file {path} holds no token: printable ASCII without spaces")
    return token


def _create(path: Path, token: str) -> None:
    """Create the file together with its content, unless another process was faster."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{token}\n")
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
