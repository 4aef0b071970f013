"""Objects under a URL, nearly all written once: the little that a registry needs of a folder or a bucket.

Paths are relative and use ``/``. What the store itself does wrong becomes ``StorageError`` here.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import ObjectStore, from_url

from model.errors import RegistryUrlError, StorageError

if TYPE_CHECKING:
    from obstore import ObjectMeta, UpdateVersion  # which are not there at run time
    from obstore.store import ClientConfig, RetryConfig, S3Config

PARTIAL_PREFIX = ".partial-"
"""Begins the name of a file that is being written; a killed writer leaves it behind."""

_LOCK_FILE = ".lock"
_BUCKET_SCHEMES = ("s3", "gs", "az")
_BUCKET_OPTIONS = frozenset({"endpoint", "region"})
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
    """Objects by path. Each method raises ``StorageError`` when the store is full, read-only or away."""

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; it survives a loss of power once this returns.

        Returns:
            False when the path is taken: of any number of writers, one gets True.
        """
        ...

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """Replace an object if it still is what it was; readers see the one or the other.

        Returns:
            False when it is another one by now, or gone: of any number of writers that saw the same, one
            gets True.
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

    Nothing is created or connected to. ``s3://bucket/prefix?endpoint=URL&region=NAME`` is a bucket elsewhere
    than at Amazon; credentials come from the environment (``AWS_ACCESS_KEY_ID``), never from a URL.

    Raises:
        RegistryUrlError: another scheme, or not enough to find the bucket.
    """
    if isinstance(url, Path) or "://" not in url:
        return FolderStorage(Path(url))
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderStorage(Path(unquote(parts.path)))
    if parts.username is not None or parts.password is not None:
        raise RegistryUrlError("not a registry: credentials belong into the environment, not into the URL")
    if parts.scheme not in _BUCKET_SCHEMES:
        raise RegistryUrlError(f"not a registry: {url!r} (a folder, file://, s3://, gs:// or az://)")
    try:
        return BucketStorage(_bucket(parts))
    except (BaseError, ValueError) as error:
        raise RegistryUrlError(f"not a registry: {url!r}: {_reason(error)}") from error


def _bucket(parts: SplitResult) -> ObjectStore:
    retries: RetryConfig = {"retry_timeout": dt.timedelta(seconds=_RETRY_TIMEOUT_S)}
    plain = parts._replace(query="").geturl()
    options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    if options.keys() - _BUCKET_OPTIONS or (options and parts.scheme != "s3"):
        raise ValueError(f"what it asks for is not known: {parts.query!r} (s3:// knows endpoint and region)")
    if not options:
        # No client_options: they would replace all those of the environment, such as AWS_ALLOW_HTTP.
        return from_url(plain, retry_config=retries)
    client: ClientConfig = {"allow_http": options.get("endpoint", "").startswith("http://")}
    return from_url(plain, config=cast("S3Config", options), client_options=client, retry_config=retries)


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

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """Put an object under the condition that it is the one that was compared; see ``Storage``."""
        try:
            with _as_storage_error(path):
                found = obstore.get(self._store, path)
                if bytes(found.bytes()) != old:
                    return False
                obstore.put(self._store, path, new, mode=_identity(found.meta), use_multipart=False)
        except (FileNotFoundError, PreconditionError):
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


def _identity(meta: ObjectMeta) -> UpdateVersion:
    # A store has an e-tag, a version or both; obstore takes no None for the other.
    return cast("UpdateVersion", {key: meta[key] for key in ("e_tag", "version") if meta[key] is not None})


class FolderStorage:
    """Objects as the files of a local folder, which the first write creates.

    Without obstore, whose local store names a file before its content is on the disk: after a loss of power a
    manifest could stand there empty, or complete beside weights that are not; and which cannot compare and
    swap. ``create`` writes under another name, syncs, links and syncs the folder: a link to a name succeeds
    once, whoever races. ``swap`` does the same with a rename, under a lock that ends with its process.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def create(self, path: str, data: bytes) -> bool:
        """Write, sync and link a file; see ``Storage``."""
        target = self._root / path
        with _as_storage_error(path):
            while True:
                try:
                    return _link(target, data)
                except FileNotFoundError:
                    # Not there yet, or again not: whoever deletes the last file takes the folder away.
                    _make_folder(target.parent)

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """Replace a file by renaming, under the lock of its folder; see ``Storage``."""
        target = self._root / path
        try:
            with _as_storage_error(path), _locked(target.parent):
                if target.read_bytes() != old:
                    return False
                _rename(target, new)
        except FileNotFoundError:
            return False
        return True

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
        with contextlib.suppress(FileNotFoundError), _as_storage_error(path):
            target.unlink()
            # What is deleted first stays deleted, should the power go before the rest is.
            _sync(target.parent)
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
            partial.unlink(missing_ok=True)
    _sync(target.parent)
    return True


def _rename(target: Path, data: bytes) -> None:
    # One name is enough under the lock, and what a killed writer left behind is written over.
    partial = target.with_name(PARTIAL_PREFIX + target.name)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    _sync(target.parent)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system takes it from a process that dies."""
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, once: others may make and remove the same ones meanwhile."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir()
        _sync(folder.parent)
    except FileNotFoundError:  # the one above was taken away again
        pass
    except FileExistsError:
        if folder.is_symlink():  # to nothing
            raise


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
    """Translate what a store raises, except that an object is there, is not, or is another one."""
    try:
        yield
    except (AlreadyExistsError, FileNotFoundError, PreconditionError):
        raise
    except (BaseError, OSError) as error:
        raise StorageError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    # obstore appends its own debug output, over many lines.
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]
