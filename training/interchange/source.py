"""The folder or ZIP file that a data set is imported from; no file outside of it is read."""

from __future__ import annotations

import lzma
import os
import posixpath
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from model.datasets.confined_paths import ConfinedReader
from model.pictures.local_image import HEIC_SUFFIXES, LOCAL_SUFFIXES
from training.errors import InterchangeError
from training.interchange.split_names import split_of
from training.interchange.tally import Tally

PICTURE_SUFFIXES = tuple(sorted(LOCAL_SUFFIXES | HEIC_SUFFIXES))

MAX_FILE_BYTES = 1 << 30
"""No single file may be larger: the annotations of COCO, in one file, are half of it."""

FREE_ZIP_BYTES = 1 << 30
MAX_ZIP_EXPANSION = 100
"""A ZIP file may unpack to 1 GiB, or to 100 times its size: pictures hardly shrink, JSON to a thirtieth."""

_ENCRYPTED = 1
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


class Container(Protocol):
    """A folder, or a ZIP file."""

    names: Sequence[str]

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            InterchangeError: it cannot be read.
        """
        ...

    def path(self, name: str) -> Path | None:
        """Return where the file lies on disk; None where it does not."""
        ...


class FolderContainer:
    """The regular files of a folder at any depth; hidden ones are passed over.

    Args:
        root: the folder.
        left_out: counts names that are no UTF-8.
    """

    def __init__(self, root: Path, left_out: Tally) -> None:
        self._root = root
        self._read = ConfinedReader(root, max_file_bytes=MAX_FILE_BYTES)
        self.names: Sequence[str] = tuple(sorted(_files_below(root, left_out)))

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            InterchangeError: it cannot be read, is too large, or is a link that leads out of the folder.
        """
        try:
            return self._read(self._root / name)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InterchangeError(f"{self._root / name}: cannot be read: {reason}") from error

    def path(self, name: str) -> Path | None:
        """Return where the file lies."""
        return self._root / name


class ZipContainer:
    """The files of a ZIP file; nothing is unpacked to disk.

    Args:
        path: the ZIP file.
        left_out: counts names that lead out of it.

    Raises:
        InterchangeError: it is no ZIP file, or unpacks to far more than its size.
    """

    def __init__(self, path: Path, left_out: Tally) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _ZIP_ERRORS as error:
            raise InterchangeError(f"{path}: not a readable ZIP file: {error}") from error
        entries = [entry for entry in self._zip.infolist() if not entry.is_dir()]
        self._refuse_bomb(sum(entry.file_size for entry in entries))
        self._entries = dict(_safe_entries(entries, left_out))
        self.names: Sequence[str] = tuple(sorted(self._entries))

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            InterchangeError: it is damaged, encrypted or too large.
        """
        entry = self._entries[name]
        if entry.file_size > MAX_FILE_BYTES:
            raise InterchangeError(f"{self._path}: {name}: more than {MAX_FILE_BYTES} bytes")
        if entry.flag_bits & _ENCRYPTED:
            raise InterchangeError(f"{self._path}: {name}: is encrypted: unpack the ZIP file yourself")
        try:
            return self._zip.read(entry)
        except _ZIP_ERRORS as error:
            raise InterchangeError(f"{self._path}: {name}: cannot be unpacked: {error}") from error

    def path(self, name: str) -> Path | None:
        """Return None: the file is no file of its own."""
        del name
        return None

    def _refuse_bomb(self, unpacked_bytes: int) -> None:
        packed_bytes = self._path.stat().st_size
        if unpacked_bytes > max(FREE_ZIP_BYTES, MAX_ZIP_EXPANSION * packed_bytes):
            raise InterchangeError(
                f"{self._path}: {packed_bytes} bytes would unpack to {unpacked_bytes}: if that is right, "
                "unpack it yourself and name the folder"
            )


class Source:
    """One or two containers to import, as one list of names.

    Args:
        paths: folders or ZIP files; a name of the first hides the same name of the second.
        left_out: counts the files that cannot be taken.

    Raises:
        InterchangeError: a path is neither a folder nor a ZIP file, or holds no file.
    """

    def __init__(self, paths: Sequence[Path], left_out: Tally) -> None:
        self._containers: dict[str, Container] = {}
        for path in reversed(paths):
            container = _opened(path, left_out)
            self._containers |= dict.fromkeys(container.names, container)
        self.names: Sequence[str] = tuple(sorted(self._containers))
        self._unread = set(self.names)
        self._by_file_name: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            self._by_file_name[posixpath.basename(name)].append(name)
        if not self.names:
            raise InterchangeError(f"{paths[0]}: there is no file in it")

    def __contains__(self, name: str) -> bool:
        """Return whether there is such a file."""
        return name in self._containers

    def read(self, name: str) -> bytes:
        """Return the bytes of a file of ``names``.

        Raises:
            InterchangeError: it cannot be read.
        """
        self._unread.discard(name)
        return self._containers[name].read(name)

    def path(self, name: str) -> Path | None:
        """Return where a file of ``names`` lies on disk; None within a ZIP file."""
        return self._containers[name].path(name)

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Return the names that end in one of the suffixes, in any case, sorted."""
        return [name for name in self.names if name.lower().endswith(suffixes)]

    def find(self, said: str, *, near: str, split: str = "") -> str | None:
        """Find a file that an annotation names, though exports move files about.

        The path may start at the annotation's folder or at one of its parents. Else the only file whose path
        ends so is taken; else the only file of that name. Of several the one of the same split is taken.

        Args:
            said: path or file name, of Unix or Windows.
            near: the annotation's own name.
            split: that the picture belongs to; "" = unknown.

        Returns:
            A name of ``names``; None where no file fits.

        Raises:
            InterchangeError: several files fit.
        """
        wanted = PureWindowsPath(said).as_posix() if "\\" in said else said
        for folder in PurePosixPath(near).parents:
            candidate = posixpath.normpath(posixpath.join(folder.as_posix(), wanted))
            if candidate in self:
                return candidate
        same_name = self._by_file_name.get(posixpath.basename(wanted), [])
        ending = "/" + wanted.lstrip("./")
        for fitting in ([name for name in same_name if f"/{name}".endswith(ending)], same_name):
            of_split = [name for name in fitting if split and split_of(name) == split]
            if len(of_split or fitting) == 1:
                return (of_split or fitting)[0]
        if same_name:
            raise InterchangeError(f"{near}: {said!r} may be {same_name[0]} or {same_name[1]}")
        return None

    def tell_unread(self, left_out: Tally, kind: Callable[[str], str]) -> None:
        """Count the files that had no part in the import and were not counted before.

        Args:
            left_out: counts these files.
            kind: returns the kind of a file from its name.
        """
        for name in sorted(self._unread - left_out.files):
            left_out.add(kind(name), name)


def _opened(path: Path, left_out: Tally) -> Container:
    if path.is_dir():
        return FolderContainer(path, left_out)
    if path.is_file() and zipfile.is_zipfile(path):
        return ZipContainer(path, left_out)
    raise InterchangeError(f"{path}: neither a folder nor a ZIP file: name the one that holds the files")


def _files_below(root: Path, left_out: Tally) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            path = Path(folder, file)
            name = path.relative_to(root).as_posix()
            if file.startswith(".") or not path.is_file():
                continue
            if name.encode("utf-8", "replace").decode() == name:
                yield name
            else:
                left_out.add("file names that are no UTF-8", ascii(name))


def _safe_entries(
    entries: Sequence[zipfile.ZipInfo], left_out: Tally
) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        name = posixpath.normpath("/".join(parts))
        if ".." in parts or name.startswith("/") or ":" in parts[0]:
            left_out.add("names that lead out of the ZIP file", entry.filename)
        elif not any(part.startswith(".") for part in name.split("/")) and parts[0] != "__MACOSX":
            yield name, entry


def shared_folders(names: Sequence[str]) -> int:
    """Return in how many folders, from the top, all files lie together."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    first, last = min(folders, default=()), max(folders, default=())
    same = [a == b for a, b in zip(first, last, strict=False)]
    return next((at for at, is_same in enumerate(same) if not is_same), len(same))


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
