from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.artifacts.evaluation_records import EvaluationStore, Requirement, StoredEvaluation
from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from model.artifacts.storage import FolderStorage
from model.errors import EvaluationError, StorageError

CITY_3 = ModelVersion("city", 3)
GOOD = StoredEvaluation("a", CITY_3, "streets", "val", "ss", "f32", 0.7, 10, "d", "2026-01-02T00:00:00+00:00")


def document(**changes: Any) -> dict[str, Any]:
    return {
        "model": "city@3",
        "dataset": "streets",
        "split": "val",
        "protocol": "ss (whatever)",
        "protocol_name": "ss",
        "precision": "f32",
        "scores": {"miou": 0.7},
        "images": 10,
        "digest": "d",
        "finished_at": "2026-01-02T00:00:00+00:00",
    } | changes


@pytest.fixture
def store(tmp_path: Path) -> EvaluationStore:
    return EvaluationStore(FolderStorage(tmp_path))


def test_what_is_stored_is_found_again(store: EvaluationStore) -> None:
    store.add("city", "a", document(), "<html>")
    assert store.of_model("city") == [GOOD]
    assert store.page("city", "a") == b"<html>"
    assert store.page("city", "b") is None
    assert store.of_model("village") == []


def test_the_first_report_of_a_job_stays(store: EvaluationStore) -> None:
    store.add("city", "a", document(), "first")
    store.add("city", "a", document(scores={"miou": 0.1}), "second")
    assert store.of_model("city") == [GOOD]
    assert store.page("city", "a") == b"first"


def test_the_oldest_comes_first(store: EvaluationStore) -> None:
    for job, day in (("a", 3), ("b", 1), ("c", 2)):
        store.add("city", job, document(finished_at=f"2026-01-0{day}T00:00:00+00:00"), "")
    assert [one.job for one in store.of_model("city")] == ["b", "c", "a"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"model": 3}', b'{"model": "x"}', b"\xff"])
def test_a_damaged_report_is_named(tmp_path: Path, store: EvaluationStore, content: bytes) -> None:
    store.add("city", "a", document(), "")
    (tmp_path / "models/city/evaluations/a.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"models/city/evaluations/a\.json"):
        store.of_model("city")


def test_evaluations_are_no_versions_and_no_aliases(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    registry.evaluations.add("city", "a", document(), "")
    assert registry.models() == []
    assert registry.versions("city") == []
    assert registry.aliases("city") == {}


def test_the_newest_fitting_evaluation_decides() -> None:
    need = Requirement.parse("dataset=streets,protocol=ss,min=0.6")
    worse = dataclasses.replace(GOOD, job="b", miou=0.5)
    assert need.check(CITY_3, [worse, GOOD]) == GOOD
    with pytest.raises(
        EvaluationError, match=r"city@3 on streets val by ss has mIoU 0\.5, and 0\.6 is required"
    ):
        need.check(CITY_3, [GOOD, worse])


@pytest.mark.parametrize(
    "change",
    [
        {"version": ModelVersion("city", 4)},
        {"dataset": "roads"},
        {"split": "train"},
        {"protocol": "msf"},
    ],
)
def test_what_does_not_fit_does_not_count(change: dict[str, Any]) -> None:
    need = Requirement.parse("dataset=streets,protocol=ss,min=0")
    with pytest.raises(EvaluationError, match="was not evaluated"):
        need.check(CITY_3, [dataclasses.replace(GOOD, **change)])


def test_the_precision_is_that_of_the_service_if_one_is_named() -> None:
    need = Requirement.parse("dataset=streets,protocol=ss,min=0.6,precision=int8")
    with pytest.raises(EvaluationError, match="city@3 on streets val by ss in int8 was not evaluated"):
        need.check(CITY_3, [GOOD])
    fast = dataclasses.replace(GOOD, precision="int8")
    assert need.check(CITY_3, [fast, GOOD]) == fast


def test_a_score_without_the_broken_pictures_counts_only_where_so_many_may_be_left_out() -> None:
    need = "dataset=streets,protocol=ss,min=0.6"
    some = dataclasses.replace(GOOD, skipped=2)
    for allowed in ("", ",skipped=1"):
        with pytest.raises(EvaluationError, match="was scored without 2 broken pictures"):
            Requirement.parse(need + allowed).check(CITY_3, [GOOD, some])
    assert Requirement.parse(f"{need},skipped=2").check(CITY_3, [GOOD, some]) == some


def test_what_was_left_out_is_counted_from_the_report(store: EvaluationStore) -> None:
    store.add("city", "a", document(skipped=[{"index": 3, "name": "3.png", "reason": "empty"}]), "")
    assert [one.skipped for one in store.of_model("city")] == [1]


def test_a_score_that_is_none_is_not_enough() -> None:
    need = Requirement.parse("dataset=streets,protocol=ss,min=0")
    with pytest.raises(EvaluationError, match="has mIoU None"):
        need.check(CITY_3, [dataclasses.replace(GOOD, miou=None)])


@given(
    st.sampled_from(["streets", "a.b-c"]),
    st.sampled_from(["ss", "mscf-old"]),
    st.floats(0, 1),
    st.sampled_from([None, "test"]),
)
def test_a_requirement_is_read_as_it_is_written(
    dataset: str, protocol: str, minimum: float, split: str | None
) -> None:
    text = f"min={minimum!r},protocol={protocol},dataset={dataset}" + (f",split={split}" if split else "")
    assert Requirement.parse(text) == Requirement(dataset, protocol, minimum, split or "val")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dataset=a,protocol=ss",
        "dataset=a,protocol=ss,min=x",
        "dataset=a,protocol=ss,min=nan",
        "dataset=a,protocol=ss,min=1.1",
        "dataset=a,protocol=ss,min=-0.1",
        "dataset=a,protocol=ss,min=0.5,max=1",
        "dataset=a,protocol=ss,min=0.5,skipped=some",
        "dataset=a,protocol=ss,min=0.5,skipped=-1",
        "dataset,protocol,min",
    ],
)
def test_anything_else_is_no_requirement(text: str) -> None:
    with pytest.raises(EvaluationError, match="not dataset=NAME"):
        Requirement.parse(text)
