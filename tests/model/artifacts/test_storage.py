from __future__ import annotations

import errno
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from bucket_site import Bucket, open_bucket
from obstore.store import MemoryStore

from model.artifacts.storage import BucketStorage, FolderStorage, Storage, open_storage
from model.errors import RegistryUrlError, StorageError


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Return an empty bucket that ``s3://bucket`` leads to."""
    with open_bucket() as bucket:
        for name, value in {"ENDPOINT": bucket.url, "ALLOW_HTTP": "true", "REGION": "here"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.setenv(f"AWS_{name}", "test")
        yield bucket


@pytest.fixture(params=["folder", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return FolderStorage(tmp_path / "not" / "there yet")
    if request.param == "memory":
        return BucketStorage(MemoryStore())
    request.getfixturevalue("bucket")
    return open_storage("s3://bucket/some/prefix")


def test_what_is_created_is_read_back(storage: Storage) -> None:
    assert storage.create("models/a/1/.claim", b"one")
    assert storage.read("models/a/1/.claim") == b"one"


def test_an_object_is_written_once(storage: Storage) -> None:
    assert storage.create("a", b"one")
    assert not storage.create("a", b"two")
    assert storage.read("a") == b"one"


def test_what_is_not_there_is_none_and_may_be_deleted(storage: Storage) -> None:
    assert storage.read("models/a") is None
    assert storage.objects("models") == []
    storage.delete("models/a")


def test_objects_are_those_of_the_folder_and_below_in_order(storage: Storage) -> None:
    for path in ("models/b/1/x", "models/a/2/deep/y", "models/a/10/x", "models/ab/1/x"):
        storage.create(path, b"")
    assert [item.path for item in storage.objects("models/a")] == ["models/a/10/x", "models/a/2/deep/y"]
    assert len(storage.objects("models")) == 4


def test_objects_carry_the_time_of_their_writing_by_the_clock_of_the_store(
    tmp_path: Path, bucket: Bucket
) -> None:
    for store in (FolderStorage(tmp_path), BucketStorage(MemoryStore())):
        store.create("a/b", b"")
        (item,) = store.objects("a")
        assert abs(item.modified_s - time.time()) < 60
    bucket.objects["a/b"] = b""
    (item,) = open_storage("s3://bucket").objects("a")
    assert item.modified_s == 1_586_088_000


def test_what_is_deleted_is_gone(storage: Storage) -> None:
    storage.create("a/b", b"")
    storage.delete("a/b")
    assert storage.read("a/b") is None
    assert storage.objects("a") == []


def test_of_many_writers_one_creates_the_object(storage: Storage) -> None:
    barrier = threading.Barrier(8)
    won: list[bytes] = []

    def write(data: bytes) -> None:
        barrier.wait()
        if storage.create("models/a/1/.claim", data):
            won.append(data)

    run_together([functools.partial(write, bytes([index])) for index in range(8)])
    assert won == [storage.read("models/a/1/.claim")]


def test_an_object_is_swapped_while_it_is_what_it_was(storage: Storage) -> None:
    storage.create("a/b", b"one")
    assert storage.swap("a/b", b"one", b"two")
    assert not storage.swap("a/b", b"one", b"three")
    assert storage.read("a/b") == b"two"


def test_what_is_not_there_is_not_swapped(storage: Storage) -> None:
    assert not storage.swap("a/b", b"", b"two")
    storage.create("a/c", b"")
    assert not storage.swap("a/b", b"", b"two")
    assert storage.read("a/b") is None


def test_of_many_swaps_none_is_lost(storage: Storage) -> None:
    storage.create("a/count", b"0")

    def count() -> None:
        for _ in range(5):
            while True:
                old = storage.read("a/count") or b""
                if storage.swap("a/count", old, str(int(old) + 1).encode()):
                    break

    run_together([count] * 4)
    assert storage.read("a/count") == b"20"


def test_who_reads_while_others_swap_reads_the_one_or_the_other(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.create("a", bytes(100_000))
    swapped = threading.Event()
    seen = set()

    def swap() -> None:
        for value in range(50):
            storage.swap("a", bytes([value]) * 100_000, bytes([value + 1]) * 100_000)
        swapped.set()

    def read() -> None:
        while not swapped.is_set():
            seen.add(storage.read("a"))

    run_together([swap, read])
    assert seen <= {bytes([value]) * 100_000 for value in range(51)}


def test_a_change_between_comparing_and_writing_is_not_written_over(bucket: Bucket) -> None:
    storage = open_storage("s3://bucket")
    storage.create("a", b"one")

    def intrude(key: str) -> None:
        bucket.objects[key] = b"two"

    bucket.after_get = intrude
    assert not storage.swap("a", b"one", b"three")
    assert bucket.objects == {"a": b"two"}

    bucket.after_get = bucket.objects.pop
    assert not storage.swap("a", b"two", b"three")
    assert bucket.objects == {}


def test_what_a_killed_writer_left_behind_does_no_harm(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.create("a/b", b"one")
    (tmp_path / "a" / ".partial-b").write_bytes(b"half a file")
    assert storage.swap("a/b", b"one", b"two")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".lock", "b"]


def test_folders_that_come_and_go_stop_no_writer(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)

    def write_and_delete() -> None:
        for count in range(40):
            path = f"a/b/{threading.get_ident()}-{count}"
            assert storage.create(path, b"")
            storage.delete(path)

    failures = run_together([write_and_delete] * 4)
    assert failures == []


def test_a_folder_that_goes_between_two_looks_stops_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, vanish = Path.mkdir, iter([True])

    def make_beside_another(folder: Path, *_args: object, **_options: object) -> None:
        if next(vanish, False):
            raise FileExistsError(errno.EEXIST, "made, and gone again", str(folder))
        make(folder)

    monkeypatch.setattr(Path, "mkdir", make_beside_another)
    assert FolderStorage(tmp_path).create("a/b", b"one")


def test_a_link_to_nothing_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nothing")
    with pytest.raises(StorageError, match="File exists"):
        FolderStorage(tmp_path).create("a/b", b"one")


def run_together(works: Sequence[Callable[[], None]]) -> list[BaseException]:
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a test looks at it
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def test_a_folder_holds_the_files_themselves_and_nothing_else(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.create("a/b", b"one")
    storage.create("a/b", b"two")
    folder = storage.local_folder("a")
    assert folder == tmp_path / "a"
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert BucketStorage(MemoryStore()).local_folder("a") is None


def test_a_folder_goes_with_its_last_file(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.create("a/b", b"")
    storage.delete("a/b")
    assert list(tmp_path.iterdir()) == []


def test_reading_creates_no_folder(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path / "registry")
    storage.objects("models")
    storage.read("models/a")
    assert not (tmp_path / "registry").exists()


def test_a_folder_that_cannot_be_used_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage = FolderStorage(tmp_path / "file")
    with pytest.raises(StorageError, match="a/b"):
        storage.create("a/b", b"")
    with pytest.raises(StorageError):
        storage.read("a/b")
    with pytest.raises(StorageError):
        storage.delete("a/b")
    with pytest.raises(StorageError, match="a/b"):
        storage.swap("a/b", b"", b"")


def test_paths_and_file_urls_name_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    for url in (folder, str(folder), f"file://{folder}".replace(" ", "%20"), f"file://localhost{folder}"):
        assert open_storage(url).local_folder("a") == folder / "a"


def test_a_url_alone_leads_to_a_store_that_speaks_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "ALLOW_HTTP", "REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "test")
    with open_bucket() as bucket:
        storage = open_storage(f"s3://bucket/some/prefix?endpoint={bucket.url}&region=here")
        assert storage.create("a", b"one")
        assert storage.swap("a", b"one", b"two")
        assert bucket.objects == {"some/prefix/a": b"two"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://bucket?endpoind=http://127.0.0.1:1", "endpoind"),
        ("s3://bucket?endpoint", "endpoint"),
        ("gs://bucket?endpoint=http://127.0.0.1:1", "endpoint"),
        ("s3://name:hush@bucket", "environment"),
    ],
)
def test_what_a_url_asks_for_in_vain_is_named(url: str, said: str) -> None:
    with pytest.raises(RegistryUrlError, match=said) as caught:
        open_storage(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/some/prefix", "gs://bucket", "az://container"])
def test_a_bucket_is_opened_without_connecting(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert open_storage(url).local_folder("a") is None


@pytest.mark.parametrize("url", ["ftp://host/a", "https://host/a", "file://host/a", "s3://", "memory:///"])
def test_any_other_url_is_refused_by_name(url: str) -> None:
    with pytest.raises(RegistryUrlError, match=url):
        open_storage(url)
