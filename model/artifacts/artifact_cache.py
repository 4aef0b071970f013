"""Local copies of artifacts that live in a bucket."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from model.artifacts.artifact import read_artifact
from model.artifacts.manifest import ARTIFACT_FILES, MANIFEST_FILE
from model.errors import ArtifactError, ManifestError, StorageError


def cached_folder(cache: Path, manifest: bytes, fetch: Callable[[str], bytes]) -> Path:
    """Return the folder of a verified copy of an artifact; fetch it if there is none.

    The folder's name is the digest of the manifest, which names the digests of all files. A folder of that
    name whose files verify is the artifact, whichever process wrote it.

    Args:
        cache: folder of all copies; created for its owner only.
        manifest: bytes of ``manifest.json``.
        fetch: returns the bytes of a file of the artifact.

    Raises:
        ArtifactError: a fetched file is not the one that the manifest names.
        ManifestError: the manifest is malformed.
        StorageError: the cache cannot be written.
    """
    folder = cache / hashlib.sha256(manifest).hexdigest()
    if not _is_intact(folder):
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                _fetch(Path(temporary, "new"), manifest, fetch)
                _install(Path(temporary, "new"), folder, damaged=Path(temporary, "damaged"))
        except OSError as error:
            raise StorageError(f"{cache} cannot be written: {error.strerror}") from error
    return folder


def _is_intact(folder: Path) -> bool:
    try:
        read_artifact(folder).verify()
    except (ArtifactError, ManifestError):
        return False
    return True


def _fetch(folder: Path, manifest: bytes, fetch: Callable[[str], bytes]) -> None:
    folder.mkdir(mode=0o700)
    for name in ARTIFACT_FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(fetch(name))
    (folder / MANIFEST_FILE).write_bytes(manifest)
    read_artifact(folder).verify()


def _install(new: Path, folder: Path, *, damaged: Path) -> None:
    try:
        new.rename(folder)
    except OSError:
        # A folder exists: another process was faster, or it is damaged and is replaced here.
        if not _is_intact(folder):
            folder.rename(damaged)
            new.rename(folder)
