"""Checkpoints that survive a killed machine: whole or absent, and checked before use."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from training.errors import CheckpointError

CheckpointKind = Literal["last", "best", "kept"]

_NAME = "{kind}-{step:08d}.pt"
_PATTERN = re.compile(r"(last|best|kept)-(\d{8,})\.pt")
_DIGEST_SUFFIX = ".sha256"
_PART_SUFFIX = ".part"
_PIECE_BYTES = 1 << 20


class CheckpointFolder:
    """The checkpoints of one run.

    A checkpoint is one file, ``last-00001200.pt``, with its SHA-256 beside it. The digest is written before
    the file gets its name, and older files are removed afterwards: at any moment one complete checkpoint
    exists. Where a file is written again, the digest file holds both digests until the new file is in place.

    Args:
        folder: created when missing.

    Raises:
        CheckpointError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make {folder}: {error}") from error
        self.folder = folder

    @property
    def is_empty(self) -> bool:
        """Whether no run has saved anything here."""
        return not self._paths("last") and not self._paths("best")

    def save(self, kind: CheckpointKind, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then remove older ones of its kind; checkpoints of kind ``kept`` all stay.

        Args:
            kind: ``last``, ``best`` or ``kept``.
            step: finished steps.
            state: tensors and plain values; other objects would have to be unpickled.

        Raises:
            CheckpointError: the file system refused; older checkpoints are unchanged.
        """
        path = self.folder / _NAME.format(kind=kind, step=step)
        try:
            self._replace(path, state)
            self._tidy(path, kind)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            with suppress(OSError):
                self._remove_unfinished()
            raise CheckpointError(f"cannot write {path}: {error}") from error
        return path

    def digest(self, kind: CheckpointKind) -> str:
        """Return the SHA-256 of the newest checkpoint of a kind; empty when there is none."""
        paths = self._paths(kind)
        return _sha256(paths[-1]) if paths else ""

    def load(self, kind: CheckpointKind) -> dict[str, Any] | None:
        """Read the newest checkpoint of a kind; None when there is none.

        Raises:
            CheckpointError: the file is damaged or cannot be read.
        """
        paths = self._paths(kind)
        if not paths:
            return None
        path = paths[-1]
        try:
            stated = [line.split()[0] for line in _digest_path(path).read_text().splitlines()]
            if _sha256(path) not in stated:
                raise CheckpointError(f"{path} is damaged: its SHA-256 is not {' or '.join(stated)}")
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, IndexError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        return state

    def _paths(self, kind: CheckpointKind) -> list[Path]:
        named = [(_PATTERN.fullmatch(p.name), p) for p in self.folder.iterdir()]
        return [p for _, p in sorted((int(m[2]), p) for m, p in named if m and m[1] == kind)]

    def _replace(self, path: Path, state: dict[str, Any]) -> None:
        temporary = _written(path, lambda target: torch.save(state, target))
        digest_path, line = _digest_path(path), f"{_sha256(temporary)}  {path.name}\n"
        before = digest_path.read_text() if path.exists() else ""
        _written(digest_path, lambda target: target.write_text(before + line)).replace(digest_path)
        sync(self.folder)
        temporary.replace(path)
        sync(self.folder)
        if before:
            _written(digest_path, lambda target: target.write_text(line)).replace(digest_path)

    def _tidy(self, newest: Path, kind: CheckpointKind) -> None:
        self._remove_unfinished()
        for old in self._paths(kind) if kind != "kept" else []:
            if old != newest:
                old.unlink(missing_ok=True)
                _digest_path(old).unlink(missing_ok=True)

    def _remove_unfinished(self) -> None:
        """Remove files that this run or a killed one did not finish."""
        for part in self.folder.glob("*" + _PART_SUFFIX):
            part.unlink(missing_ok=True)


def _written(path: Path, write: Callable[[Path], object]) -> Path:
    temporary = _part(path)
    write(temporary)
    sync(temporary)
    return temporary


def _part(path: Path) -> Path:
    return path.with_name(path.name + _PART_SUFFIX)


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + _DIGEST_SUFFIX)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
