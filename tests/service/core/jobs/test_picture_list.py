"""Which files of a source become masks."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st

from model.artifacts.storage import StoredObject
from service.core.jobs.picture_list import PictureList, list_pictures, mask_of


def listed(*paths: str, masks: Collection[str] = (), num_bytes: int = 1) -> PictureList:
    return list_pictures([StoredObject(path, 0.0, num_bytes) for path in sorted(paths)], masks)


def test_pictures_keep_their_folders_and_other_files_are_counted() -> None:
    found = listed("a.jpg", "cam/b.TIF", "notes.txt", "clip.mp4", "cam/.hidden.jpg", ".trash/c.jpg", "README")
    assert found.pictures == ("a.jpg", "cam/b.TIF")
    assert mask_of("cam/b.TIF") == "cam/b.png"
    assert found.not_taken == {
        ".mp4 (name each film as an input of its own)": 1,
        ".txt": 1,
        "hidden": 2,
        "without suffix": 1,
    }


def test_a_picture_whose_mask_is_there_is_kept() -> None:
    found = listed("a.jpg", "b.jpg", masks={"a.png", "other.png"})
    assert (found.pictures, found.kept, found.failed) == (("b.jpg",), ("a.jpg",), ())


def test_of_two_pictures_with_one_mask_the_second_one_fails_by_name() -> None:
    found = listed("a.jpg", "a.png", "cam/a.jpg")
    assert found.pictures == ("a.jpg", "cam/a.jpg")
    (failure,) = found.failed
    assert (failure.picture, failure.code) == ("a.png", "conflict")
    assert "that of a.jpg" in failure.message


def test_a_name_that_leads_out_of_the_target_fails() -> None:
    found = listed("../a.jpg", "/etc/b.jpg", "cam//c.jpg", "cam/../../d.jpg", "e\0.jpg", "./f.jpg", "g.jpg")
    assert found.pictures == ("g.jpg",)
    assert {one.code for one in found.failed} == {"invalid_argument"}
    assert len(found.failed) == 6


def test_a_file_that_is_too_large_to_be_a_picture_fails() -> None:
    (failure,) = listed("a.jpg", num_bytes=(256 << 20) + 1).failed
    assert failure.code == "payload_too_large"


def test_nothing_at_all_is_no_list_of_pictures() -> None:
    assert not listed("notes.txt").has_pictures
    assert listed("a.jpg", masks={"a.png"}).has_pictures


names = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=8)


@given(st.lists(st.builds("{}/{}.jpg".format, names, names)))
def test_every_picture_is_in_one_place_and_no_mask_has_two(paths: list[str]) -> None:
    found = listed(*set(paths))
    masks = [mask_of(picture) for picture in found.pictures]
    assert len(set(masks)) == len(masks)
    assert all(".." not in mask.split("/") and not mask.startswith("/") for mask in masks)
    counted = len(found.pictures) + len(found.kept) + len(found.failed) + sum(found.not_taken.values())
    assert counted == len(set(paths))
    assert PictureList.from_bytes(found.to_bytes()) == found
