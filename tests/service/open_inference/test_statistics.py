"""What is counted, with the names and units of Triton's statistics."""

from __future__ import annotations

import pytest

from model.artifacts.manifest import ModelVersion
from model.pictures.preprocess import ImageSize
from service.open_inference.inference import PictureAnswer
from service.open_inference.statistics import InferenceStatistics

VERSION = ModelVersion("fake", 3)
STAGES = ("decode", "preprocess", "queue", "infer", "post", "encode")


def picture(batch_size: int, seconds: float) -> PictureAnswer:
    return PictureAnswer([], ImageSize(8, 8), dict.fromkeys(STAGES, seconds), batch_size)  # type: ignore[arg-type]


def test_a_version_without_requests_has_zeros() -> None:
    document = InferenceStatistics().document(VERSION)
    assert (document["name"], document["version"], document["last_inference"]) == ("fake", "3", 0)
    assert all(total == {"count": 0, "ns": 0} for total in document["inference_stats"].values())
    assert document["batch_stats"] == []


def test_a_request_counts_once_with_the_means_of_its_pictures_and_each_execution_once() -> None:
    statistics = InferenceStatistics()
    statistics.succeeded(VERSION, [picture(2, 0.001), picture(2, 0.003)], 0.5)
    statistics.succeeded(VERSION, [picture(1, 0.004)], 0.1)
    statistics.failed(VERSION, 0.2)
    document = statistics.document(VERSION)
    stats = document["inference_stats"]
    assert (document["inference_count"], document["execution_count"]) == (3, 2)
    assert document["last_inference"] > 1e12  # milliseconds
    assert stats["success"] == {"count": 2, "ns": 600_000_000}
    assert stats["fail"] == {"count": 1, "ns": 200_000_000}
    assert stats["queue"] == {"count": 2, "ns": 6_000_000}
    assert stats["compute_input"] == stats["compute_output"] == {"count": 2, "ns": 12_000_000}
    sizes = {batch["batch_size"]: batch for batch in document["batch_stats"]}
    assert sizes[2]["compute_infer"] == {"count": 1, "ns": 2_000_000}
    assert sizes[1]["compute_infer"] == {"count": 1, "ns": 4_000_000}


@pytest.mark.parametrize("name", ["cache_hit", "cache_miss"])
def test_there_is_no_cache(name: str) -> None:
    statistics = InferenceStatistics()
    statistics.succeeded(VERSION, [picture(1, 0.001)], 0.5)
    assert statistics.document(VERSION)["inference_stats"][name] == {"count": 0, "ns": 0}
