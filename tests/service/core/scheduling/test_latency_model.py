from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.scheduling.latency_model import LatencyModel

durations = st.floats(0.001, 10.0)


def a_model(*durations_s: float, pixels: int = 100) -> LatencyModel:
    latency = LatencyModel()
    for duration_s in durations_s:
        latency.learn(pixels=pixels, duration_s=duration_s)
    return latency


def test_nothing_is_predicted_before_anything_is_known() -> None:
    assert LatencyModel().predict(10**6) == 0.0
    assert LatencyModel().spread == 0.0


def test_after_one_size_the_duration_goes_with_the_pixels() -> None:
    assert a_model(3.0).predict(200) == pytest.approx(6.0)


@given(st.lists(st.tuples(st.integers(1, 10**6), durations), min_size=1, max_size=20), st.integers(1, 4))
def test_nothing_is_predicted_from_sizes_that_are_more_than_four_times_smaller(
    seen: list[tuple[int, float]], batches: int
) -> None:
    latency = LatencyModel()
    for pixels, duration_s in seen:
        latency.learn(pixels=pixels, duration_s=duration_s)
    reach = 4 * batches * max(pixels for pixels, _ in seen)
    assert latency.predict(reach + 1, batches=batches) == latency.predict(1000 * reach, batches=batches)


@given(st.floats(0.0, 0.1), st.floats(1e-9, 1e-6), st.sets(st.integers(1, 10**7), min_size=2, max_size=10))
def test_a_device_that_is_a_straight_line_is_learnt_exactly(
    per_batch_s: float, per_pixel_s: float, sizes: set[int]
) -> None:
    latency = LatencyModel()
    for pixels in sizes:
        latency.learn(pixels=pixels, duration_s=per_batch_s + per_pixel_s * pixels)
    pixels = 3 * max(sizes) + 1
    expected_s = 3 * per_batch_s + per_pixel_s * pixels
    assert latency.predict(pixels, batches=3) == pytest.approx(expected_s, rel=1e-3, abs=1e-6)


@given(st.lists(durations, min_size=1, max_size=40))
def test_a_prediction_lies_within_what_was_seen(durations_s: list[float]) -> None:
    predicted_s = a_model(*durations_s).predict(100)
    assert min(durations_s) * 0.999 <= predicted_s <= max(durations_s) * 1.001


@given(st.lists(st.tuples(st.integers(1, 10**6), durations), min_size=1, max_size=60))
def test_more_work_is_never_predicted_to_take_less_time(seen: list[tuple[int, float]]) -> None:
    latency = LatencyModel()
    for pixels, duration_s in seen:
        latency.learn(pixels=pixels, duration_s=duration_s)
    assert 0.0 <= latency.predict(1000, batches=2) <= latency.predict(2000, batches=2) + 1e-9
    assert latency.predict(2000, batches=2) <= latency.predict(2000, batches=3) + 1e-9


@pytest.mark.parametrize("before", [2, 5, 20])
def test_a_single_slow_batch_changes_nothing(before: int) -> None:
    latency = a_model(*[0.02] * before, 5.0, *[0.02] * 2)
    assert latency.predict(100) == pytest.approx(0.02)


@pytest.mark.parametrize("slow", [1, 3, 200])
def test_one_quick_batch_refutes_any_number_of_slow_ones(slow: int) -> None:
    assert a_model(*[5.0] * slow, 0.02).predict(100) == pytest.approx(0.02)


def test_a_quick_batch_limits_what_other_sizes_are_expected_to_take() -> None:
    latency = LatencyModel()
    for pixels, duration_s in ((50, 10.0), (100, 20.0), (400, 80.0), (100, 0.2)):
        latency.learn(pixels=pixels, duration_s=duration_s)
    assert [latency.predict(pixels) for pixels in (50, 100, 400)] == pytest.approx([0.5, 0.2, 2.0])


def test_a_quick_batch_of_another_size_does_not_touch_an_honest_estimate() -> None:
    latency = LatencyModel()
    for pixels, duration_s in ((100, 5.0), (400, 0.10), (100, 0.02)):
        latency.learn(pixels=pixels, duration_s=duration_s)
    assert latency.predict(400) == pytest.approx(0.10)


def test_a_lasting_change_is_learnt_within_a_window() -> None:
    assert a_model(*[0.02] * 50, *[0.06] * 16).predict(100) == pytest.approx(0.06)


def test_a_size_that_was_measured_counts_more_than_the_line() -> None:
    latency = a_model(0.010, pixels=100)
    for pixels, duration_s in ((200, 0.050), (300, 0.030)):
        latency.learn(pixels=pixels, duration_s=duration_s)
    assert latency.predict(200) == pytest.approx(0.050)


def test_the_cost_of_a_batch_is_not_forgotten_while_all_batches_are_small() -> None:
    latency = a_model(0.012, pixels=1)
    latency.learn(pixels=16, duration_s=0.042)
    for _ in range(5_000):
        latency.learn(pixels=1, duration_s=0.012)
    assert latency.predict(8) == pytest.approx(0.026, rel=0.01)


def test_the_present_size_outweighs_what_others_took_long_ago() -> None:
    latency = LatencyModel()
    for pixels in range(1, 11):
        latency.learn(pixels=pixels, duration_s=0.01 * pixels)
    for _ in range(300):
        latency.learn(pixels=1, duration_s=0.05)
    assert latency.predict(4, batches=4) == pytest.approx(0.2, rel=0.1)


def test_memory_is_bounded() -> None:
    latency = LatencyModel()
    for pixels in range(1, 1000):
        latency.learn(pixels=pixels, duration_s=0.01)
    assert len(latency._durations_s) == len(latency._typical_s) == len(latency._measured_at) < 50


def test_the_spread_is_the_mean_deviation_from_the_prediction() -> None:
    steady = a_model(*[0.02] * 30)
    noisy = a_model(*[0.018, 0.022] * 200)
    assert steady.spread == 0.0
    assert noisy.spread * noisy.predict(100) == pytest.approx(0.002, rel=0.2)
