"""Versions change while they are served: an old one goes only when the new one has proved itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes import PATIENCE_S, FakeEngine, InterruptedStorage, write_pooling_artifact

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelReference, ModelVersion
from model.artifacts.registry import ModelRegistry
from model.artifacts.storage import open_storage
from model.errors import GoldenMismatchError, StorageError
from model.evaluation import network_passes
from service.core.device.device import Device
from service.core.device.engine import EngineOptions
from service.core.device.in_process import InProcessRunner
from service.core.errors import (
    BusyError,
    ConflictError,
    InvalidArgumentError,
    ModelNotFoundError,
    VersionNotFoundError,
)
from service.core.models.live_versions import REFUSED_S, LiveVersions
from service.core.models.model_host import ModelHost
from service.core.scheduling.dispatcher import Dispatcher


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a registry with three versions of ``pool``, which does not change."""
    network_passes.warm_up()
    folder = tmp_path_factory.mktemp("published")
    for seed in range(3):
        artifact = write_pooling_artifact(folder / f"artifact-{seed}", seed=seed)
        ModelRegistry(folder / "registry").publish(artifact.folder, "pool")
    return folder / "registry"


@dataclass(frozen=True)
class Site:
    registry: ModelRegistry
    host: ModelHost
    broken: set[int]
    folder: Path

    def versions(self, *references: str) -> LiveVersions:
        """Load what the references mean now, as the service does when it starts."""
        parsed = [ModelReference.parse(reference) for reference in references]
        for reference in parsed:
            version = self.registry.resolve(reference)
            self.host.expect(version)
            self.host.load(version, self.registry.open(version))
        return LiveVersions(self.registry, self.host, parsed)

    def loaded(self) -> list[int]:
        return [served.version.number for served in self.host.models]

    def wait_until_loaded(self, *numbers: int) -> None:
        given_up_s = time.monotonic() + PATIENCE_S
        while self.loaded() != list(numbers):  # retired versions are unloaded in the background
            assert time.monotonic() < given_up_s, self.loaded()
            time.sleep(0.001)


@pytest.fixture
def site(published: Path, tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "registry"
    _copy_by_links(published, folder)
    broken: set[int] = set()

    def build(artifact: Artifact, _options: EngineOptions) -> FakeEngine:
        if int(artifact.folder.name) in broken:
            raise GoldenMismatchError("computes something else")
        return FakeEngine()

    device = Device(build, EngineOptions("cpu", "f32", tmp_path / "cache"), decode_threads=1)
    host = ModelHost(Dispatcher(InProcessRunner(device)))
    yield Site(ModelRegistry(folder), host, broken, folder)
    host.close()


def _copy_by_links(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(path)


def test_a_promoted_version_takes_over_and_the_old_one_leaves(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 1))
    versions = site.versions("pool")
    moved = versions.promote("pool", "production", 2)
    assert (moved.version, moved.previous) == (2, (1,))
    assert site.host.find("pool").version.number == 2
    site.wait_until_loaded(2)


def test_a_rollback_goes_back_the_same_way(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 1))
    versions = site.versions("pool")
    versions.promote("pool", "production", 3)
    assert versions.rollback("pool", "production").version == 1
    assert site.host.find("pool").version.number == 1
    site.wait_until_loaded(1)
    with pytest.raises(VersionNotFoundError):
        versions.rollback("pool", "production")


def test_the_first_promotion_can_be_rolled_back_to_what_was_served_without_an_alias(site: Site) -> None:
    versions = site.versions("pool")
    assert versions.promote("pool", "production", 2).previous == (3,)
    assert versions.rollback("pool", "production").version == 3
    assert site.host.find("pool").version.number == 3


def test_an_alias_that_is_new_remembers_nothing_that_it_does_not_replace(site: Site) -> None:
    versions = site.versions("pool")
    assert versions.promote("pool", "production", 3).previous == ()
    assert versions.promote("pool", "staging", 1).previous == ()
    assert LiveVersions(site.registry, site.host, []).promote("pool", "canary", 1).previous == ()


def test_a_version_in_use_stays_until_it_is_not(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 1))
    versions = site.versions("pool")
    with site.host.hold("pool"):
        versions.promote("pool", "production", 2)
        assert site.loaded() == [2, 1]
    site.wait_until_loaded(2)


def test_a_version_that_does_not_prove_itself_changes_nothing(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 1))
    versions = site.versions("pool")
    site.broken.add(2)
    with pytest.raises(ConflictError, match="does not prove itself"):
        versions.promote("pool", "production", 2)
    assert site.registry.aliases("pool")["production"].version == 1
    assert site.loaded() == [1]


def test_a_rollback_to_a_version_that_does_not_prove_itself_changes_nothing(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 1))
    site.registry.promote(ModelVersion("pool", 2))
    versions = site.versions("pool")
    site.broken.add(1)
    with pytest.raises(ConflictError):
        versions.rollback("pool", "production")
    assert site.registry.aliases("pool")["production"].version == 2
    assert site.loaded() == [2]


def test_a_registry_that_fails_leaves_the_old_version(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 1))
    storage = open_storage(site.folder)
    counted = InterruptedStorage(storage, fail_at=0, failure=StorageError("no"), after=False)
    LiveVersions(ModelRegistry(counted), site.host, []).promote("pool", "staging", 2)
    site.versions("pool")
    for fail_at in range(1, counted.operations + 1):
        failing = InterruptedStorage(storage, fail_at=fail_at, failure=StorageError("no"), after=False)
        versions = LiveVersions(ModelRegistry(failing), site.host, [ModelReference("pool")])
        try:
            versions.promote("pool", "production", 2)
        except BusyError:
            site.wait_until_loaded(1)
            assert site.host.find("pool").version.number == 1
        else:  # what failed was the removal of a mark
            assert site.host.find("pool").version.number == 2
            site.versions("pool")
            versions = LiveVersions(site.registry, site.host, [ModelReference("pool")])
            versions.promote("pool", "production", 1)
            site.wait_until_loaded(1)


def test_an_alias_that_the_service_does_not_follow_is_moved_in_the_registry_alone(site: Site) -> None:
    versions = site.versions("pool@1")
    versions.promote("pool", "production", 2)
    versions.promote("pool", "staging", 3)
    assert {alias: found.version for alias, found in site.registry.aliases("pool").items()} == {
        "production": 2,
        "staging": 3,
    }
    assert site.loaded() == [1]


def test_a_version_that_was_asked_for_by_its_number_stays(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 1))
    versions = site.versions("pool", "pool@1")
    versions.promote("pool", "production", 2)
    versions.promote("pool", "production", 3)
    site.wait_until_loaded(3, 1)


def test_versions_come_and_go_by_number(site: Site) -> None:
    versions = site.versions("pool@1")
    assert versions.load("pool", 3).version == ModelVersion("pool", 3)
    assert site.host.find("pool").version.number == 1
    assert site.host.find("pool", 3).version.number == 3
    versions.unload("pool", 3)
    assert site.loaded() == [1]
    with pytest.raises(ConflictError):
        versions.unload("pool", 1)
    with pytest.raises(VersionNotFoundError):
        versions.unload("pool", 2)


def test_what_is_not_there_is_named(site: Site) -> None:
    versions = site.versions("pool@1")
    with pytest.raises(ModelNotFoundError, match="nobody"):
        versions.load("nobody", 1)
    with pytest.raises(VersionNotFoundError, match="pool@9"):
        versions.promote("pool", "production", 9)
    with pytest.raises(VersionNotFoundError, match="staging"):
        versions.rollback("pool", "staging")
    for name, alias in (("..", "production"), ("pool", "../x"), ("pool/x", "production")):
        with pytest.raises((InvalidArgumentError, ModelNotFoundError)):
            versions.promote(name, alias, 1)


def test_an_alias_that_another_process_moved_is_followed(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 1))
    versions = site.versions("pool")
    versions.catch_up()
    assert site.loaded() == [1]
    ModelRegistry(site.folder).promote(ModelVersion("pool", 3))
    versions.catch_up()
    assert site.host.find("pool").version.number == 3
    site.wait_until_loaded(3)
    ModelRegistry(site.folder).rollback("pool")
    versions.catch_up()
    site.wait_until_loaded(1)


def test_only_what_names_no_number_is_followed_and_only_where_its_alias_exists(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 2), "staging")
    versions = site.versions("pool@1", "pool:staging")
    other = ModelRegistry(site.folder)
    other.promote(ModelVersion("pool", 3), "production")
    versions.catch_up()
    assert site.loaded() == [1, 2]
    other.promote(ModelVersion("pool", 3), "staging")
    versions.catch_up()
    assert 3 in site.loaded()
    assert site.host.find("pool").version.number == 1


def test_a_version_that_fails_here_is_not_followed_and_not_tried_all_the_time(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 1))
    versions = site.versions("pool")
    site.broken.add(2)
    other = ModelRegistry(site.folder)
    other.promote(ModelVersion("pool", 2))
    with pytest.raises(ConflictError):
        versions.catch_up(now_s=1000.0)
    site.broken.clear()
    versions.catch_up(now_s=1000.0 + REFUSED_S - 1)
    assert site.host.find("pool").version.number == 1
    versions.catch_up(now_s=1000.0 + REFUSED_S)
    assert site.host.find("pool").version.number == 2


def test_a_version_that_failed_does_not_hold_up_the_next_one(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 1))
    versions = site.versions("pool")
    site.broken.add(2)
    other = ModelRegistry(site.folder)
    other.promote(ModelVersion("pool", 2))
    with pytest.raises(ConflictError):
        versions.catch_up(now_s=1000.0)
    other.promote(ModelVersion("pool", 3))
    versions.catch_up(now_s=1000.0)
    assert site.host.find("pool").version.number == 3


def test_while_the_registry_does_not_answer_what_is_served_stays(site: Site) -> None:
    site.registry.promote(ModelVersion("pool", 1))
    versions = site.versions("pool")
    ModelRegistry(site.folder).promote(ModelVersion("pool", 2))
    storage = open_storage(str(site.folder))
    failing = InterruptedStorage(storage, fail_at=1, failure=StorageError("away"), after=False)
    site.registry._storage = failing
    with pytest.raises(BusyError):
        versions.catch_up()
    assert site.loaded() == [1]
    versions.catch_up()
    assert site.host.find("pool").version.number == 2
