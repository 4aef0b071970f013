"""The pictures of a bulk prediction: found once, when the job is planned, and stored for all its workers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from model.artifacts.storage import StoredObject
from model.datasets.confined_paths import DEFAULT_MAX_FILE_BYTES
from service.core.errors import ConflictError, InvalidArgumentError, PayloadTooLargeError, RequestError
from service.core.jobs.prediction_job import PictureFailure
from service.core.pictures.local_files import HIDDEN, mask_path, other_kind, readable_suffixes


@dataclass(frozen=True)
class PictureList:
    """What a job does with the files of its source; all in order of their paths.

    Attributes:
        pictures: paths of the pictures to predict.
        kept: pictures whose masks are there already; they are not predicted, and the masks stay as they are.
        failed: pictures that cannot have a mask.
        not_taken: number of files that are not read, by kind.
    """

    pictures: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[PictureFailure, ...]
    not_taken: Mapping[str, int]

    @property
    def has_pictures(self) -> bool:
        """Whether there is any picture, to be predicted or not."""
        return bool(self.pictures or self.kept or self.failed)

    def to_bytes(self) -> bytes:
        """Return the stored document; equal lists have equal ones."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, document: bytes) -> PictureList:
        """Return the object of a stored document."""
        content = json.loads(document)
        failed = tuple(PictureFailure(**one) for one in content["failed"])
        return cls(tuple(content["pictures"]), tuple(content["kept"]), failed, content["not_taken"])


def mask_of(picture: str) -> str:
    """Return the path of a mask below the target: that of its picture below the source, as ``.png``."""
    return str(mask_path(PurePosixPath(picture)))


def list_pictures(files: Sequence[StoredObject], masks: Collection[str]) -> PictureList:
    """Choose the pictures to predict.

    Args:
        files: of the source, sorted by path.
        masks: paths that are taken in the target.
    """
    suffixes = readable_suffixes()
    pictures: list[str] = []
    kept: list[str] = []
    failed: list[PictureFailure] = []
    not_taken: Counter[str] = Counter()
    owners: dict[str, str] = {}
    for file in files:
        kind = _other_kind(file.path, suffixes)
        if kind is not None:
            not_taken[kind] += 1
        elif (failure := _failure(file, owners)) is not None:
            failed.append(failure)
        elif mask_of(file.path) in masks:
            kept.append(file.path)
        else:
            pictures.append(file.path)
    return PictureList(tuple(pictures), tuple(kept), tuple(failed), dict(sorted(not_taken.items())))


def _other_kind(path: str, suffixes: frozenset[str]) -> str | None:
    *folders, name = path.split("/")
    if any(folder.startswith(".") and folder not in (".", "..") for folder in folders):
        return HIDDEN
    return other_kind(name, suffixes)


def _failure(file: StoredObject, owners: dict[str, str]) -> PictureFailure | None:
    """Return why a picture cannot have a mask, by its name and size; note whose mask it is otherwise."""
    if "\0" in file.path or any(part in ("", ".", "..") for part in file.path.split("/")):
        return _failed(file, InvalidArgumentError("its name is no path below a folder"))
    if file.num_bytes > DEFAULT_MAX_FILE_BYTES:
        limit = DEFAULT_MAX_FILE_BYTES >> 20
        return _failed(file, PayloadTooLargeError(f"the file is larger than {limit} MiB"))
    owner = owners.setdefault(mask_of(file.path), file.path)
    if owner != file.path:
        return _failed(file, ConflictError(f"its mask would have the name of that of {owner}: rename one"))
    return None


def _failed(file: StoredObject, error: RequestError) -> PictureFailure:
    return PictureFailure(file.path, error.code, str(error))
