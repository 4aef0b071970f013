"""Objects under a URL that are written once: the little that a registry needs of a folder or a bucket.

Paths are relative and use ``/``. What the store itself does wrong becomes ``StorageError`` here.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore, from_url

from model.errors import RegistryUrlError, StorageError

PARTIAL_PREFIX = ".partial-"
"""Begins the name of a file that is being written; a killed writer leaves it behind."""

_BUCKET_SCHEMES = ("s3", "gs", "az")
_RETRY_TIMEOUT_S = 30


@dataclass(frozen=True)
class StoredObject:
    """One object.

    Attributes:
        path: relative to the storage.
        modified_s: when it was written, in seconds since 1970 by the store's own clock.
    """

    path: str
    modified_s: float


class Storage(Protocol):
    """Write-once objects. Each method raises ``StorageError`` when the store is full, read-only or away."""

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; it survives a loss of power once this returns.

        Returns:
            False when the path is taken: of any number of writers, one gets True.
        """
        ...

    def read(self, path: str) -> bytes | None:
        """Return the bytes of an object, or None when there is none."""
        ...

    def objects(self, prefix: str) -> list[StoredObject]:
        """Return all objects below a folder, sorted by path."""
        ...

    def delete(self, path: str) -> None:
        """Remove an object; it is no error when there is none."""
        ...

    def local_folder(self, prefix: str) -> Path | None:
        """Return where the objects below a folder lie as files, or None when they have to be fetched."""
        ...


def open_storage(url: str | Path) -> Storage:
    """Return the storage at a path or at a ``file://``, ``s3://``, ``gs://`` or ``az://`` URL.

    Nothing is created or connected to.

    Raises:
        RegistryUrlError: another scheme, or not enough to find the bucket.
    """
    if isinstance(url, Path) or "://" not in url:
        return FolderStorage(Path(url))
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderStorage(Path(unquote(parts.path)))
    if parts.scheme not in _BUCKET_SCHEMES:
        raise RegistryUrlError(f"not a registry: {url!r} (a folder, file://, s3://, gs:// or az://)")
    try:
        return BucketStorage(_bucket(url))
    except (BaseError, ValueError) as error:
        raise RegistryUrlError(f"not a registry: {url!r}: {_reason(error)}") from error


def _bucket(url: str) -> ObjectStore:
    # No client_options: they would replace all those of the environment, such as AWS_ALLOW_HTTP.
    return from_url(url, retry_config={"retry_timeout": dt.timedelta(seconds=_RETRY_TIMEOUT_S)})


class BucketStorage:
    """Objects of a bucket, through obstore.

    Args:
        store: obstore's view of the bucket.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(self, path: str, data: bytes) -> bool:
        """Put an object under the condition that there is none; see ``Storage``."""
        try:
            with _as_storage_error(path):
                obstore.put(self._store, path, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def read(self, path: str) -> bytes | None:
        """Get an object; see ``Storage``."""
        try:
            with _as_storage_error(path):
                return bytes(obstore.get(self._store, path).bytes())
        except FileNotFoundError:
            return None

    def objects(self, prefix: str) -> list[StoredObject]:
        """List the objects below a folder; see ``Storage``."""
        with _as_storage_error(prefix):
            found = [
                StoredObject(item["path"], item["last_modified"].timestamp())
                for chunk in obstore.list(self._store, prefix)
                for item in chunk
            ]
        return sorted(found, key=_path)

    def delete(self, path: str) -> None:
        """Delete an object; see ``Storage``."""
        with contextlib.suppress(FileNotFoundError), _as_storage_error(path):
            obstore.delete(self._store, path)

    def local_folder(self, prefix: str) -> Path | None:  # noqa: ARG002 - no folder of a bucket is local
        """Return None: objects have to be fetched."""
        return None


class FolderStorage:
    """Objects as the files of a local folder, which the first write creates.

    Without obstore, whose local store names a file before its content is on the disk: after a loss of power a
    manifest could stand there empty, or complete beside weights that are not. ``create`` writes under another
    name, syncs, links and syncs the folder. A link to a name succeeds once, whoever races.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def create(self, path: str, data: bytes) -> bool:
        """Write, sync and link a file; see ``Storage``."""
        target = self._root / path
        with _as_storage_error(path):
            try:
                return _link(target, data)
            except FileNotFoundError:
                _make_folder(target.parent)
                return _link(target, data)

    def read(self, path: str) -> bytes | None:
        """Read a file; see ``Storage``."""
        try:
            with _as_storage_error(path):
                return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None

    def objects(self, prefix: str) -> list[StoredObject]:
        """Walk a folder; see ``Storage``."""
        with _as_storage_error(prefix):
            return sorted(self._walk(self._root / prefix), key=_path)

    def delete(self, path: str) -> None:
        """Remove a file, and its folder when that was the last; see ``Storage``."""
        target = self._root / path
        with _as_storage_error(path):
            target.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, or gone
            target.parent.rmdir()

    def local_folder(self, prefix: str) -> Path | None:
        """Return the folder itself."""
        return self._root / prefix

    def _walk(self, folder: Path) -> Iterator[StoredObject]:
        for parent, _, names in os.walk(folder, onerror=_unless_gone):
            for name in names:
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):  # deleted by another process meanwhile
                    modified_s = path.lstat().st_mtime
                    yield StoredObject(path.relative_to(self._root).as_posix(), modified_s)


def _link(target: Path, data: bytes) -> bool:
    partial = target.with_name(PARTIAL_PREFIX + secrets.token_hex(8))
    with partial.open("xb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            target.hardlink_to(partial)
        except FileExistsError:
            return False
        finally:
            partial.unlink()
    _sync(target.parent)
    return True


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _path(item: StoredObject) -> str:
    return item.path


@contextlib.contextmanager
def _as_storage_error(path: str) -> Iterator[None]:
    """Translate what a store raises, except that an object is there, or is not."""
    try:
        yield
    except (AlreadyExistsError, FileNotFoundError):
        raise
    except (BaseError, OSError) as error:
        raise StorageError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    # obstore appends its own debug output, over many lines.
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]
