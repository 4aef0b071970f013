"""Promote, roll back and delete: alone, together in any order, and killed at any step."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from fakes import InterruptedStorage, write_pooling_artifact
from hypothesis import given, settings
from hypothesis import strategies as st
from interleaving import Outcome, interleave
from obstore.store import MemoryStore

from model.artifacts.aliases import Alias
from model.artifacts.artifact import Artifact
from model.artifacts.layout import (
    ABANDONED_AFTER_S,
    alias_path,
    claim_path,
    manifest_path,
    mark_path,
    version_folder,
)
from model.artifacts.manifest import ARTIFACT_FILES, MANIFEST_FILE, ModelVersion
from model.artifacts.registry import ModelRegistry
from model.artifacts.storage import BucketStorage, FolderStorage, Storage
from model.errors import (
    InvalidReferenceError,
    ModelError,
    ModelNotFoundError,
    RegistryError,
    StorageError,
    VersionConflictError,
    VersionNotFoundError,
)

CITY_1, CITY_2, CITY_3, CITY_4 = (ModelVersion("city", number) for number in range(1, 5))
HERE = Path(__file__).parent
FILES = (*ARTIFACT_FILES, MANIFEST_FILE)
PLANTED = (".claim", "openvino/graph.xml", MANIFEST_FILE)

orders = st.lists(st.integers(0, 2), min_size=40, max_size=40)
often = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_pooling_artifact(tmp_path_factory.mktemp("one") / "artifact")


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return FolderStorage(tmp_path / "registry") if request.param == "folder" else BucketStorage(MemoryStore())


@pytest.fixture
def registry(storage: Storage) -> ModelRegistry:
    """Return a registry of city@1 to city@3."""
    plant(storage, CITY_1, CITY_2, CITY_3)
    return ModelRegistry(storage)


def plant(storage: Storage, *versions: ModelVersion) -> None:
    """Create versions whose files are never opened."""
    for version in versions:
        for name in PLANTED:
            storage.create(f"{version_folder(version)}/{name}", b"anything")


def files(storage: Storage, version: ModelVersion) -> list[str]:
    folder = version_folder(version)
    return [item.path.removeprefix(f"{folder}/") for item in storage.objects(folder)]


def test_an_alias_is_made_moved_and_remembers(registry: ModelRegistry, storage: Storage) -> None:
    assert registry.promote(CITY_1) == Alias(1)
    assert registry.resolve("city") == CITY_1
    assert registry.promote(CITY_2) == Alias(2, (1,))
    assert registry.promote(CITY_3, "canary") == Alias(3)
    assert registry.aliases("city") == {"canary": Alias(3), "production": Alias(2, (1,))}
    stored = storage.read("models/city/aliases/production.json")
    assert stored is not None
    assert json.loads(stored) == {"version": 2, "previous": [1]}


def test_a_promoted_version_can_be_promoted_again(registry: ModelRegistry) -> None:
    registry.promote(CITY_1)
    assert registry.promote(CITY_2) == registry.promote(CITY_2) == Alias(2, (1,))


def test_nothing_but_the_alias_is_left_behind_by_a_move(registry: ModelRegistry, storage: Storage) -> None:
    before = files(storage, CITY_1)
    registry.promote(CITY_1)
    registry.promote(CITY_2)
    registry.rollback("city")
    assert files(storage, CITY_1) == files(storage, CITY_2) == before
    paths = [item.path for item in storage.objects("models/city/aliases")]
    assert [path for path in paths if not path.endswith("/.lock")] == [alias_path("city", "production")]


def test_only_what_exists_is_promoted(registry: ModelRegistry, storage: Storage) -> None:
    with pytest.raises(VersionNotFoundError, match="city@4"):
        registry.promote(CITY_4)
    with pytest.raises(ModelNotFoundError, match="village"):
        registry.promote(ModelVersion("village", 1))
    with pytest.raises(InvalidReferenceError, match="Canary"):
        registry.promote(CITY_1, "Canary")
    assert registry.aliases("city") == {}
    assert files(storage, CITY_4) == []


def test_an_alias_that_somebody_wrote_by_hand_is_moved_too(registry: ModelRegistry, storage: Storage) -> None:
    storage.create(alias_path("city", "production"), b'{"version":2,\n"previous":[3]}')
    assert registry.promote(CITY_1) == Alias(1, (2, 3))
    assert registry.rollback("city") == Alias(2, (3,))


def test_a_malformed_alias_is_neither_moved_nor_ignored(registry: ModelRegistry, storage: Storage) -> None:
    storage.create(alias_path("city", "canary"), b"{}")
    for change in (
        lambda: registry.promote(CITY_1, "canary"),
        lambda: registry.rollback("city", "canary"),
        lambda: registry.delete(CITY_1),
    ):
        with pytest.raises(StorageError, match=r"canary\.json"):
            change()
    assert storage.read(alias_path("city", "canary")) == b"{}"


def test_rollback_goes_back_step_by_step(registry: ModelRegistry) -> None:
    for version in (CITY_1, CITY_2, CITY_3):
        registry.promote(version)
    assert registry.rollback("city") == Alias(2, (1,))
    assert registry.rollback("city") == Alias(1)
    with pytest.raises(VersionNotFoundError, match="city:production has no earlier version"):
        registry.rollback("city")
    assert registry.resolve("city") == CITY_1


def test_what_cannot_be_rolled_back_is_named(registry: ModelRegistry) -> None:
    with pytest.raises(ModelNotFoundError, match="village"):
        registry.rollback("village")
    with pytest.raises(VersionNotFoundError, match="city:canary"):
        registry.rollback("city", "canary")
    with pytest.raises(InvalidReferenceError):
        registry.rollback("city", "../canary")


def test_rollback_passes_over_deleted_versions(registry: ModelRegistry) -> None:
    for version in (CITY_1, CITY_2, CITY_3):
        registry.promote(version)
    registry.delete(CITY_2)
    assert registry.rollback("city") == Alias(1)


def test_an_alias_whose_version_is_lost_can_be_rolled_back(registry: ModelRegistry, storage: Storage) -> None:
    registry.promote(CITY_1)
    registry.promote(CITY_2)
    storage.delete(manifest_path(CITY_2))
    with pytest.raises(VersionNotFoundError):
        registry.resolve("city")
    assert registry.rollback("city") == Alias(1)


def test_of_many_promotions_at_once_none_is_lost(storage: Storage) -> None:
    versions = [ModelVersion("city", number) for number in range(1, 9)]
    plant(storage, *versions)
    registry = ModelRegistry(storage)
    run_together([functools.partial(registry.promote, version) for version in versions])
    alias = registry.aliases("city")["production"]
    assert sorted((alias.version, *alias.previous)) == [version.number for version in versions]


def run_together(works: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_deleted_version_is_gone_but_for_its_number(registry: ModelRegistry, storage: Storage) -> None:
    registry.delete(CITY_3)
    assert registry.versions("city") == [CITY_1, CITY_2]
    assert files(storage, CITY_3) == [".claim"]
    with pytest.raises(VersionNotFoundError, match="city@3"):
        registry.open(CITY_3)
    with pytest.raises(VersionNotFoundError, match="city@3"):
        registry.delete(CITY_3)


def test_a_number_is_not_given_out_again_even_if_its_folder_was_copied_there_without_claim(
    registry: ModelRegistry, storage: Storage, artifact: Artifact
) -> None:
    storage.delete(claim_path(CITY_3))
    registry.delete(CITY_3)
    with pytest.raises(VersionConflictError, match="city@3"):
        registry.publish(artifact.folder, "city", 3)
    assert registry.publish(artifact.folder, "city") == CITY_4


def test_an_aliased_version_stays(registry: ModelRegistry, storage: Storage) -> None:
    before = files(storage, CITY_2)
    registry.promote(CITY_2, "canary")
    with pytest.raises(VersionConflictError, match="city:canary points at city@2"):
        registry.delete(CITY_2)
    assert files(storage, CITY_2) == before
    registry.promote(CITY_3, "canary")
    registry.delete(CITY_2)
    assert registry.aliases("city") == {"canary": Alias(3, (2,))}


def test_the_manifest_goes_first(registry: ModelRegistry, storage: Storage) -> None:
    """An interrupted deletion leaves no half version to see."""
    steps = InterruptedStorage(storage, fail_at=0, failure=StorageError(), after=False)
    ModelRegistry(steps).delete(CITY_2)
    for step in range(1, steps.operations):
        version = ModelVersion("city", 100 + step)
        plant(storage, version)
        before = files(storage, version)
        failing = InterruptedStorage(storage, fail_at=step, failure=KeyboardInterrupt(), after=False)
        with pytest.raises(KeyboardInterrupt):
            ModelRegistry(failing).delete(version)
        if version in registry.versions("city"):
            assert set(before) <= set(files(storage, version))
            registry.delete(version)


def test_a_shipped_version_stays_and_can_be_promoted(
    storage: Storage, artifact: Artifact, tmp_path: Path
) -> None:
    shutil.copytree(artifact.folder, tmp_path / "shipped" / "city" / "1")
    registry = ModelRegistry(storage, shipped=tmp_path / "shipped")
    plant(storage, CITY_2)
    assert registry.promote(CITY_1) == Alias(1)
    assert registry.resolve("city") == CITY_1
    assert files(storage, CITY_1) == []
    registry.promote(CITY_2)
    with pytest.raises(VersionConflictError, match="city@1 came with the program"):
        registry.delete(CITY_1)


def test_what_hides_a_shipped_version_stays_too(storage: Storage, artifact: Artifact, tmp_path: Path) -> None:
    """Without it the number would mean something else."""
    plant(storage, CITY_1)
    shutil.copytree(artifact.folder, tmp_path / "shipped" / "city" / "1")
    with pytest.raises(VersionConflictError):
        ModelRegistry(storage, shipped=tmp_path / "shipped").delete(CITY_1)


@pytest.mark.parametrize("purpose", ["promoting", "deleting"])
def test_who_finds_the_mark_of_the_other_kind_gives_way(
    registry: ModelRegistry, storage: Storage, purpose: str
) -> None:
    before = files(storage, CITY_1)
    storage.create(f"{version_folder(CITY_1)}/.{purpose}-00", b"")
    change = registry.promote if purpose == "deleting" else registry.delete
    with pytest.raises(VersionConflictError, match=f"somebody else is {purpose} city@1"):
        change(CITY_1)
    same = registry.delete if purpose == "deleting" else registry.promote
    storage.delete(f"{version_folder(CITY_1)}/.{purpose}-00")
    assert files(storage, CITY_1) == before
    storage.create(f"{version_folder(CITY_1)}/.{purpose}-00", b"")
    same(CITY_1)


def test_the_mark_of_a_dead_process_holds_for_an_hour(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    plant(storage, CITY_1)
    for mark in (mark_path(CITY_1, "deleting", "00"), mark_path(CITY_1, "promoting", "00")):
        storage.create(mark, b"")
        then_s = time.time() - ABANDONED_AFTER_S - 60
        os.utime(tmp_path / mark, (then_s, then_s))
    registry = ModelRegistry(storage)
    registry.promote(CITY_1, "canary")
    (tmp_path / alias_path("city", "canary")).unlink()
    registry.delete(CITY_1)


def fresh(*versions: ModelVersion, aliased: Alias | None = None) -> Storage:
    storage = BucketStorage(MemoryStore())
    plant(storage, *versions)
    if aliased is not None:
        storage.create(alias_path("city", "production"), aliased.to_json())
    return storage


def promote(version: ModelVersion) -> Callable[[Storage], Outcome]:
    return lambda storage: ModelRegistry(storage).promote(version)


def delete(version: ModelVersion) -> Callable[[Storage], Outcome]:
    return lambda storage: ModelRegistry(storage).delete(version)


def rollback(storage: Storage) -> Outcome:
    return ModelRegistry(storage).rollback("city")


def alias_of(storage: Storage) -> Alias | None:
    return ModelRegistry(storage).aliases("city").get("production")


@pytest.mark.guarantee("G21")
@often
@given(orders)
def test_no_order_of_steps_leaves_an_alias_at_a_version_that_two_deleted(order: list[int]) -> None:
    storage = fresh(CITY_1, CITY_2, aliased=Alias(1))
    promoted, *deleted = interleave(storage, [promote(CITY_2), delete(CITY_2), delete(CITY_2)], order)
    exists = CITY_2 in ModelRegistry(storage).versions("city")
    assert alias_of(storage) == (Alias(2, (1,)) if isinstance(promoted, Alias) else Alias(1))
    assert exists == (None not in deleted)
    assert exists or not isinstance(promoted, Alias)
    assert all(isinstance(o, RegistryError | Alias | None) for o in (promoted, *deleted))
    assert not any(isinstance(o, StorageError) for o in (promoted, *deleted))


@often
@given(orders)
def test_no_order_of_steps_rolls_back_to_a_version_that_is_deleted(order: list[int]) -> None:
    storage = fresh(CITY_1, CITY_2, CITY_3, aliased=Alias(3, (2, 1)))
    interleave(storage, [rollback, delete(CITY_2), delete(CITY_3)], order)
    alias = alias_of(storage)
    assert alias is not None
    assert ModelVersion("city", alias.version) in ModelRegistry(storage).versions("city")


@pytest.mark.guarantee("G21")
@often
@given(orders)
def test_moves_in_any_order_end_as_if_one_had_followed_the_other(order: list[int]) -> None:
    assert outcome_of_moves(order) in serial_outcomes()


def outcome_of_moves(order: Iterable[int]) -> tuple[list[Outcome], Alias | None]:
    storage = fresh(CITY_1, CITY_2, CITY_3, aliased=Alias(1))
    outcomes = interleave(storage, [promote(CITY_2), promote(CITY_3), rollback], order)
    return [type(o) if isinstance(o, Exception) else o for o in outcomes], alias_of(storage)


@functools.cache
def serial_outcomes() -> list[tuple[list[Outcome], Alias | None]]:
    """Return what can come of moves that do not meet."""
    sequences = itertools.permutations(range(3))
    return [outcome_of_moves(i for i in sequence for _ in range(60)) for sequence in sequences]


@often
@given(orders)
def test_a_reader_gets_a_version_that_exists_while_an_alias_moves(order: list[int]) -> None:
    """The old one is deleted as soon as the alias has left it, the new one published just before."""

    def move(storage: Storage) -> Outcome:
        plant(storage, CITY_2)
        ModelRegistry(storage).promote(CITY_2)
        return ModelRegistry(storage).delete(CITY_1)

    storage = fresh(CITY_1, aliased=Alias(1))
    ask = [lambda storage: ModelRegistry(storage).resolve("city")] * 2
    moved, *answers = interleave(storage, [move, *ask], order)
    assert moved is None
    assert set(answers) <= {CITY_1, CITY_2}


CHANGES = {
    "promote": (promote(CITY_3), {Alias(2, (1,)), Alias(3, (2, 1))}),
    "rollback": (rollback, {Alias(2, (1,)), Alias(1)}),
    "delete": (delete(CITY_3), {Alias(2, (1,))}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_is_killed_at_any_step_leaves_a_registry_that_can_be_changed(
    change: str, tmp_path: Path
) -> None:
    template = FolderStorage(tmp_path / "template")
    plant(template, CITY_1, CITY_2, CITY_3)
    template.create(alias_path("city", "production"), Alias(2, (1,)).to_json())
    command = [sys.executable, HERE / "until_killed.py", "steps", change, tmp_path, tmp_path]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[2])}
    steps = int(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
    assert steps > 10
    repeat, possible = CHANGES[change]
    seen = {check_after_a_kill(FolderStorage(tmp_path / str(step)), repeat) for step in range(1, steps)}
    assert seen == possible


def check_after_a_kill(storage: FolderStorage, repeat: Callable[[Storage], Outcome]) -> Alias | None:
    """Change the registry as the one did who was killed, and otherwise; return the alias that was left."""
    left = alias_of(storage)
    registry = ModelRegistry(storage)
    for version in registry.versions("city"):
        assert {*PLANTED} <= set(files(storage, version))
    with contextlib.suppress(VersionNotFoundError):  # it was done
        repeat(storage)
    registry.promote(CITY_1)
    return left


def test_a_version_opened_while_it_is_deleted_is_whole_or_named_as_gone(
    storage: Storage, artifact: Artifact, tmp_path: Path
) -> None:
    versions = [ModelVersion("city", number) for number in range(1, 13)]
    for path, version in itertools.product(FILES, versions):
        storage.create(f"{version_folder(version)}/{path}", (artifact.folder / path).read_bytes())
    registry = ModelRegistry(storage, cache_folder=tmp_path / "cache")
    outcomes: list[Outcome] = []

    def read() -> None:
        for version in versions:
            outcomes.extend(answers_until_it_fails(registry, version))

    def remove() -> None:
        for version in versions:
            registry.delete(version)

    run_together([read, read, remove])
    assert outcomes.count(VersionNotFoundError) == 2 * len(versions)
    assert all(outcome in (artifact.manifest, VersionNotFoundError) for outcome in outcomes)


def answers_until_it_fails(registry: ModelRegistry, version: ModelVersion) -> list[Outcome]:
    answers: list[Outcome] = []
    while not answers or not isinstance(answers[-1], type):
        try:
            answers.append(registry.open(version).manifest)
        except ModelError as error:
            answers.append(type(error))
    return answers
