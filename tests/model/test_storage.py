from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from model.errors import RegistryUrlError, StorageError
from model.storage import BucketStorage, FolderStorage, Storage, open_storage


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return FolderStorage(tmp_path / "not" / "there yet")
    return BucketStorage(MemoryStore())


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


def test_objects_carry_the_time_of_their_writing(storage: Storage) -> None:
    storage.create("a/b", b"")
    (item,) = storage.objects("a")
    assert abs(item.modified_s - time.time()) < 60


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

    threads = [threading.Thread(target=write, args=(bytes([i]),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [storage.read("models/a/1/.claim")]


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


def test_paths_and_file_urls_name_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    for url in (folder, str(folder), f"file://{folder}".replace(" ", "%20"), f"file://localhost{folder}"):
        assert open_storage(url).local_folder("a") == folder / "a"


@pytest.mark.parametrize("url", ["s3://bucket/some/prefix", "gs://bucket", "az://container"])
def test_a_bucket_is_opened_without_connecting(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert open_storage(url).local_folder("a") is None


@pytest.mark.parametrize("url", ["ftp://host/a", "https://host/a", "file://host/a", "s3://", "memory:///"])
def test_any_other_url_is_refused_by_name(url: str) -> None:
    with pytest.raises(RegistryUrlError, match=url):
        open_storage(url)
