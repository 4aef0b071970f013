"""Paths of a registry, and the meaning of a listing; nothing here touches a store.

Layout below the registry's URL::

    models/<name>/<version>/.claim              the number is taken, for good
    models/<name>/<version>/<artifact files>
    models/<name>/<version>/manifest.json       written last, removed first: with it the version exists
    models/<name>/<version>/.promoting-<token>  an alias is about to point here: do not delete the version
    models/<name>/<version>/.deleting-<token>   the version is being deleted: do not point an alias here
    models/<name>/aliases/<alias>.json          {"previous": [2, 1], "version": 3}
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal

from model.artifacts.manifest import MANIFEST_FILE, ModelVersion, check_name
from model.artifacts.storage import PARTIAL_PREFIX, StoredObject
from model.errors import InvalidReferenceError

MODELS_FOLDER = "models"
ABANDONED_AFTER_S = 3600.0
"""A process that has not written for so long, by the store's own clock, is dead."""

Purpose = Literal["promoting", "deleting"]

_CLAIM_FILE = ".claim"
_PASSING_PREFIXES = (PARTIAL_PREFIX, ".promoting-", ".deleting-")
_VERSION_PATH = re.compile(r"(?P<folder>models/(?P<name>[^/]+)/(?P<number>[1-9][0-9]{0,8}))/(?P<file>.+)")
_ALIAS_PATH = re.compile(r"models/[^/]+/aliases/(?P<alias>[^./][^/]*)\.json")


def model_folder(name: str) -> str:
    """Return the folder of a model.

    Raises:
        InvalidReferenceError: the name is malformed.
    """
    return f"{MODELS_FOLDER}/{check_name(name)}"


def version_folder(version: ModelVersion) -> str:
    """Return the folder of a version."""
    return f"{model_folder(version.name)}/{version.number}"


def manifest_path(version: ModelVersion) -> str:
    """Return the path of the manifest; a version exists while it does."""
    return f"{version_folder(version)}/{MANIFEST_FILE}"


def claim_path(version: ModelVersion) -> str:
    """Return the path of the claim; its creator owns the number."""
    return f"{version_folder(version)}/{_CLAIM_FILE}"


def mark_path(version: ModelVersion, purpose: Purpose, token: str) -> str:
    """Return the path of a mark: a process is about to do something with a version."""
    return f"{version_folder(version)}/.{purpose}-{token}"


def alias_folder(name: str) -> str:
    """Return the folder of the aliases of a model.

    Raises:
        InvalidReferenceError: the name is malformed.
    """
    return f"{model_folder(name)}/aliases"


def alias_path(name: str, alias: str) -> str:
    """Return the path of an alias.

    Raises:
        InvalidReferenceError: the name of the model or alias is malformed.
    """
    return f"{alias_folder(name)}/{check_name(alias)}.json"


def listed_versions(objects: Iterable[StoredObject]) -> Iterator[ModelVersion]:
    """Yield the versions with a manifest in a listing."""
    for item in objects:
        match = _VERSION_PATH.fullmatch(item.path)
        if match and match["file"] == MANIFEST_FILE:
            with contextlib.suppress(InvalidReferenceError):  # a folder of another program
                yield ModelVersion(match["name"], int(match["number"]))


def given_numbers(objects: Iterable[StoredObject]) -> set[int]:
    """Return the version numbers of one model with any object in a listing."""
    matches = (_VERSION_PATH.fullmatch(item.path) for item in objects)
    return {int(match["number"]) for match in matches if match}


def listed_aliases(objects: Iterable[StoredObject]) -> dict[str, str]:
    """Return the aliases in a listing: name -> path."""
    matches = (_ALIAS_PATH.fullmatch(item.path) for item in objects)
    return {match["alias"]: match[0] for match in matches if match}


def written_s(objects: Iterable[StoredObject], path: str) -> float:
    """Return the time of an object by the store's clock; 0 when the listing lacks it."""
    return max((item.modified_s for item in objects if item.path == path), default=0.0)


def is_marked(objects: Iterable[StoredObject], purpose: Purpose, *, now_s: float) -> bool:
    """Return whether a living process is about to do something with a version.

    Args:
        objects: objects of the version.
        purpose: the planned action.
        now_s: present time by the store's clock.
    """
    return any(
        item.path.rpartition("/")[2].startswith(f".{purpose}-")
        and item.modified_s >= now_s - ABANDONED_AFTER_S
        for item in objects
    )


def abandoned(objects: Iterable[StoredObject], *, now_s: float) -> list[str]:
    """Return the paths that dead processes left behind.

    Args:
        objects: objects of one or more models, sorted by path.
        now_s: present time by the store's clock.

    Returns:
        Paths in folders where nothing was written for ``ABANDONED_AFTER_S``. Without a manifest: all but the
        claim. With one: unfinished files and marks.
    """
    paths: list[str] = []
    for folder, group in groupby(objects, key=_version_folder_of):
        files = list(group)
        if folder and max(item.modified_s for item in files) < now_s - ABANDONED_AFTER_S:
            paths += _leftovers(folder, [item.path for item in files])
    return paths


def _leftovers(folder: str, paths: list[str]) -> list[str]:
    if f"{folder}/{MANIFEST_FILE}" in paths:
        return [path for path in paths if path.rpartition("/")[2].startswith(_PASSING_PREFIXES)]
    return [path for path in paths if path != f"{folder}/{_CLAIM_FILE}"]


def _version_folder_of(item: StoredObject) -> str:
    match = _VERSION_PATH.fullmatch(item.path)
    return match["folder"] if match else ""
