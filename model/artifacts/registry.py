"""Published models: immutable versions in a folder or a bucket, and the aliases that point at them.

``model.artifacts.layout`` shows the paths. Any number of processes may use one registry at once.

A publisher that dies leaves a folder without a manifest, which no reader sees. A later publisher of the same
model sweeps the folder when nothing was written there for ``ABANDONED_AFTER_S`` by the store's own clock. A
living publisher is never that slow, and it lists its folder once more before it writes the manifest. A swept
folder keeps its claim: if its number were given out again, a second, late sweeper would delete new files.

An alias never points at a deleted version. No store changes two objects at once. So a process that promotes
or deletes a version first writes a mark beside its manifest, and then looks for marks of the other kind: of
two processes that meet, at least one sees the other and gives way. A promoting process removes its mark after
it has written the alias, and a deleting process looks for marks first and for aliases then.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from model.artifacts.aliases import Alias, parse_alias
from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.artifact_cache import cached_folder
from model.artifacts.evaluation_records import EvaluationStore
from model.artifacts.layout import (
    MODELS_FOLDER,
    Purpose,
    abandoned,
    alias_folder,
    alias_path,
    claim_path,
    given_numbers,
    is_marked,
    listed_aliases,
    listed_versions,
    manifest_path,
    mark_path,
    model_folder,
    version_folder,
    written_s,
)
from model.artifacts.manifest import (
    ARTIFACT_FILES,
    MANIFEST_FILE,
    ModelManifest,
    ModelReference,
    ModelVersion,
)
from model.artifacts.openvino_graph import prove_graph
from model.artifacts.storage import Storage, open_storage
from model.errors import (
    ArtifactError,
    InvalidReferenceError,
    ModelNotFoundError,
    StorageError,
    VersionConflictError,
    VersionNotFoundError,
)

__all__ = ["ModelRegistry"]

RETIRED_MODELS: Mapping[str, str] = MappingProxyType(
    {
        "bisenetv2-camvid": "it is no longer shipped; use camvid, which has the same classes, or train it"
        " again with the recipe camvid-v2",
    }
)
"""Models that earlier releases shipped -> advice."""

SHIPPED_MODELS = Path(__file__).parents[1] / "shipped"
"""Folder of the models inside the package: ``<name>/<version>/``."""

DEFAULT_ALIAS = "production"


class ModelRegistry:
    """The versions of a registry, laid over the shipped ones.

    A version of the registry hides a shipped one of the same name and number, which came later. New numbers
    follow the highest of both.

    Args:
        location: a folder, a ``file://``, ``s3://``, ``gs://`` or ``az://`` URL, or an open storage.
        shipped: read-only folder of ``<name>/<version>/`` artifacts; None = there are none.
        cache_folder: folder for copies of versions in buckets; folders are used in place.

    Raises:
        RegistryUrlError: the URL names no store.
    """

    def __init__(
        self, location: str | Path | Storage, *, shipped: Path | None = None, cache_folder: Path | None = None
    ) -> None:
        self._storage = open_storage(location) if isinstance(location, str | Path) else location
        self._shipped = shipped
        self._cache_folder = cache_folder

    @property
    def evaluations(self) -> EvaluationStore:
        """Reports of evaluations of the models."""
        return EvaluationStore(self._storage)

    def models(self) -> list[str]:
        """Return the names of all models that have a version, sorted."""
        published = {version.name for version in listed_versions(self._storage.objects(MODELS_FOLDER))}
        return sorted(published | {version.name for version in self._shipped_versions()})

    def versions(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model, oldest first; an unknown model has none."""
        published = listed_versions(self._storage.objects(model_folder(name)))
        return sorted({*published, *(v for v in self._shipped_versions() if v.name == name)})

    def aliases(self, name: str) -> dict[str, Alias]:
        """Return the aliases of a model by name.

        Raises:
            StorageError: the store failed, or an alias is malformed.
        """
        paths = listed_aliases(self._storage.objects(alias_folder(name)))
        return {alias: found for alias in paths if (found := self.alias(name, alias))}

    def alias(self, name: str, alias: str = DEFAULT_ALIAS) -> Alias | None:
        """Return where an alias points, or None if there is none: one read of the store.

        Raises:
            InvalidReferenceError: no model or alias can be called so.
            StorageError: the store failed, or the alias is malformed.
        """
        path = alias_path(name, alias)
        data = self._storage.read(path)
        return None if data is None else parse_alias(path, data)

    def resolve(self, reference: str | ModelReference, *, int8: bool = False) -> ModelVersion:
        """Return the version that a reference means now.

        ``NAME`` means its alias ``production``, or else its highest version. Where the highest version is the
        int8 version of another one, ``int8`` chooses between the two.

        Args:
            reference: ``NAME``, ``NAME:ALIAS`` or ``NAME@VERSION``.
            int8: prefer the int8 version to its original.

        Raises:
            InvalidReferenceError: not ``NAME``, ``NAME:ALIAS`` or ``NAME@VERSION``.
            ModelNotFoundError: the model has no version.
            VersionNotFoundError: it has no such version or alias.
            StorageError: the store failed, or the alias is malformed.
        """
        if isinstance(reference, str):
            reference = ModelReference.parse(reference)
        number = self._wanted_number(reference)
        # Listed after the alias was read, so that versions published and promoted meanwhile are seen.
        versions = self.versions(reference.name)
        if not versions:
            raise _no_model(reference.name)
        if number is None and reference.alias is not None:
            raise VersionNotFoundError(f"no alias {reference}")
        if number is None:
            return versions[-1] if int8 else self._original(versions)
        wanted = ModelVersion(reference.name, number)
        if wanted in versions:
            return wanted
        if self._wanted_number(reference) != number:  # the alias was moved, and its old version was deleted
            return self.resolve(reference, int8=int8)
        raise VersionNotFoundError(f"no version {wanted}")

    def open(self, version: ModelVersion) -> Artifact:
        """Return a version as a verified artifact in a local folder.

        Raises:
            VersionNotFoundError: there is no such version, or it was deleted meanwhile.
            ArtifactError: the version is damaged.
            ManifestError: its manifest is damaged.
            StorageError: the store failed, or there is no cache folder.
        """
        manifest = self._storage.read(manifest_path(version))
        if manifest is None:
            return _verified(self._shipped_folder(version))
        try:
            return _verified(
                self._storage.local_folder(version_folder(version)) or self._fetched(version, manifest)
            )
        except ArtifactError as error:
            if self._storage.read(manifest_path(version)) is None:
                raise VersionNotFoundError(f"{version} was deleted meanwhile") from error
            raise

    def publish(self, folder: Path, name: str, version: int | None = None) -> ModelVersion:
        """Copy an artifact into the registry, as the next version or as the given one.

        The artifact is proven first: digests, finite weights, and the golden sample by OpenVINO. After an
        interruption the version is either complete or not there.

        Raises:
            ArtifactError: the artifact is damaged, or its graph computes something else.
            ManifestError: its manifest is malformed.
            InvalidReferenceError: the name or number is malformed.
            VersionConflictError: the number is taken.
            StorageError: the store failed.
        """
        artifact = read_artifact(folder)
        artifact.verify()
        prove_graph(artifact)
        claimed = self._claim(name, version)
        try:
            self._sweep(claimed)
            self._upload(artifact, claimed)
        except BaseException:
            self._withdraw(claimed)
            raise
        return claimed

    def promote(
        self, version: ModelVersion, alias: str = DEFAULT_ALIAS, *, instead_of: int | None = None
    ) -> Alias:
        """Point an alias at a version; the alias remembers its earlier versions.

        Args:
            version: the new version.
            alias: name of the alias.
            instead_of: number of the version that the bare model name meant before a new alias; a rollback
                leads there.

        Raises:
            InvalidReferenceError: the name of the alias is malformed.
            ModelNotFoundError: there is no such model.
            VersionNotFoundError: there is no such version.
            VersionConflictError: the version is being deleted.
            StorageError: the store failed, or the alias is malformed.
        """
        path = alias_path(version.name, alias)
        with self._kept(version):
            while True:
                old = self._storage.read(path)
                before = Alias(instead_of or version.number) if old is None else parse_alias(path, old)
                moved = before.promoted(version.number)
                if self._replace(path, old, moved):
                    return moved

    def rollback(self, name: str, alias: str = DEFAULT_ALIAS) -> Alias:
        """Point an alias at its latest earlier version that still exists.

        Raises:
            InvalidReferenceError: the name of the model or alias is malformed.
            ModelNotFoundError: there is no such model.
            VersionNotFoundError: there is no such alias, or no earlier version exists.
            VersionConflictError: the earlier version is being deleted.
            StorageError: the store failed, or the alias is malformed.
        """
        path = alias_path(name, alias)
        while True:
            old = self._storage.read(path)
            moved = self._rolled_back(name, alias, None if old is None else parse_alias(path, old))
            with self._kept(ModelVersion(name, moved.version)):
                if self._replace(path, old, moved):
                    return moved

    def delete(self, version: ModelVersion) -> None:
        """Remove a version for good: first its manifest, then the other files; its number stays taken.

        Raises:
            ModelNotFoundError: there is no such model.
            VersionNotFoundError: there is no such version.
            VersionConflictError: an alias points at the version, or is about to, or the version is shipped.
            StorageError: the store failed, or an alias is malformed.
        """
        self._check_exists(version)
        if version in self._shipped_versions():
            raise VersionConflictError(f"{version} came with the program")
        with self._marked(version, "deleting", unless="promoting"):
            for alias, current in self.aliases(version.name).items():
                if current.version == version.number:
                    raise VersionConflictError(f"{version.name}:{alias} points at {version}")
            self._storage.create(claim_path(version), b"")  # which a copied folder may lack
            self._storage.delete(manifest_path(version))
            for item in self._storage.objects(version_folder(version)):
                if item.path != claim_path(version):
                    self._storage.delete(item.path)

    def _rolled_back(self, name: str, alias: str, current: Alias | None) -> Alias:
        versions = self.versions(name)
        if not versions:
            raise _no_model(name)
        if current is None:
            raise VersionNotFoundError(f"no alias {name}:{alias}")
        moved = current.rolled_back({version.number for version in versions})
        if moved is None:
            raise VersionNotFoundError(f"{name}:{alias} has no earlier version to go back to")
        return moved

    def _replace(self, path: str, old: bytes | None, alias: Alias) -> bool:
        """Write an alias; return False when another process changed it meanwhile."""
        new = alias.to_json()
        return self._storage.create(path, new) if old is None else self._storage.swap(path, old, new)

    def _wanted_number(self, reference: ModelReference) -> int | None:
        if reference.number is not None:
            return reference.number
        alias = self.alias(reference.name, reference.alias or DEFAULT_ALIAS)
        return None if alias is None else alias.version

    def _original(self, versions: Sequence[ModelVersion]) -> ModelVersion:
        """Return the highest version, or the original of an int8 one where it still exists."""
        highest = versions[-1]
        manifest = self._manifest(highest)
        made_from = [version for version in versions if str(version) == manifest.derived_from]
        return made_from[0] if manifest.precision == "int8" and made_from else highest

    def _manifest(self, version: ModelVersion) -> ModelManifest:
        if (data := self._storage.read(manifest_path(version))) is not None:
            return ModelManifest.from_json(data)
        return read_artifact(self._shipped_folder(version)).manifest

    def _check_exists(self, version: ModelVersion) -> None:
        self.resolve(ModelReference(version.name, number=version.number))

    @contextlib.contextmanager
    def _kept(self, version: ModelVersion) -> Iterator[None]:
        """Keep a version from being deleted as long as the context lasts."""
        self._check_exists(version)
        if version in self._shipped_versions():
            yield
            return
        with self._marked(version, "promoting", unless="deleting"):
            yield

    @contextlib.contextmanager
    def _marked(self, version: ModelVersion, purpose: Purpose, *, unless: Purpose) -> Iterator[None]:
        mark = mark_path(version, purpose, secrets.token_hex(8))
        self._create(mark, b"")
        try:
            objects = self._storage.objects(version_folder(version))
            if version not in listed_versions(objects):
                raise VersionNotFoundError(f"no version {version}")
            if is_marked(objects, unless, now_s=written_s(objects, mark)):
                raise VersionConflictError(f"somebody else is {unless} {version}")
            yield
        finally:
            with contextlib.suppress(StorageError):  # the mark of a dead process is swept
                self._storage.delete(mark)

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
        """Claim a number: the process that creates the claim owns it."""
        taken = self._taken_numbers(name)
        if number is not None:
            claimed = ModelVersion(name, number)
            if number in taken or not self._storage.create(claim_path(claimed), b""):
                raise VersionConflictError(f"version {claimed} was given out before")
            return claimed
        claimed = ModelVersion(name, max(taken, default=0) + 1)
        while not self._storage.create(claim_path(claimed), b""):
            claimed = ModelVersion(name, claimed.number + 1)
        return claimed

    def _taken_numbers(self, name: str) -> set[int]:
        shipped = {version.number for version in self._shipped_versions() if version.name == name}
        return given_numbers(self._storage.objects(model_folder(name))) | shipped

    def _sweep(self, claimed: ModelVersion) -> None:
        objects = self._storage.objects(model_folder(claimed.name))
        for path in abandoned(objects, now_s=written_s(objects, claim_path(claimed))):
            self._storage.delete(path)

    def _upload(self, artifact: Artifact, claimed: ModelVersion) -> None:
        base = version_folder(claimed)
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
        """Remove the files, unless the manifest was written although its write seemed to fail."""
        with contextlib.suppress(StorageError):  # the store has failed already; a later publisher sweeps
            if self._storage.read(manifest_path(claimed)) is None:
                for item in reversed(self._storage.objects(version_folder(claimed))):  # the claim last
                    self._storage.delete(item.path)

    def _fetched(self, version: ModelVersion, manifest: bytes) -> Path:
        if self._cache_folder is None:
            raise StorageError(f"{version} must be fetched, and there is no folder to fetch it to")
        return cached_folder(self._cache_folder, manifest, lambda name: self._read(version, name))

    def _read(self, version: ModelVersion, name: str) -> bytes:
        if (data := self._storage.read(f"{version_folder(version)}/{name}")) is None:
            raise ArtifactError(f"{version} lacks {name}")
        return data


def _verified(folder: Path) -> Artifact:
    artifact = read_artifact(folder)
    artifact.verify()
    return artifact


def _no_model(name: str) -> ModelNotFoundError:
    advice = f": {RETIRED_MODELS[name]}" if name in RETIRED_MODELS else ""
    return ModelNotFoundError(f"no model {name!r}{advice}")
