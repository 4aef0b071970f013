from __future__ import annotations

import pytest

from model.artifacts.layout import (
    ABANDONED_AFTER_S,
    abandoned,
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
from model.artifacts.manifest import ModelVersion
from model.artifacts.storage import StoredObject
from model.errors import InvalidReferenceError

CITY_3 = ModelVersion("city", 3)
NOW_S = 100_000.0
OLD_S, FRESH_S = NOW_S - ABANDONED_AFTER_S - 1, NOW_S - ABANDONED_AFTER_S + 1


def item(path: str, modified_s: float = NOW_S) -> StoredObject:
    return StoredObject(f"models/city/{path}", modified_s, num_bytes=1)


def test_everything_of_a_version_lies_in_its_folder() -> None:
    paths = [manifest_path(CITY_3), claim_path(CITY_3), mark_path(CITY_3, "deleting", "00")]
    assert paths == [
        "models/city/3/manifest.json",
        "models/city/3/.claim",
        "models/city/3/.deleting-00",
    ]
    assert all(path.startswith(version_folder(CITY_3) + "/") for path in paths)
    assert alias_path("city", "production") == "models/city/aliases/production.json"


@pytest.mark.parametrize("name", ["", "..", "City", "a/b", ".lock"])
def test_no_name_leads_out_of_its_folder(name: str) -> None:
    with pytest.raises(InvalidReferenceError):
        model_folder(name)
    with pytest.raises(InvalidReferenceError):
        alias_path(name, "production")
    with pytest.raises(InvalidReferenceError):
        alias_path("city", name)


def test_a_version_exists_with_its_manifest_and_its_number_is_given_with_anything() -> None:
    objects = [item("1/.claim"), item("3/manifest.json"), item("3/golden.npz"), item("4/golden.npz")]
    assert list(listed_versions(objects)) == [CITY_3]
    assert given_numbers(objects) == {1, 3, 4}


def test_what_only_looks_like_a_version_or_an_alias_is_none() -> None:
    strange = [
        "0/manifest.json",
        "01/manifest.json",
        "x/manifest.json",
        "1/deep/manifest.json",
        "manifest.json",
    ]
    assert list(listed_versions([item(path) for path in strange])) == []
    assert given_numbers([item(path) for path in strange if "deep" not in path]) == set()
    paths = ["aliases/.lock", "aliases/.partial-stage.json", "aliases/deep/stage.json", "1/stage.json"]
    assert listed_aliases([item(path) for path in paths]) == {}
    assert listed_aliases([item("aliases/stage.json")]) == {"stage": "models/city/aliases/stage.json"}


def test_an_object_that_is_not_listed_was_never_written() -> None:
    assert written_s([item("3/.claim", 7.0)], claim_path(CITY_3)) == 7.0
    assert written_s([], claim_path(CITY_3)) == 0.0


def test_a_mark_counts_for_its_purpose_while_its_process_can_be_alive() -> None:
    fresh, old = item("3/.deleting-00", FRESH_S), item("3/.deleting-11", OLD_S)
    assert is_marked([old, fresh], "deleting", now_s=NOW_S)
    assert not is_marked([old], "deleting", now_s=NOW_S)
    assert not is_marked([old, fresh], "promoting", now_s=NOW_S)


def test_only_folders_where_nothing_was_written_for_an_hour_are_abandoned() -> None:
    objects = [
        item("1/.claim", OLD_S),
        item("1/golden.npz", OLD_S),
        item("1/openvino/.partial-00", OLD_S),
        item("2/.claim", OLD_S),
        item("2/golden.npz", FRESH_S),
        item("3/.claim", OLD_S),
        item("3/.deleting-22", OLD_S),
        item("3/.partial-11", OLD_S),
        item("3/.promoting-33", OLD_S),
        item("3/golden.npz", OLD_S),
        item("3/manifest.json", OLD_S),
        item("4/.claim", OLD_S),
        item("aliases/production.json", OLD_S),
        item("evaluations/7.json", OLD_S),
    ]
    assert abandoned(objects, now_s=NOW_S) == [
        "models/city/1/golden.npz",
        "models/city/1/openvino/.partial-00",
        "models/city/3/.deleting-22",
        "models/city/3/.partial-11",
        "models/city/3/.promoting-33",
    ]
