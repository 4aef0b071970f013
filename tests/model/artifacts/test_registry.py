from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import InterruptedStorage, seal, write_pooling_artifact
from obstore.store import MemoryStore

from model.artifacts.aliases import Alias
from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.layout import ABANDONED_AFTER_S
from model.artifacts.manifest import (
    ARTIFACT_FILES,
    GRAPH_WEIGHTS_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    ModelVersion,
)
from model.artifacts.registry import ModelRegistry
from model.artifacts.storage import BucketStorage, FolderStorage, Storage, StoredObject
from model.errors import (
    ArtifactError,
    DigestMismatchError,
    GoldenMismatchError,
    InvalidReferenceError,
    ManifestError,
    ModelNotFoundError,
    StorageError,
    VersionConflictError,
    VersionNotFoundError,
)

CITY_1, CITY_2, CITY_3 = (ModelVersion("city", number) for number in (1, 2, 3))
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_pooling_artifact(tmp_path_factory.mktemp("first") / "artifact")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_pooling_artifact(tmp_path_factory.mktemp("second") / "artifact", seed=1)


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return FolderStorage(tmp_path / "registry") if request.param == "folder" else BucketStorage(MemoryStore())


@pytest.fixture
def shipped(artifact: Artifact, tmp_path: Path) -> Path:
    shutil.copytree(artifact.folder, tmp_path / "shipped" / "city" / "1")
    return tmp_path / "shipped"


@pytest.fixture
def registry(storage: Storage, tmp_path: Path) -> ModelRegistry:
    return ModelRegistry(storage, cache_folder=tmp_path / "cache")


def run_script(name: str, *arguments: object) -> str:
    """Run a script beside this file; return what it prints."""
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[2])}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def point(storage: Storage, alias: str, content: bytes) -> None:
    assert storage.create(f"models/city/aliases/{alias}.json", content)


def test_a_published_version_is_listed_resolved_and_opened(
    registry: ModelRegistry, artifact: Artifact
) -> None:
    assert registry.publish(artifact.folder, "city") == CITY_1
    assert registry.models() == ["city"]
    assert registry.versions("city") == [CITY_1]
    assert registry.resolve("city") == CITY_1
    opened = registry.open(CITY_1)
    assert opened.manifest == artifact.manifest
    assert {name: opened.read(name) for name in ARTIFACT_FILES} == {
        name: artifact.read(name) for name in ARTIFACT_FILES
    }


def test_numbers_count_up_and_the_highest_is_the_default(
    registry: ModelRegistry, artifact: Artifact, other: Artifact
) -> None:
    published = [registry.publish(folder, "city") for folder in (artifact.folder, other.folder)]
    assert published == [CITY_1, CITY_2]
    assert registry.resolve("city") == CITY_2
    assert registry.resolve("city@1") == CITY_1
    assert registry.open(CITY_2).manifest == other.manifest


@pytest.fixture
def int8(tmp_path: Path) -> Path:
    """Return an int8 version of city@1 that is not published yet."""
    return write_pooling_artifact(tmp_path / "int8", precision="int8", derived_from="city@1").folder


def test_of_an_int8_version_and_its_original_either_can_be_meant(
    registry: ModelRegistry, artifact: Artifact, int8: Path
) -> None:
    registry.publish(artifact.folder, "city")
    registry.publish(int8, "city")
    assert registry.resolve("city") == CITY_1
    assert registry.resolve("city", int8=True) == CITY_2


def test_of_a_shipped_int8_version_too(storage: Storage, shipped: Path, int8: Path) -> None:
    shutil.copytree(int8, shipped / "city" / "2")
    registry = ModelRegistry(storage, shipped=shipped)
    assert registry.resolve("city") == CITY_1
    assert registry.resolve("city", int8=True) == CITY_2


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_named_by_number_or_alias_is_meant_exactly(
    registry: ModelRegistry, artifact: Artifact, int8: Path, *, wanted: bool
) -> None:
    registry.publish(artifact.folder, "city")
    registry.publish(int8, "city")
    for version in (CITY_1, CITY_2):
        registry.promote(version, "canary")
        registry.promote(version)
        for reference in ("city", "city:canary", str(version)):
            assert registry.resolve(reference, int8=wanted) == version


def test_a_newer_version_is_meant_whatever_an_older_one_is(
    registry: ModelRegistry, artifact: Artifact, other: Artifact, int8: Path
) -> None:
    for folder in (artifact.folder, int8, other.folder):
        registry.publish(folder, "city")
    assert registry.resolve("city") == registry.resolve("city", int8=True) == CITY_3


def test_an_int8_version_whose_original_is_gone_stands_alone(
    registry: ModelRegistry, artifact: Artifact, int8: Path
) -> None:
    registry.publish(artifact.folder, "city")
    registry.publish(int8, "city")
    registry.delete(CITY_1)
    assert registry.resolve("city") == CITY_2


def test_versions_are_sorted_as_numbers(registry: ModelRegistry, artifact: Artifact) -> None:
    for number in (2, 10, 1):
        registry.publish(artifact.folder, "city", number)
    assert [version.number for version in registry.versions("city")] == [1, 2, 10]
    assert registry.publish(artifact.folder, "city").number == 11


def test_a_number_that_was_given_out_is_a_conflict(registry: ModelRegistry, artifact: Artifact) -> None:
    registry.publish(artifact.folder, "city", 2)
    with pytest.raises(VersionConflictError, match="city@2"):
        registry.publish(artifact.folder, "city", 2)
    assert registry.versions("city") == [CITY_2]


@pytest.mark.parametrize(("name", "version"), [("City", None), ("../city", None), ("city", 0), ("city", -1)])
def test_nothing_is_written_under_a_name_that_is_none(
    registry: ModelRegistry, storage: Storage, artifact: Artifact, name: str, version: int | None
) -> None:
    with pytest.raises(InvalidReferenceError):
        registry.publish(artifact.folder, name, version)
    assert storage.objects("") == []


def damaged(artifact: Artifact, folder: Path, name: str) -> Path:
    shutil.copytree(artifact.folder, folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", [*ARTIFACT_FILES, MANIFEST_FILE])
def test_a_damaged_artifact_is_not_published(
    registry: ModelRegistry, storage: Storage, artifact: Artifact, tmp_path: Path, name: str
) -> None:
    with pytest.raises((ArtifactError, ManifestError)):
        registry.publish(damaged(artifact, tmp_path / "damaged", name), "city")
    assert storage.objects("") == []


def test_a_graph_that_computes_something_else_is_not_published(
    registry: ModelRegistry, storage: Storage, artifact: Artifact, other: Artifact, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifact.folder, tmp_path / "mixed"))
    shutil.copy(other.path(GRAPH_WEIGHTS_FILE), folder / GRAPH_WEIGHTS_FILE)
    seal(folder, artifact.manifest)
    with pytest.raises(GoldenMismatchError):
        registry.publish(folder, "city")
    assert storage.objects("") == []


def test_what_is_not_there_is_named(registry: ModelRegistry, artifact: Artifact) -> None:
    with pytest.raises(ModelNotFoundError, match="city"):
        registry.resolve("city@1")
    registry.publish(artifact.folder, "city")
    with pytest.raises(VersionNotFoundError, match="city@2"):
        registry.resolve("city@2")
    with pytest.raises(VersionNotFoundError, match="city:stage"):
        registry.resolve("city:stage")
    with pytest.raises(VersionNotFoundError, match="city@2"):
        registry.open(CITY_2)


def test_an_alias_points_at_a_version_and_production_is_the_default(
    registry: ModelRegistry, storage: Storage, artifact: Artifact
) -> None:
    for _ in range(3):
        registry.publish(artifact.folder, "city")
    point(storage, "production", b'{"version": 1, "previous": []}')
    point(storage, "stage", b'{"version": 2, "previous": [1]}')
    assert registry.aliases("city") == {"production": Alias(1), "stage": Alias(2, (1,))}
    assert registry.resolve("city") == CITY_1
    assert registry.resolve("city:stage") == CITY_2


def test_an_alias_of_a_version_that_is_gone_says_so(
    registry: ModelRegistry, storage: Storage, artifact: Artifact
) -> None:
    registry.publish(artifact.folder, "city")
    point(storage, "production", b'{"version": 7, "previous": []}')
    with pytest.raises(VersionNotFoundError, match="city@7"):
        registry.resolve("city")


def test_a_malformed_alias_is_a_storage_error(
    registry: ModelRegistry, storage: Storage, artifact: Artifact
) -> None:
    registry.publish(artifact.folder, "city")
    point(storage, "production", b'{"version": "1", "previous": []}')
    with pytest.raises(StorageError, match=r"production\.json"):
        registry.resolve("city")


def test_the_shipped_model_is_there_and_used_in_place(storage: Storage, shipped: Path) -> None:
    registry = ModelRegistry(storage, shipped=shipped)
    assert registry.models() == ["city"]
    assert registry.resolve("city") == CITY_1
    assert registry.open(CITY_1).folder == shipped / "city" / "1"
    assert storage.objects("") == []


def test_numbers_of_the_registry_follow_those_that_were_shipped(
    storage: Storage, shipped: Path, other: Artifact, tmp_path: Path
) -> None:
    registry = ModelRegistry(storage, shipped=shipped, cache_folder=tmp_path / "cache")
    with pytest.raises(VersionConflictError):
        registry.publish(other.folder, "city", 1)
    assert registry.publish(other.folder, "city") == CITY_2
    assert registry.versions("city") == [CITY_1, CITY_2]


def test_a_published_version_keeps_its_meaning_when_a_newer_program_ships_its_number(
    registry: ModelRegistry, storage: Storage, shipped: Path, other: Artifact, tmp_path: Path
) -> None:
    registry.publish(other.folder, "city")
    newer = ModelRegistry(storage, shipped=shipped, cache_folder=tmp_path / "cache")
    assert newer.versions("city") == [CITY_1]
    assert newer.open(CITY_1).manifest == other.manifest


def test_a_damaged_version_is_listed_but_not_opened(tmp_path: Path, artifact: Artifact) -> None:
    registry = ModelRegistry(tmp_path)
    registry.publish(artifact.folder, "city")
    (tmp_path / "models" / "city" / "1" / WEIGHTS_FILE).write_bytes(b"other")
    with pytest.raises(DigestMismatchError):
        registry.open(CITY_1)


@pytest.mark.guarantee("G12")
def test_wherever_one_bit_is_flipped_the_version_is_refused(tmp_path: Path, artifact: Artifact) -> None:
    registry = ModelRegistry(tmp_path)
    folder = registry.open(registry.publish(artifact.folder, "city")).folder
    chance = random.Random(0)
    for name in [*ARTIFACT_FILES, MANIFEST_FILE] * 40:
        intact = (folder / name).read_bytes()
        flipped = bytearray(intact)
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        (folder / name).write_bytes(flipped)
        with pytest.raises((DigestMismatchError, ManifestError)):
            registry.open(CITY_1)
        (folder / name).write_bytes(intact)
    registry.open(CITY_1)


@pytest.mark.guarantee("G12")
def test_wherever_a_file_is_cut_the_version_is_refused(tmp_path: Path, artifact: Artifact) -> None:
    registry = ModelRegistry(tmp_path)
    folder = registry.open(registry.publish(artifact.folder, "city")).folder
    for name in [*ARTIFACT_FILES, MANIFEST_FILE]:
        intact = (folder / name).read_bytes()
        for percent in range(100):
            (folder / name).write_bytes(intact[: len(intact) * percent // 100])
            with pytest.raises((DigestMismatchError, ManifestError)):
                registry.open(CITY_1)
        (folder / name).write_bytes(intact)
    registry.open(CITY_1)


def test_what_is_no_version_is_not_listed(storage: Storage, registry: ModelRegistry) -> None:
    for path in (
        "models/City/1",
        "models/city/0",
        "models/city/01",
        "models/city/x",
        "city/1",
        "models/city",
    ):
        storage.create(f"{path}/{MANIFEST_FILE}", b"{}")
    storage.create(f"models/city/1/deep/{MANIFEST_FILE}", b"{}")
    storage.create("models/city/2/.claim", b"")
    assert registry.models() == []
    assert registry.versions("city") == []


def count_operations(storage: Storage, artifact: Artifact) -> int:
    counting = InterruptedStorage(storage, fail_at=0, failure=StorageError(), after=False)
    ModelRegistry(counting).publish(artifact.folder, "city")
    return counting.operations


@pytest.mark.parametrize(
    ("kind", "failure", "after"),
    [
        ("folder", StorageError("full"), False),
        ("folder", StorageError("lost"), True),
        ("bucket", StorageError("lost"), True),
        ("bucket", KeyboardInterrupt(), False),
    ],
)
def test_a_publish_that_fails_at_any_operation_leaves_all_or_nothing(
    artifact: Artifact, tmp_path: Path, kind: str, failure: BaseException, *, after: bool
) -> None:
    steps = count_operations(BucketStorage(MemoryStore()), artifact)
    assert steps > len(ARTIFACT_FILES)
    for step in range(1, steps + 1):
        store = FolderStorage(tmp_path / str(step)) if kind == "folder" else BucketStorage(MemoryStore())
        flaky = InterruptedStorage(store, fail_at=step, failure=failure, after=after)
        with pytest.raises(type(failure)):
            ModelRegistry(flaky).publish(artifact.folder, "city")
        check_all_or_nothing(store, artifact, tmp_path / "cache")


def check_all_or_nothing(store: Storage, artifact: Artifact, cache: Path) -> None:
    """The version is complete or not there, nothing else is, and the next publish works."""
    registry = ModelRegistry(store, cache_folder=cache)
    if registry.versions("city"):
        assert registry.open(CITY_1).manifest == artifact.manifest
    else:
        assert [i.path for i in store.objects("") if not i.path.endswith(".claim")] == []
    published = registry.publish(artifact.folder, "city")
    assert registry.resolve("city") == published
    registry.open(published)


def test_a_version_whose_manifest_was_written_stays_though_its_publisher_heard_otherwise(
    storage: Storage, artifact: Artifact, tmp_path: Path
) -> None:
    """Somebody may use it already, and a number never means two things."""
    steps = count_operations(BucketStorage(MemoryStore()), artifact)
    flaky = InterruptedStorage(storage, fail_at=steps, failure=StorageError("lost"), after=True)
    with pytest.raises(StorageError, match="lost"):
        ModelRegistry(flaky).publish(artifact.folder, "city")
    registry = ModelRegistry(storage, cache_folder=tmp_path / "cache")
    assert registry.open(registry.resolve("city@1")).manifest == artifact.manifest


@pytest.mark.guarantee("G10")
def test_a_publisher_that_is_killed_at_any_step_leaves_all_or_nothing(
    artifact: Artifact, tmp_path: Path
) -> None:
    steps = int(run_script("until_killed.py", "steps", "publish", artifact.folder, tmp_path))
    assert steps > 5 * len(ARTIFACT_FILES)
    outcomes = {check_after_a_kill(tmp_path / str(step), artifact) for step in range(1, steps)}
    assert outcomes == {0, 1}


@pytest.mark.guarantee("G10")
@pytest.mark.soak
def test_a_publisher_that_is_killed_at_any_time_leaves_all_or_nothing(
    artifact: Artifact, tmp_path: Path
) -> None:
    run_script("until_killed.py", "anytime", 200, artifact.folder, tmp_path)
    outcomes = {check_after_a_kill(tmp_path / str(number), artifact) for number in range(200)}
    assert outcomes == {0, 1}


def check_after_a_kill(root: Path, artifact: Artifact) -> int:
    """Publish again; return how many versions the killed publisher left."""
    registry = ModelRegistry(root)
    versions = registry.versions("city")
    for version in versions:
        assert registry.open(version).manifest == artifact.manifest
    an_hour_passes(root)
    published = registry.publish(artifact.folder, "city")
    assert registry.versions("city") == [*versions, published]
    assert leftovers(root, [*versions, published]) == []
    return len(versions)


def an_hour_passes(folder: Path) -> None:
    then_s = time.time() - ABANDONED_AFTER_S - 60
    for path in folder.rglob("*"):
        os.utime(path, (then_s, then_s))


def leftovers(root: Path, versions: list[ModelVersion]) -> list[str]:
    """Return all files but those of the given versions and the claims."""
    wanted = {root / "models" / v.name / str(v.number) / name for v in versions for name in ARTIFACT_FILES}
    wanted |= {root / "models" / v.name / str(v.number) / MANIFEST_FILE for v in versions}
    files = {path for path in root.rglob("*") if path.is_file() and path.name != ".claim"}
    assert wanted <= files
    return sorted(str(path) for path in files - wanted)


def test_a_publisher_that_was_swept_does_not_write_its_manifest(artifact: Artifact) -> None:
    store = BucketStorage(MemoryStore())

    class Swept(InterruptedStorage):
        def objects(self, prefix: str) -> list[StoredObject]:
            if prefix == "models/city/1":
                store.delete(f"{prefix}/{WEIGHTS_FILE}")
            return store.objects(prefix)

    swept = Swept(store, fail_at=0, failure=StorageError(), after=False)
    with pytest.raises(StorageError, match=rf"{WEIGHTS_FILE} vanished"):
        ModelRegistry(swept).publish(artifact.folder, "city")
    assert ModelRegistry(store).models() == []


def test_publishers_that_race_each_get_a_number_of_their_own(storage: Storage, artifact: Artifact) -> None:
    barrier = threading.Barrier(4)
    published: list[ModelVersion] = []

    def publish() -> None:
        barrier.wait()
        published.append(ModelRegistry(storage).publish(artifact.folder, "city"))

    run_together(publish, 4)
    assert sorted(version.number for version in published) == [1, 2, 3, 4]
    assert ModelRegistry(storage).versions("city") == sorted(published)


@pytest.mark.guarantee("G11")
@pytest.mark.parametrize(("publishers", "rounds"), [(4, 3), pytest.param(16, 50, marks=pytest.mark.soak)])
def test_of_publishers_that_race_for_one_number_one_wins(
    tmp_path: Path, publishers: int, rounds: int
) -> None:
    artifacts = [write_pooling_artifact(tmp_path / str(seed), seed=seed) for seed in range(publishers)]
    folders = [artifact.folder for artifact in artifacts]
    won: list[list[int]] = json.loads(
        run_script("publish_together.py", rounds, tmp_path / "registry", *folders)
    )
    assert sorted(number for numbers in won for number in numbers) == [*range(1, rounds + 1)]
    registry = ModelRegistry(tmp_path / "registry")
    for artifact, numbers in zip(artifacts, won, strict=True):
        for number in numbers:
            assert registry.open(ModelVersion("city", number)).manifest == artifact.manifest


def run_together(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_version_of_a_bucket_is_fetched_once_into_a_folder_of_its_owner(
    artifact: Artifact, tmp_path: Path
) -> None:
    store = BucketStorage(MemoryStore())
    ModelRegistry(store).publish(artifact.folder, "city")
    counting = InterruptedStorage(store, fail_at=0, failure=StorageError(), after=False)
    registry = ModelRegistry(counting, cache_folder=tmp_path / "cache")
    folder = registry.open(CITY_1).folder
    fetched = counting.operations
    assert registry.open(CITY_1).folder == folder
    assert counting.operations == fetched + 1  # the manifest, whose digest names the folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_a_damaged_copy_in_the_cache_is_fetched_again(artifact: Artifact, tmp_path: Path) -> None:
    store = BucketStorage(MemoryStore())
    registry = ModelRegistry(store, cache_folder=tmp_path / "cache")
    registry.publish(artifact.folder, "city")
    folder = registry.open(CITY_1).folder
    (folder / WEIGHTS_FILE).write_bytes(b"other")
    assert registry.open(CITY_1).folder == folder
    read_artifact(folder).verify()


def test_a_damaged_version_of_a_bucket_is_not_cached(artifact: Artifact, tmp_path: Path) -> None:
    store = BucketStorage(MemoryStore())
    registry = ModelRegistry(store, cache_folder=tmp_path / "cache")
    registry.publish(artifact.folder, "city")
    store.delete(f"models/city/1/{WEIGHTS_FILE}")
    with pytest.raises(ArtifactError, match=r"lacks model\.safetensors"):
        registry.open(CITY_1)
    store.create(f"models/city/1/{WEIGHTS_FILE}", b"other")
    with pytest.raises(DigestMismatchError):
        registry.open(CITY_1)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_bucket_needs_a_folder_to_fetch_to(artifact: Artifact, tmp_path: Path) -> None:
    store = BucketStorage(MemoryStore())
    ModelRegistry(store).publish(artifact.folder, "city")
    with pytest.raises(StorageError, match="no folder to fetch it to"):
        ModelRegistry(store).open(CITY_1)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        ModelRegistry(store, cache_folder=tmp_path / "file" / "cache").open(CITY_1)


def test_neither_the_registry_nor_what_it_needs_imports_torch_or_reports_home(tmp_path: Path) -> None:
    program = (
        "import sys, json\nfrom model.artifacts import openvino_graph, registry\n"
        "openvino_graph.load_openvino()\n"
        "print(json.dumps([n for n in ('torch', 'openvino_telemetry') if sys.modules.get(n)]))"
    )
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[2]), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120).stdout
    assert json.loads(output) == []
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_no_longer_shipped_says_what_to_use_instead(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="use camvid"):
        ModelRegistry(tmp_path).resolve("bisenetv2-camvid")
