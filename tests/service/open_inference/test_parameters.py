"""The reserved parameters: time-out and priority."""

from __future__ import annotations

import pytest

from service.core.errors import InvalidArgumentError
from service.core.scheduling.scheduler import Lane
from service.open_inference.parameters import (
    MAX_TIMEOUT_S,
    flag,
    lane_of,
    refuse_extensions,
    timeout_s,
)


@pytest.mark.parametrize(
    ("parameters", "seconds"),
    [({}, 30.0), ({"timeout": 0}, 30.0), ({"timeout": 1}, 1e-6), ({"timeout": 60_000_000}, 60.0)],
)
def test_a_timeout_is_in_microseconds_and_0_is_none(parameters: dict[str, object], seconds: float) -> None:
    assert timeout_s(parameters, 30.0) == seconds


def test_a_timeout_is_cut_to_what_the_service_waits_for_at_most() -> None:
    assert timeout_s({"timeout": 1 << 63}, 30.0) == MAX_TIMEOUT_S


@pytest.mark.parametrize(
    ("priority", "lane"),
    [(0, Lane.INTERACTIVE), (1, Lane.INTERACTIVE), (2, Lane.STREAM), (3, Lane.BULK), (1 << 63, Lane.BULK)],
)
def test_a_priority_is_a_lane(priority: int, lane: Lane) -> None:
    assert lane_of({"priority": priority}) is lane
    assert lane_of({}) is Lane.INTERACTIVE


@pytest.mark.parametrize("value", [-1, 1.5, "1", True, None, [1]])
def test_a_number_that_is_none_is_refused_by_the_name_of_its_parameter(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="'timeout'"):
        timeout_s({"timeout": value}, 30.0)
    with pytest.raises(InvalidArgumentError, match="'priority'"):
        lane_of({"priority": value})


def test_a_flag_is_true_or_false() -> None:
    assert flag({"binary_data": False}, "binary_data", default=True) is False
    assert flag({}, "binary_data", default=True) is True
    with pytest.raises(InvalidArgumentError, match="'binary_data' is true or false, not 1"):
        flag({"binary_data": 1}, "binary_data", default=True)


def test_what_would_change_a_tensor_is_refused() -> None:
    refuse_extensions({"classification": 0, "anything": 1}, "output 'labels'")
    with pytest.raises(InvalidArgumentError, match="output 'labels': shared memory"):
        refuse_extensions({"shared_memory_region": "r"}, "output 'labels'")
    with pytest.raises(InvalidArgumentError, match="class_pixels"):
        refuse_extensions({"classification": 3}, "output 'labels'")
