"""Reading files beneath a folder and nowhere else, whatever a list of names says."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEFAULT_MAX_FILE_BYTES = 256 << 20

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Nothing but a regular file is opened, but a pipe could be put into its place between the two looks: whoever
# opens one without O_NONBLOCK waits for its writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class ConfinedReader:
    """Reads regular files whose real path lies beneath a folder; links may be followed as long as it does.

    The real path is walked folder by folder without following any link, so that one that is changed meanwhile
    leads nowhere. Nothing else is opened: no device, pipe or socket.

    Args:
        root: the folder; it may be a link itself.
        max_file_bytes: larger files are refused.
    """

    root: Path
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES

    def __call__(self, path: Path) -> bytes:
        """Return the bytes of a file.

        Raises:
            OSError: there is none, it cannot be read, is no regular file, is too large, or lies elsewhere.
            ValueError: no file can be called so.
        """
        root, real = _real(self.root), _real(path)
        if root not in real.parents:
            raise PermissionError(errno.EACCES, f"does not lie in the folder {root.name!r}")
        inside = real.relative_to(root)
        with _parent(root, inside) as folder:
            return self._read(folder, inside.name)

    def _read(self, folder: int, name: str) -> bytes:
        self._check(os.stat(name, dir_fd=folder, follow_symlinks=False))
        with os.fdopen(os.open(name, _FILE, dir_fd=folder), "rb") as file:
            self._check(os.fstat(file.fileno()))
            data = file.read(self.max_file_bytes + 1)
        if len(data) > self.max_file_bytes:  # it grows
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return data

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        if status.st_size > self.max_file_bytes:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def _real(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except RuntimeError as error:  # a loop of links, until Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


@contextmanager
def _parent(root: Path, inside: Path) -> Iterator[int]:
    """Open the folder of a file, one folder after the other."""
    folder = os.open(root, _FOLDER)
    try:
        for part in inside.parts[:-1]:
            inner = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)
