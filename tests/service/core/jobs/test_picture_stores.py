"""Where bulk predictions read and write, and where they do not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket_site import Bucket, open_bucket

from model.artifacts.storage import PARTIAL_PREFIX, FolderStorage
from model.errors import RegistryUrlError, StorageError
from service.core.errors import InvalidArgumentError, NotFoundError
from service.core.jobs.job import JobError, JobHeldUpError
from service.core.jobs.picture_stores import MaskTarget, PictureSource, PictureStores


@pytest.fixture
def source(tmp_path: Path) -> PictureSource:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"a")
    return PictureSource("camera", FolderStorage(tmp_path / "in"))


@pytest.fixture
def target(tmp_path: Path) -> MaskTarget:
    return MaskTarget("masks", FolderStorage(tmp_path / "out"))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with open_bucket() as bucket:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield bucket


class TestNames:
    def test_only_configured_names_are_opened(self, tmp_path: Path) -> None:
        stores = PictureStores({"camera": str(tmp_path / "in")}, {"masks": str(tmp_path / "out")})
        stores.check("camera", "masks")
        for source, target in (("masks", "masks"), ("camera", "camera"), ("../in", "masks"), ("", "masks")):
            with pytest.raises(NotFoundError, match="is configured"):
                stores.check(source, target)

    def test_a_url_that_names_no_store_is_named_by_its_key(self) -> None:
        with pytest.raises(RegistryUrlError, match=r"^targets\.masks: not a folder or bucket: 'ftp://x/y'"):
            PictureStores({"camera": "/data"}, {"masks": "ftp://x/y"}).check_urls()

    @pytest.mark.parametrize(
        ("source", "target", "is_refused"),
        [
            ("in", "in", True),
            ("in", "in/masks", True),
            ("data/in", "data", True),
            ("in", "link-to-in/masks", True),
            ("in", "in-masks", False),
            ("s3://b/in", "s3://b/in/masks", True),
            ("s3://b/in?endpoint=http://x&region=r", "s3://b/in?region=r&endpoint=http://x", True),
            ("s3://b/in", "s3://b/in?endpoint=http://x", False),
            ("s3://b/in", "s3://b/masks", False),
            ("s3://b", "gs://b", False),
            ("s3://b", "b", False),
        ],
    )
    def test_a_target_that_shares_files_with_its_source_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str, *, is_refused: bool
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "in").mkdir()
        (tmp_path / "link-to-in").symlink_to(tmp_path / "in")
        stores = PictureStores({"camera": source}, {"masks": target})
        if not is_refused:
            stores.check("camera", "masks")
            return
        with pytest.raises(InvalidArgumentError, match="lie in one another"):
            stores.check("camera", "masks")


class TestSources:
    def test_files_are_listed_and_read(self, source: PictureSource) -> None:
        assert [(one.path, one.num_bytes) for one in source.objects()] == [("a.jpg", 1)]
        assert source.read("a.jpg") == b"a"

    def test_a_folder_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(JobError, match="source 'camera' is no folder of this worker's machine"):
            PictureSource("camera", FolderStorage(tmp_path / "none")).objects()

    def test_a_folder_that_goes_away_holds_the_job_up(self, source: PictureSource, tmp_path: Path) -> None:
        (tmp_path / "in").rename(tmp_path / "elsewhere")
        with pytest.raises(JobHeldUpError, match="source 'camera' does not answer"):
            source.read("a.jpg")

    def test_a_file_that_is_gone_is_no_fault_of_the_source(self, source: PictureSource) -> None:
        with pytest.raises(NotFoundError):
            source.read("b.jpg")

    def test_a_link_that_leads_out_of_the_source_is_not_followed(
        self, source: PictureSource, tmp_path: Path
    ) -> None:
        (tmp_path / "secret.jpg").write_bytes(b"secret")
        (tmp_path / "in" / "b.jpg").symlink_to(tmp_path / "secret.jpg")
        (tmp_path / "in" / "c.jpg").symlink_to("a.jpg")
        with pytest.raises(InvalidArgumentError, match="does not lie in the folder"):
            source.read("b.jpg")
        assert source.read("c.jpg") == b"a"

    def test_a_folder_or_a_pipe_of_a_pictures_name_is_not_waited_for(
        self, source: PictureSource, tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "in" / "p.jpg")
        with pytest.raises(InvalidArgumentError, match="is no regular file"):
            source.read("p.jpg")


class TestTargets:
    def test_a_file_is_written_once_and_never_replaced(self, target: MaskTarget, tmp_path: Path) -> None:
        assert target.write("cam/a.png", b"first") == b"first"
        assert target.write("cam/a.png", b"second") == b"first"
        assert (tmp_path / "out" / "cam" / "a.png").read_bytes() == b"first"
        assert target.paths() == {"cam/a.png"}

    def test_a_full_disk_holds_the_job_up(self, target: MaskTarget, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as full:
            full.setattr(os, "fsync", refuse)
            with pytest.raises(JobHeldUpError, match="target 'masks' does not answer, or has no space"):
                target.write("a.png", b"mask")
            assert target.paths() == frozenset()  # not even a part of the file
        assert target.write("a.png", b"mask") == b"mask"

    def test_a_link_in_the_target_leads_no_mask_out_of_it(self, target: MaskTarget, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "out" / "cam").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InvalidArgumentError, match="leads out"):
            target.write("cam/a.png", b"mask")
        assert not list((tmp_path / "elsewhere").iterdir())

    @pytest.mark.parametrize("path", ["a" * 300 + ".png", "taken.png/a.png"])
    def test_a_name_that_no_file_can_have_is_a_fault_of_its_picture(
        self, target: MaskTarget, path: str
    ) -> None:
        target.write("taken.png", b"mask")
        with pytest.raises(InvalidArgumentError, match="no file of the target can have the name of its mask"):
            target.write(path, b"mask")

    def test_what_killed_writers_leave_behind_is_removed(self, target: MaskTarget, tmp_path: Path) -> None:
        target.write("cam/a.png", b"mask")
        target.write("list.json", b"[]")
        (tmp_path / "out" / "cam" / f"{PARTIAL_PREFIX}0123").write_bytes(b"half a m")
        target.clean_up("list.json")
        assert target.paths() == {"cam/a.png"}


def test_buckets_are_read_and_written_under_their_prefix(bucket: Bucket) -> None:
    options = f"?endpoint={bucket.url}&region=us-east-1"
    stores = PictureStores({"camera": f"s3://bucket/in{options}"}, {"masks": f"s3://bucket/out{options}"})
    stores.check("camera", "masks")
    source, target = stores.open("camera", "masks")
    bucket.objects |= {"in/cam/a.jpg": b"picture", "other/b.jpg": b"other"}
    assert [(one.path, one.num_bytes) for one in source.objects()] == [("cam/a.jpg", 7)]
    assert source.read("cam/a.jpg") == b"picture"
    with pytest.raises(NotFoundError):
        source.read("b.jpg")
    assert target.write("cam/a.png", b"mask") == b"mask"
    assert target.write("cam/a.png", b"other") == b"mask"
    assert bucket.objects["out/cam/a.png"] == b"mask"
    assert target.paths() == {"cam/a.png"}


def test_a_store_that_fails_holds_the_job_up_and_is_not_shown(
    target: MaskTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("/secret/folder: Input/output error")

    monkeypatch.setattr(FolderStorage, "objects", refuse)
    with pytest.raises(JobHeldUpError) as failure:
        target.paths()
    assert "secret" not in str(failure.value)
