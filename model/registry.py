"""Published models: immutable versions in a folder or a bucket, and the aliases that point at them.

Layout below the registry's URL::

    models/<name>/<version>/.claim              the number is given out, for good
    models/<name>/<version>/<artifact files>
    models/<name>/<version>/manifest.json       written last: from here on the version exists
    models/<name>/aliases/<alias>.json          {"version": 3, "previous": [2, 1]}

A publisher that dies leaves a folder without manifest. Nobody sees it, and a later publisher of the same
model sweeps it once nothing was written there for ``ABANDONED_AFTER_S`` by the store's own clock. A living
publisher is never that slow, and looks at its folder once more before it writes the manifest. Swept folders
keep their claim: were the number given out again, a second sweeper, late, would delete its new owner's files.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from model.artifact import Artifact, read_artifact
from model.artifact_cache import cached_folder
from model.errors import (
    ArtifactError,
    InvalidReferenceError,
    ModelNotFoundError,
    StorageError,
    VersionConflictError,
    VersionNotFoundError,
)
from model.manifest import ARTIFACT_FILES, MANIFEST_FILE, ModelReference, ModelVersion, check_name
from model.openvino_graph import prove_graph
from model.storage import PARTIAL_PREFIX, Storage, StoredObject, open_storage

SHIPPED_MODELS = Path(__file__).with_name("shipped")
"""The models inside the package, as ``<name>/<version>/``."""

DEFAULT_ALIAS = "production"
ABANDONED_AFTER_S = 3600.0

_CLAIM_FILE = ".claim"
_VERSION_PATH = re.compile(r"(?P<base>models/(?P<name>[^/]+)/(?P<number>[1-9][0-9]{0,8}))/(?P<file>.+)")
_ALIAS_PATH = re.compile(r"models/[^/]+/aliases/(?P<alias>[^/]+)\.json")


class ModelRegistry:
    """The versions of a registry, over those that came with the program.

    A version of the registry hides a shipped one of the same name and number: it was there first, and what a
    number means never changes. New numbers follow the highest of both.

    Args:
        location: a folder, a ``file://``, ``s3://``, ``gs://`` or ``az://`` URL, or an open storage.
        shipped: read-only folder of ``<name>/<version>/`` artifacts; None = nothing was shipped.
        cache_folder: where versions of a bucket are kept as files; folders are used in place.

    Raises:
        RegistryUrlError: the URL names no store.
    """

    def __init__(
        self, location: str | Path | Storage, *, shipped: Path | None = None, cache_folder: Path | None = None
    ) -> None:
        self._storage = open_storage(location) if isinstance(location, str | Path) else location
        self._shipped = shipped
        self._cache_folder = cache_folder

    def models(self) -> list[str]:
        """Return the names of all models that have a version, sorted."""
        published = {version.name for version in _versions(self._storage.objects("models"))}
        return sorted(published | {version.name for version in self._shipped_versions()})

    def versions(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model, oldest first; none for an unknown one."""
        published = _versions(self._storage.objects(f"models/{check_name(name)}"))
        return sorted({*published, *(v for v in self._shipped_versions() if v.name == name)})

    def aliases(self, name: str) -> dict[str, int]:
        """Return the version number that each alias of a model points at.

        Raises:
            StorageError: the store failed, or an alias is malformed.
        """
        paths = [item.path for item in self._storage.objects(f"models/{check_name(name)}/aliases")]
        matches = [match for path in paths if (match := _ALIAS_PATH.fullmatch(path))]
        return {match["alias"]: self._alias_target(match[0]) for match in matches}

    def resolve(self, reference: str | ModelReference) -> ModelVersion:
        """Return the version that a reference means now.

        ``NAME`` means its alias ``production``, or else its highest version.

        Raises:
            InvalidReferenceError: not ``NAME``, ``NAME:ALIAS`` or ``NAME@VERSION``.
            ModelNotFoundError: the model has no version at all.
            VersionNotFoundError: it has no such version or alias.
            StorageError: the store failed, or the alias is malformed.
        """
        if isinstance(reference, str):
            reference = ModelReference.parse(reference)
        versions = self.versions(reference.name)
        if not versions:
            raise ModelNotFoundError(f"no model {reference.name!r}")
        number = self._wanted_number(reference)
        wanted = versions[-1] if number is None else ModelVersion(reference.name, number)
        if wanted not in versions:
            raise VersionNotFoundError(f"no version {wanted}")
        return wanted

    def open(self, version: ModelVersion) -> Artifact:
        """Return a version as a verified local folder.

        Raises:
            VersionNotFoundError: there is no such version.
            ArtifactError: it is damaged.
            ManifestError: its manifest is damaged.
            StorageError: the store failed, or there is no folder to fetch it to.
        """
        manifest = self._storage.read(f"{_base(version)}/{MANIFEST_FILE}")
        if manifest is None:
            folder = self._shipped_folder(version)
        else:
            folder = self._storage.local_folder(_base(version)) or self._fetched(version, manifest)
        artifact = read_artifact(folder)
        artifact.verify()
        return artifact

    def publish(self, folder: Path, name: str, version: int | None = None) -> ModelVersion:
        """Copy an artifact into the registry, as the next version or as the given one.

        Before anything is written the artifact proves itself: digests, finite weights, and its golden sample
        through plain OpenVINO. Whenever this is interrupted, the version is either complete or not there.

        Raises:
            ArtifactError: the artifact is damaged, or its graph computes something else.
            ManifestError: its manifest is malformed.
            InvalidReferenceError: nothing can have this name or number.
            VersionConflictError: the number was given out before.
            StorageError: the store failed.
        """
        artifact = read_artifact(folder)
        artifact.verify()
        prove_graph(artifact)
        claimed = self._claim(check_name(name), version)
        try:
            self._sweep(claimed)
            self._upload(artifact, claimed)
        except BaseException:
            self._withdraw(claimed)
            raise
        return claimed

    def _alias_target(self, path: str) -> int:
        data = self._storage.read(path)
        try:
            number = None if data is None else json.loads(data)["version"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise StorageError(f"{path} is no alias") from error
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise StorageError(f"{path} is no alias")
        return number

    def _wanted_number(self, reference: ModelReference) -> int | None:
        if reference.number is not None:
            return reference.number
        aliases = self.aliases(reference.name)
        if reference.alias is not None and reference.alias not in aliases:
            raise VersionNotFoundError(f"no alias {reference}")
        return aliases.get(reference.alias or DEFAULT_ALIAS)

    def _shipped_versions(self) -> Iterator[ModelVersion]:
        if self._shipped is None:
            return
        for path in self._shipped.glob(f"*/*/{MANIFEST_FILE}"):
            with contextlib.suppress(InvalidReferenceError):
                yield ModelVersion.parse("@".join(path.parts[-3:-1]))

    def _shipped_folder(self, version: ModelVersion) -> Path:
        if self._shipped is None or version not in self._shipped_versions():
            raise VersionNotFoundError(f"no version {version}")
        return self._shipped / version.name / str(version.number)

    def _claim(self, name: str, number: int | None) -> ModelVersion:
        """Make a number ours: each is given out once, to whoever creates its claim."""
        taken = self._taken_numbers(name)
        if number is not None:
            claimed = ModelVersion(name, number)
            if number in taken or not self._storage.create(f"{_base(claimed)}/{_CLAIM_FILE}", b""):
                raise VersionConflictError(f"version {claimed} was given out before")
            return claimed
        claimed = ModelVersion(name, max(taken, default=0) + 1)
        while not self._storage.create(f"{_base(claimed)}/{_CLAIM_FILE}", b""):
            claimed = ModelVersion(name, claimed.number + 1)
        return claimed

    def _taken_numbers(self, name: str) -> set[int]:
        matches = (_VERSION_PATH.fullmatch(item.path) for item in self._storage.objects(f"models/{name}"))
        shipped = {version.number for version in self._shipped_versions() if version.name == name}
        return {int(match["number"]) for match in matches if match} | shipped

    def _sweep(self, claimed: ModelVersion) -> None:
        objects = self._storage.objects(f"models/{claimed.name}")
        own_claim = f"{_base(claimed)}/{_CLAIM_FILE}"
        now_s = max((item.modified_s for item in objects if item.path == own_claim), default=0.0)
        for path in abandoned(objects, now_s=now_s):
            self._storage.delete(path)

    def _upload(self, artifact: Artifact, claimed: ModelVersion) -> None:
        base = _base(claimed)
        for name in ARTIFACT_FILES:
            self._create(f"{base}/{name}", artifact.read(name))
        present = {item.path for item in self._storage.objects(base)}
        if missing := {f"{base}/{name}" for name in ARTIFACT_FILES} - present:
            raise StorageError(
                f"{', '.join(sorted(missing))} vanished: the publisher was stopped for too long"
            )
        self._create(f"{base}/{MANIFEST_FILE}", artifact.manifest.to_json().encode())

    def _create(self, path: str, data: bytes) -> None:
        if not self._storage.create(path, data):
            raise StorageError(f"{path} was written by somebody else")

    def _withdraw(self, claimed: ModelVersion) -> None:
        """Remove what was written, unless the failed write of the manifest did happen after all."""
        with contextlib.suppress(StorageError):  # the store fails already; a later publisher sweeps
            if self._storage.read(f"{_base(claimed)}/{MANIFEST_FILE}") is None:
                for item in reversed(self._storage.objects(_base(claimed))):  # the claim last
                    self._storage.delete(item.path)

    def _fetched(self, version: ModelVersion, manifest: bytes) -> Path:
        if self._cache_folder is None:
            raise StorageError(f"{version} must be fetched, and there is no folder to fetch it to")
        return cached_folder(self._cache_folder, manifest, lambda name: self._read(version, name))

    def _read(self, version: ModelVersion, name: str) -> bytes:
        if (data := self._storage.read(f"{_base(version)}/{name}")) is None:
            raise ArtifactError(f"{version} lacks {name}")
        return data


def abandoned(objects: Iterable[StoredObject], *, now_s: float) -> list[str]:
    """Return the paths that dead publishers left behind.

    Args:
        objects: of one or more models, sorted by path.
        now_s: the time by the clock that dated the objects.

    Returns:
        In folders where nothing was written for ``ABANDONED_AFTER_S``: without a manifest all but the claim,
        with one whatever was being written beside it.
    """
    paths: list[str] = []
    for base, group in groupby(objects, key=_base_of):
        files = list(group)
        if base and max(item.modified_s for item in files) < now_s - ABANDONED_AFTER_S:
            paths += _leftovers(base, [item.path for item in files])
    return paths


def _leftovers(base: str, paths: list[str]) -> list[str]:
    if f"{base}/{MANIFEST_FILE}" in paths:
        return [path for path in paths if path.rpartition("/")[2].startswith(PARTIAL_PREFIX)]
    return [path for path in paths if path != f"{base}/{_CLAIM_FILE}"]


def _base_of(item: StoredObject) -> str:
    match = _VERSION_PATH.fullmatch(item.path)
    return match["base"] if match else ""


def _base(version: ModelVersion) -> str:
    return f"models/{version.name}/{version.number}"


def _versions(objects: Iterable[StoredObject]) -> Iterator[ModelVersion]:
    for item in objects:
        match = _VERSION_PATH.fullmatch(item.path)
        if match and match["file"] == MANIFEST_FILE:
            with contextlib.suppress(InvalidReferenceError):  # a folder that somebody else put there
                yield ModelVersion(match["name"], int(match["number"]))
