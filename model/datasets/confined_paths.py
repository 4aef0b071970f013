"""Reading of files that lie in given folders, and of no others."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

DEFAULT_MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class ConfinedReader:
    """Reads regular files whose real path lies below given folders; links may lead from one to another.

    A list can name any path, and a user who writes into the folder can replace a file by a link while it is
    read. So a file is looked up once, checked, and read through the same handle.

    Args:
        root: the folder; it may be a link itself.
        others: further folders.
        max_file_bytes: larger files are refused.
    """

    root: Path
    others: tuple[Path, ...] = ()
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES

    def __call__(self, path: Path) -> bytes:
        """Return the bytes of a file.

        Raises:
            OSError: the file is missing, unreadable, no regular file, too large, or in another folder.
            ValueError: no file can have this name.
        """
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)  # neither reads a device nor waits for a pipe
        try:
            self._check_place(Path(f"/proc/self/fd/{handle}").readlink())
            self._check(os.fstat(handle))
            with Path(f"/proc/self/fd/{handle}").open("rb") as file:
                data = file.read(self.max_file_bytes + 1)
        finally:
            os.close(handle)
        if len(data) > self.max_file_bytes:  # it has grown since the check
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return data

    def _check_place(self, real: Path) -> None:
        if not any(folder.resolve() in real.parents for folder in (self.root, *self.others)):
            raise PermissionError(errno.EACCES, f"does not lie in the folder {self.root.name!r}")

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        if status.st_size > self.max_file_bytes:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
