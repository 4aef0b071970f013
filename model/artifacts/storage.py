"""Objects by path in a folder or a bucket, nearly all written once: a registry, or pictures and masks.

Paths are relative and use ``/``. Errors of the store become ``StorageError``.
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
"""Beginning of the name of an unfinished file; a killed writer leaves it behind."""

_LOCK_FILE = ".lock"
_BUCKET_SCHEMES = ("s3", "gs", "az")
_BUCKET_OPTIONS = frozenset({"endpoint", "region"})
_RETRY_TIMEOUT_S = 30


@dataclass(frozen=True)
class StoredObject:
    """One object.

    Attributes:
        path: path below the storage.
        modified_s: time of the last write, in seconds since 1970 by the store's own clock.
        num_bytes: size; that of a link is its own.
    """

    path: str
    modified_s: float
    num_bytes: int


class Storage(Protocol):
    """Objects by path; methods raise ``StorageError`` when the store is full, read-only or unreachable."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a new object, durably.

        Returns:
            False when the path is taken: of any number of writers, one gets True.
        """
        ...

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """Replace an object that still has its old bytes; readers see the old or the new bytes.

        Returns:
            False when it was changed or deleted: of any number of writers with the same old bytes, one gets
            True.
        """
        ...

    def read(self, path: str) -> bytes | None:
        """Return the bytes of an object; None when there is none."""
        ...

    def objects(self, prefix: str) -> list[StoredObject]:
        """Return all objects below a folder, sorted by path."""
        ...

    def delete(self, path: str) -> None:
        """Remove an object, if there is one."""
        ...

    def local_folder(self, prefix: str) -> Path | None:
        """Return the local folder of the objects below a path; None when they have to be fetched."""
        ...


def open_storage(url: str | Path) -> Storage:
    """Return the storage at a path or at a ``file://``, ``s3://``, ``gs://`` or ``az://`` URL.

    This creates nothing and does not connect. ``s3://bucket/prefix?endpoint=URL&region=NAME`` names a bucket
    that is not at Amazon. Credentials come from the environment (``AWS_ACCESS_KEY_ID``), never from a URL.

    Raises:
        RegistryUrlError: the scheme is another one, or the URL does not name a bucket.
    """
    if isinstance(url, Path) or "://" not in url:
        return FolderStorage(Path(url))
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderStorage(Path(unquote(parts.path)))
    if parts.username is not None or parts.password is not None:
        raise RegistryUrlError(
            "not a folder or bucket: credentials belong into the environment, not into the URL"
        )
    if parts.scheme not in _BUCKET_SCHEMES:
        raise RegistryUrlError(f"not a folder or bucket: {url!r} (a folder, file://, s3://, gs:// or az://)")
    try:
        return BucketStorage(_bucket(parts))
    except (BaseError, ValueError) as error:
        raise RegistryUrlError(f"not a folder or bucket: {url!r}: {_reason(error)}") from error


def _bucket(parts: SplitResult) -> ObjectStore:
    retries: RetryConfig = {"retry_timeout": dt.timedelta(seconds=_RETRY_TIMEOUT_S)}
    plain = parts._replace(query="").geturl()
    options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    if options.keys() - _BUCKET_OPTIONS or (options and parts.scheme != "s3"):
        raise ValueError(f"what it asks for is not known: {parts.query!r} (s3:// knows endpoint and region)")
    if not options:
        # No client_options: they would replace those of the environment, such as AWS_ALLOW_HTTP.
        return from_url(plain, retry_config=retries)
    client: ClientConfig = {"allow_http": options.get("endpoint", "").startswith("http://")}
    return from_url(plain, config=cast("S3Config", options), client_options=client, retry_config=retries)


class BucketStorage:
    """Objects of a bucket, through obstore.

    Args:
        store: the bucket in obstore.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(self, path: str, data: bytes) -> bool:
        """Put an object under the condition that there is none; return False when the path is taken."""
        try:
            with _as_storage_error(path):
                obstore.put(self._store, path, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """Put an object under the condition that it is unchanged; return False when it is not."""
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
        """Return the bytes of an object; None when there is none."""
        try:
            with _as_storage_error(path):
                return bytes(obstore.get(self._store, path).bytes())
        except FileNotFoundError:
            return None

    def objects(self, prefix: str) -> list[StoredObject]:
        """Return all objects below a folder, sorted by path."""
        with _as_storage_error(prefix):
            found = [
                StoredObject(item["path"], item["last_modified"].timestamp(), item["size"])
                for chunk in obstore.list(self._store, prefix)
                for item in chunk
            ]
        return sorted(found, key=_path)

    def delete(self, path: str) -> None:
        """Remove an object, if there is one."""
        with contextlib.suppress(FileNotFoundError), _as_storage_error(path):
            obstore.delete(self._store, path)

    def local_folder(self, prefix: str) -> Path | None:  # noqa: ARG002 - no folder of a bucket is local
        """Return None: objects have to be fetched."""
        return None


def _identity(meta: ObjectMeta) -> UpdateVersion:
    # A store has an e-tag, a version or both; obstore takes no None for the other.
    return cast("UpdateVersion", {key: meta[key] for key in ("e_tag", "version") if meta[key] is not None})


class FolderStorage:
    """Objects as files of a local folder, which the first write creates.

    The local store of obstore is not used: it names a file before its content is on the disk, so that a loss
    of power could leave an empty manifest, and it cannot compare and swap. ``create`` writes under another
    name, syncs, links and syncs the folder; only one link to a name succeeds. ``swap`` does the same with a
    rename, under a lock that ends with its process.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def create(self, path: str, data: bytes) -> bool:
        """Write a new file durably; return False when the path is taken."""
        target = self._root / path
        with _as_storage_error(path):
            while True:
                try:
                    return _link(target, data)
                except FileNotFoundError:
                    # The folder is missing: a deletion of its last file removes it.
                    _make_folder(target.parent)

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """Replace an unchanged file under the lock of its folder; return False when it was changed."""
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
        """Return the bytes of a file; None when there is none."""
        try:
            with _as_storage_error(path):
                return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None

    def objects(self, prefix: str) -> list[StoredObject]:
        """Return all files below a folder, sorted by path."""
        with _as_storage_error(prefix):
            return sorted(self._walk(self._root / prefix), key=_path)

    def delete(self, path: str) -> None:
        """Remove a file, if there is one, and its folder when it is empty then."""
        target = self._root / path
        with contextlib.suppress(FileNotFoundError), _as_storage_error(path):
            target.unlink()
            # After a loss of power, files deleted first must stay deleted.
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
                    status = path.lstat()
                    relative = path.relative_to(self._root).as_posix()
                    yield StoredObject(relative, status.st_mtime, status.st_size)


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
    # One name is enough under the lock; the file of a killed writer is written over.
    partial = target.with_name(PARTIAL_PREFIX + target.name)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    _sync(target.parent)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it when the process dies."""
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it; other processes may make and remove the same ones meanwhile."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir()
        _sync(folder.parent)
    except FileNotFoundError:  # the folder above was removed again
        pass
    except FileExistsError:
        if folder.is_symlink():  # its target is missing
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
    """Translate errors of a store, except that an object exists, is missing or was changed."""
    try:
        yield
    except (AlreadyExistsError, FileNotFoundError, PreconditionError):
        raise
    except (BaseError, OSError) as error:
        raise StorageError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    # obstore appends its own debug output, over many lines.
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]
