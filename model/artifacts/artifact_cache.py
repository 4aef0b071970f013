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
    """Return a verified copy of an artifact, fetching it unless it is there.

    The copy is named by the digest of the manifest, which names the digests of all files: whatever is in a
    folder of that name and verifies is the artifact, whichever process put it there.

    Args:
        cache: is created for its owner only.
        manifest: bytes of ``manifest.json``.
        fetch: returns the bytes of a file of the artifact.

    Raises:
        ArtifactError: what was fetched is not what the manifest names.
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
        # There is one already: another process was faster, or it is the damaged one that is replaced here.
        if not _is_intact(folder):
            folder.rename(damaged)
            new.rename(folder)
