"""The numbers for Prometheus: complete, from closed sets, and never of a client's making."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from service.core.errors import OverloadError, ServiceError
from service.telemetry import FrameOutcome, Metrics, ModelLabels, RejectReason, Stage

NAMES = {
    "requests": {"protocol", "route", "model", "version", "code"},
    "request_duration_seconds": {"protocol", "route"},
    "stage_duration_seconds": {"stage"},
    "picture_cpu_seconds": {"stage"},
    "batch_size": set(),
    "batch_padding_ratio": set(),
    "queue_depth": set(),
    "inflight": set(),
    "rejected": {"reason"},
    "expired": {"stage"},
    "cancelled": {"stage"},
    "stream_active": set(),
    "stream_frames": {"outcome"},
    "stream_frame_age_seconds": set(),
    "model_info": {"model", "version", "engine", "device", "precision"},
    "model_load_seconds": set(),
    "worker_restarts": set(),
    "worker_busy_ratio": set(),
    "eval_jobs": {"state"},
    "predict_jobs": {"state"},
    "eval_miou": {"model", "version", "dataset", "protocol"},
}
"""The documented metrics: names without prefix and suffix, and their labels."""

CITY_3 = ModelLabels("city", 3, "openvino", "cpu", "bf16")


def value(metrics: Metrics, sample: str, **labels: str) -> float | None:
    for family in parse(metrics.exposition()[0].decode()):
        for found in family.samples:
            if found.name == f"bisenet_{sample}" and found.labels == labels:
                return found.value
    return None


def exercised() -> Metrics:
    """Return metrics after each instrument was used once."""
    metrics = Metrics()
    metrics.model_loaded(CITY_3, seconds=1.5)
    metrics.request_done(protocol="http", route="/v1/segment", code="ok", duration_s=0.1, served=("city", 3))
    metrics.eval_scored(model="city", version=3, dataset="camvid", protocol="ss", miou=0.5)
    return metrics


def test_every_promised_name_is_there_with_its_labels() -> None:
    families = {
        family.name.removeprefix("bisenet_"): family for family in parse(exercised().exposition()[0].decode())
    }
    for name, labels in NAMES.items():
        own = {label for found in families[name].samples for label in found.labels} - {"le"}
        assert own == labels, name
    ours = {name for name in families if not name.startswith(("process_", "python_"))}
    assert {re.sub("_created$", "", name) for name in ours} == set(NAMES)


def test_a_request_is_counted_under_the_version_that_answered() -> None:
    metrics = exercised()
    labels = {"protocol": "http", "route": "/v1/segment", "model": "city", "version": "3", "code": "ok"}
    assert value(metrics, "requests_total", **labels) == 1
    assert value(metrics, "request_duration_seconds_count", protocol="http", route="/v1/segment") == 1


@settings(max_examples=20)
@given(names=st.lists(st.tuples(st.text(), st.integers()), max_size=20))
def test_versions_that_are_not_loaded_make_no_series(names: list[tuple[str, int]]) -> None:
    metrics = exercised()
    metrics.request_done(protocol="http", route="/x", code="not_found", duration_s=0, served=("nobody", 1))
    before = sum(len(family.samples) for family in parse(metrics.exposition()[0].decode()))
    for served in names:
        metrics.request_done(protocol="http", route="/x", code="not_found", duration_s=0, served=served)
    after = sum(len(family.samples) for family in parse(metrics.exposition()[0].decode()))
    assert after == before


def subclasses(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for below in kind.__subclasses__():
        yield below
        yield from subclasses(below)


@pytest.mark.parametrize("error", sorted(subclasses(OverloadError), key=lambda kind: kind.code))
def test_each_refusal_for_lack_of_room_is_counted_by_its_reason(error: type[ServiceError]) -> None:
    metrics = Metrics()
    metrics.request_done(protocol="grpc", route="Segment", code=error.code, duration_s=0.001)
    assert value(metrics, "rejected_total", reason=error.code) == 1


def test_series_of_closed_sets_begin_at_zero() -> None:
    metrics = Metrics()
    for reason in get_args(RejectReason):
        assert value(metrics, "rejected_total", reason=reason) == 0
    for stage in get_args(Stage):
        assert value(metrics, "stage_duration_seconds_count", stage=stage) == 0
    for outcome in get_args(FrameOutcome):
        assert value(metrics, "stream_frames_total", outcome=outcome) == 0


def test_what_goes_on_is_shown_while_it_does() -> None:
    metrics = Metrics()
    with ExitStack() as stack:
        stack.enter_context(metrics.in_flight())
        stack.enter_context(metrics.stream())
        assert (value(metrics, "inflight"), value(metrics, "stream_active")) == (1, 1)
    assert (value(metrics, "inflight"), value(metrics, "stream_active")) == (0, 0)


def test_the_queue_is_asked_when_somebody_wants_to_know() -> None:
    metrics, depth = Metrics(), [3]
    metrics.watch(queue_depth=lambda: depth[0], busy_ratio=lambda: 0.5)
    assert (value(metrics, "queue_depth"), value(metrics, "worker_busy_ratio")) == (3, 0.5)
    depth[0] = 4
    assert value(metrics, "queue_depth") == 4


def test_an_unloaded_version_is_no_longer_shown() -> None:
    metrics = exercised()
    labels = {"model": "city", "version": "3", "engine": "openvino", "device": "cpu", "precision": "bf16"}
    assert value(metrics, "model_info", **labels) == 1
    metrics.model_unloaded(CITY_3)
    assert value(metrics, "model_info", **labels) is None


def test_jobs_in_no_state_are_none() -> None:
    metrics = Metrics()
    metrics.eval_jobs({"running": 2})
    metrics.eval_jobs({"queued": 1})
    assert (value(metrics, "eval_jobs", state="queued"), value(metrics, "eval_jobs", state="running")) == (
        1,
        0,
    )
    metrics.predict_jobs({"failed": 3})
    assert value(metrics, "predict_jobs", state="failed") == 3
    assert value(metrics, "eval_jobs", state="failed") == 0


def test_two_services_in_one_process_do_not_count_for_each_other() -> None:
    one, other = Metrics(), Metrics()
    one.worker_restarted()
    assert (value(one, "worker_restarts_total"), value(other, "worker_restarts_total")) == (1, 0)


def test_openmetrics_is_spoken_to_those_who_ask_for_it() -> None:
    content, media_type = exercised().exposition("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert list(parse_openmetrics(content.decode()))


def test_a_clock_that_goes_back_makes_no_negative_duration() -> None:
    metrics = Metrics()
    metrics.stages_done({"queue": -1.0})
    assert value(metrics, "stage_duration_seconds_sum", stage="queue") == 0
