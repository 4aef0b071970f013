"""Compiled graphs on disk: files of a private folder, each checked by its digest before it is used."""

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
    """Return a name of 64 hex digits for all that a cached file depends on; values are plain JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class CompileCache:
    """Keeps bytes by key. A file that is incomplete or changed counts as missing.

    Args:
        folder: created (0700) if it is missing.

    Raises:
        EngineUnavailableError: the folder cannot be used, or other users can write to it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)

    def load(self, key: str) -> bytes | None:
        """Return the bytes that were stored under a key; None if there are none."""
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        digest, blob = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(blob).digest() != digest:
            _log.warning("a cached file is corrupt and is made again", key=key)
            return None
        return blob

    def store(self, key: str, blob: bytes) -> None:
        """Keep bytes under a key; with a full disk they are not kept, and the next start takes longer."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(hashlib.sha256(blob).digest())
                file.write(blob)
            Path(file.name).replace(self._path(key))
        except OSError as error:
            _log.warning("a cached file cannot be written; the next start takes longer", error=error.strerror)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.blob"
