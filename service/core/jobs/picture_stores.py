"""The sources of pictures and the targets of masks: the configured folders and buckets, and no others."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from urllib.parse import parse_qsl, urlencode, urlsplit

from model.artifacts.storage import PARTIAL_PREFIX, Storage, StoredObject, open_storage
from model.datasets.confined_paths import ConfinedReader
from model.errors import RegistryUrlError, StorageError
from service.core.errors import InvalidArgumentError, NotFoundError
from service.core.jobs.job import JobError, JobHeldUpError

_AWAY = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN}
    | {errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)
"""Errors of a folder that are no fault of the picture, and may pass."""

_BAD_NAME = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EILSEQ})
"""Errors of a folder that only the name of a mask can have caused."""


@dataclass(frozen=True)
class PictureStores:
    """The configured places of bulk predictions.

    Args:
        sources: URL of each source by name.
        targets: URL of each target by name.
    """

    sources: Mapping[str, str]
    targets: Mapping[str, str]

    def check_urls(self) -> None:
        """Refuse URLs that name no folder or bucket.

        Raises:
            RegistryUrlError: there is one; the message begins with its name.
        """
        for section, urls in (("sources", self.sources), ("targets", self.targets)):
            for name, url in urls.items():
                try:
                    open_storage(url)
                except RegistryUrlError as error:
                    raise RegistryUrlError(f"{section}.{name}: {error}") from error

    def check(self, source: str, target: str) -> None:
        """Refuse names that are not configured, and a target that shares files with the source.

        Raises:
            NotFoundError: there is no such source or target.
            InvalidArgumentError: one lies in the other, so that masks would be pictures of the next job.
        """
        if source not in self.sources:
            raise NotFoundError(f"no source {source!r} is configured")
        if target not in self.targets:
            raise NotFoundError(f"no target {target!r} is configured")
        read, written = _place(self.sources[source]), _place(self.targets[target])
        if read.is_relative_to(written) or written.is_relative_to(read):
            raise InvalidArgumentError(
                f"source {source!r} and target {target!r} lie in one another, so that masks would become "
                "pictures: configure a target elsewhere"
            )

    def open(self, source: str, target: str) -> tuple[PictureSource, MaskTarget]:
        """Return a source and a target, after ``check``."""
        return (
            PictureSource(source, open_storage(self.sources[source])),
            MaskTarget(target, open_storage(self.targets[target])),
        )


class PictureSource:
    """Reads pictures. Links in a folder are followed as long as they stay in it.

    Args:
        name: in the configuration.
        storage: the folder or bucket.
    """

    def __init__(self, name: str, storage: Storage) -> None:
        self.name = name
        self._storage = storage
        self._folder = storage.local_folder("")
        self._read_file = None if self._folder is None else ConfinedReader(self._folder)

    def objects(self) -> list[StoredObject]:
        """Return all files, sorted by path.

        Raises:
            JobError: the folder is not on this machine.
            JobHeldUpError: the source does not answer.
        """
        if self._folder is not None and not self._folder.is_dir():
            raise JobError(f"source {self.name!r} is no folder of this worker's machine: mount or make it")
        with _held_up(f"source {self.name!r} does not answer"):
            return self._storage.objects("")

    def read(self, path: str) -> bytes:
        """Return the content of a file.

        Raises:
            NotFoundError: there is no such file any more.
            InvalidArgumentError: it cannot be read; others can.
            JobHeldUpError: the source does not answer.
        """
        with _held_up(f"source {self.name!r} does not answer"):
            data = self._read(path)
        if data is None:
            raise NotFoundError("is gone")
        return data

    def _read(self, path: str) -> bytes | None:
        if self._folder is None or self._read_file is None:
            return self._storage.read(path)
        try:
            return self._read_file(self._folder / path)
        except OSError as error:
            if error.errno in _AWAY or not self._folder.is_dir():
                raise StorageError(f"{path}: {error.strerror}") from error
            if error.errno == errno.ENOENT:
                return None
            raise InvalidArgumentError(f"cannot be read: {error.strerror}") from error


class MaskTarget:
    """Writes new files, and never replaces one.

    Args:
        name: in the configuration.
        storage: the folder or bucket.
    """

    def __init__(self, name: str, storage: Storage) -> None:
        self.name = name
        self._storage = storage
        self._folder = storage.local_folder("")

    def paths(self) -> frozenset[str]:
        """Return the paths of all files.

        Raises:
            JobHeldUpError: the target does not answer.
        """
        with self._held_up():
            return frozenset(one.path for one in self._storage.objects(""))

    def read(self, path: str) -> bytes | None:
        """Return the content of a file; None when there is none.

        Raises:
            JobHeldUpError: the target does not answer.
        """
        with self._held_up():
            return self._storage.read(path)

    def write(self, path: str, data: bytes) -> bytes:
        """Write a new file, durably and as a whole.

        Returns:
            The content of the file: ``data``, or what is there already.

        Raises:
            InvalidArgumentError: no file can have this name, or a link leads out of the folder.
            JobHeldUpError: the target does not answer, or has no space.
        """
        self._check_links(path)
        with self._held_up():
            try:
                while not self._storage.create(path, data):
                    present = self._storage.read(path)
                    if present is not None:
                        return present
            except StorageError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in _BAD_NAME:
                    raise InvalidArgumentError(
                        "no file of the target can have the name of its mask"
                    ) from error
                raise
        return data

    def clean_up(self, path: str) -> None:
        """Remove a file, and what killed writers have left behind.

        Raises:
            JobHeldUpError: the target does not answer.
        """
        with self._held_up():
            for one in self._storage.objects(""):
                if PurePosixPath(one.path).name.startswith(PARTIAL_PREFIX):
                    self._storage.delete(one.path)
            self._storage.delete(path)

    def _check_links(self, path: str) -> None:
        if self._folder is None:
            return
        if not (self._folder / path).parent.resolve().is_relative_to(self._folder.resolve()):
            raise InvalidArgumentError("a link in the target leads out of it")

    def _held_up(self) -> AbstractContextManager[None]:
        return _held_up(f"target {self.name!r} does not answer, or has no space")


@contextmanager
def _held_up(message: str) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise JobHeldUpError(message) from error


def _place(url: str) -> PurePath:
    """Return a path that tells whether one store lies in another."""
    folder = open_storage(url).local_folder("")
    if folder is not None:
        return folder.resolve()
    parts = urlsplit(url)
    options = urlencode(sorted(parse_qsl(parts.query))) or "-"
    return PurePosixPath(parts.scheme, parts.netloc, options, parts.path.strip("/"))
