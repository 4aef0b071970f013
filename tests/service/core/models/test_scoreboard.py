from __future__ import annotations

from pathlib import Path
from typing import Any

from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from service.core.models.scoreboard import Scoreboard

CITY_1, CITY_2 = ModelVersion("city", 1), ModelVersion("city", 2)


def store(
    registry: ModelRegistry, job: str, version: ModelVersion, miou: float, day: int, **changes: Any
) -> None:
    document = {
        "model": str(version),
        "dataset": "streets",
        "split": "val",
        "protocol_name": "ss",
        "precision": "f32",
        "scores": {"miou": miou},
        "images": 10,
        "digest": "d",
        "finished_at": f"2026-01-{day:02}T00:00:00+00:00",
    }
    registry.evaluations.add(version.name, job, document | changes, "")


def test_of_each_kind_the_newest_evaluation_is_known(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    store(registry, "a", CITY_1, 0.5, day=2)
    store(registry, "b", CITY_1, 0.4, day=1)
    store(registry, "c", CITY_1, 0.6, day=1, protocol_name="msf")
    store(registry, "d", CITY_2, 0.7, day=3)
    board = Scoreboard(registry)
    assert board.of(CITY_1) == ()
    board.refresh(["city", "nobody"])
    assert [(one.protocol, one.miou) for one in board.of(CITY_1)] == [("msf", 0.6), ("ss", 0.5)]
    assert [one.job for one in board.of(CITY_2)] == ["d"]
    assert board.of(ModelVersion("nobody", 1)) == ()


def test_a_registry_that_fails_leaves_what_was_known(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    store(registry, "a", CITY_1, 0.5, day=1)
    board = Scoreboard(registry)
    board.refresh(["city"])
    (tmp_path / "models/city/evaluations/a.json").write_text("damaged")
    board.refresh(["city"])
    assert [one.job for one in board.of(CITY_1)] == ["a"]
