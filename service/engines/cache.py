"""Compiled graphs on disk: a private folder of files that are believed only after their digest is right."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import structlog

from service.core.device.engine import private_folder

_log = structlog.get_logger()

_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_key(**parts: Any) -> str:
    """Return one name, 64 hex digits, for everything that a compiled graph depends on: plain JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class CompileCache:
    """Blobs by key; a file that was cut short, changed or lost counts as missing.

    Args:
        folder: is created (0700) when missing.

    Raises:
        EngineUnavailableError: the folder cannot be used, or others can write to it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)

    def load(self, key: str) -> bytes | None:
        """Return what was stored under a key; None = compile it."""
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        digest, blob = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(blob).digest() != digest:
            _log.warning("compiled graph is corrupt and made anew", key=key)
            return None
        return blob

    def store(self, key: str, blob: bytes) -> None:
        """Keep a blob; a full disk costs the next start some time and nothing else."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(hashlib.sha256(blob).digest())
                file.write(blob)
            Path(file.name).replace(self._path(key))
        except OSError as error:
            _log.warning("compiled graph is not kept", error=error.strerror)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.blob"
