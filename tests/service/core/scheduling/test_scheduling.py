"""What the scheduler achieves and keeps to, in virtual time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from chaos import Chaos

from benchmarks.simulation import (
    ALONE,
    BATCHED,
    Outcome,
    Request,
    ideal_fifo,
    open_loop,
    poisson_arrivals,
    serve,
    ten_plus_two,
)
from model.pictures.preprocess import ImageSize
from service.core.scheduling.scheduler import BatchKey, BatchLimits, Lane, Scheduler

FULL_BATCH_S = 0.010 + 0.002 * 16
PEAK = 16 / FULL_BATCH_S
"""Pictures a second when all batches are full."""

SEEDS = 500
MANY_SEEDS = 100_000
BLOCK = 250


def check_seeds(first: int, count: int) -> None:
    for seed in range(first, first + count):
        try:
            Chaos(seed).run(requests=100)
        except Exception as error:
            error.add_note(f"replay it with Chaos({seed}).run(requests=100)")
            raise


@pytest.mark.guarantee("G21")
@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_no_rule_is_broken_whatever_happens(first: int) -> None:
    check_seeds(first, BLOCK)


@pytest.mark.guarantee("G21")
@pytest.mark.soak
@pytest.mark.parametrize("first", range(SEEDS, MANY_SEEDS, 10_000))
def test_no_rule_is_broken_in_many_more_worlds(first: int) -> None:
    check_seeds(first, 10_000)


def in_time(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.is_in_time for outcome in outcomes)


def p99_s(latencies_s: Sequence[float]) -> float:
    return float(np.percentile(latencies_s, 99))


def batched(load: float, *, count: int = 3_000, timeout_s: float = 30.0) -> list[Request]:
    """Return requests for the device of 10 + 2n ms; a load of 1 is its peak."""
    arrivals_s = poisson_arrivals(np.random.default_rng(0), rate=load * PEAK, count=count)
    return [Request(arrival_s, timeout_s=timeout_s, key=BATCHED) for arrival_s in arrivals_s]


def goodput(outcomes: Sequence[Outcome]) -> float:
    """Return answers in time a second, while requests came."""
    end_s = max(outcome.request.arrival_s for outcome in outcomes)
    return sum(o.is_in_time for o in outcomes if o.request.arrival_s + o.latency_s <= end_s) / end_s


def test_an_idle_device_begins_at_once() -> None:
    (outcome,) = serve([Request(1.0, service_s=0.02)])
    assert outcome.latency_s == pytest.approx(0.02)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_saturated_device_runs_full_batches(depth: int) -> None:
    assert goodput(serve(batched(1.5), ten_plus_two, depth=depth)) >= 0.95 * PEAK


@pytest.mark.parametrize("depth", [1, 2])
def test_a_nearly_saturated_device_loses_nothing(depth: int) -> None:
    outcomes = serve(batched(0.95), ten_plus_two, depth=depth)
    assert in_time(outcomes) == len(outcomes)
    assert p99_s([outcome.latency_s for outcome in outcomes]) < 4 * FULL_BATCH_S


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
def test_latencies_under_open_load_are_those_of_an_ideal_queue(load: float) -> None:
    requests = open_loop(1, load=load, count=3_000, noise=0.1, timeout_s=30.0)
    outcomes = serve(requests)
    ideal_s = p99_s(ideal_fifo(requests))
    assert p99_s([outcome.latency_s for outcome in outcomes]) <= 1.2 * ideal_s


@pytest.mark.parametrize("load", [0.95, 1.2])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_nearly_as_many_are_in_time_as_if_durations_were_known_before(load: float, noise: float) -> None:
    requests = open_loop(2, load=load, count=3_000, noise=noise, timeout_s=0.1)
    assert in_time(serve(requests)) >= 0.95 * len(ideal_fifo(requests))


@pytest.mark.guarantee("G5")
@pytest.mark.parametrize("load", [2, 5, 10])
def test_overload_costs_no_goodput_and_what_is_admitted_is_in_time(load: float) -> None:
    outcomes = serve(open_loop(3, load=load, count=6_000, noise=0.05, timeout_s=0.1))
    admitted = sum(outcome.is_admitted for outcome in outcomes)
    assert goodput(outcomes) >= 0.95 / 0.02
    assert in_time(outcomes) >= 0.98 * admitted


@pytest.mark.parametrize("load", [2, 5, 10])
@pytest.mark.parametrize(("patience", "share"), [(1.5, 0.85), (2, 0.95), (5, 0.95)])
def test_overload_costs_a_device_that_runs_batches_no_goodput(
    load: float, patience: float, share: float
) -> None:
    outcomes = serve(batched(load, count=6_000, timeout_s=patience * FULL_BATCH_S), ten_plus_two)
    assert goodput(outcomes) >= share * PEAK


def test_ten_picture_sizes_share_a_device_nearly_as_well_as_one() -> None:
    keys = [BatchKey("model", ImageSize(512, 32 * n), BatchLimits(16)) for n in range(1, 11)]
    requests = [
        dataclasses.replace(request, key=keys[n % 10]) for n, request in enumerate(batched(1.5, count=5_000))
    ]
    outcomes = serve(requests, ten_plus_two)
    assert goodput(outcomes) >= 0.85 * PEAK
    slowest_s = [max(o.latency_s for o in outcomes if o.is_admitted and o.request.key == key) for key in keys]
    assert max(slowest_s) < 1.5 * min(slowest_s)


def test_a_flood_from_one_source_costs_another_one_turn() -> None:
    flood = [Request(0.001 * n, source="flood") for n in range(3_000)]
    few = [Request(0.1 * n, source="few") for n in range(1, 30)]
    outcomes = serve(flood + few)
    assert max(o.latency_s for o in outcomes if o.request.source == "few") <= 0.02 * 3 + 1e-9


def test_bulk_work_goes_on_under_overload_but_costs_little() -> None:
    urgent = open_loop(4, load=2, count=1_000, noise=0.0, timeout_s=0.1)
    bulk = [Request(0.0, lane=Lane.BULK) for _ in range(64)]
    outcomes = serve(urgent + bulk)
    end_s = urgent[-1].arrival_s
    done = [o for o in outcomes if o.request.lane is Lane.BULK and o.latency_s <= end_s]
    assert len(done) >= end_s / 1.1 - 1
    assert in_time(outcomes) - in_time(done) >= 0.95 * len(ideal_fifo(urgent))


def test_a_device_that_becomes_slower_is_learnt_soon() -> None:
    requests = [
        request if request.arrival_s < 10 else dataclasses.replace(request, service_s=3 * request.service_s)
        for request in open_loop(5, load=1.0, count=2_000, noise=0.05, timeout_s=0.3)
    ]
    later = [outcome for outcome in serve(requests) if outcome.request.arrival_s > 12]
    assert in_time(later) >= 0.93 * len(ideal_fifo([outcome.request for outcome in later]))
    assert in_time(later) >= 0.98 * sum(outcome.is_admitted for outcome in later)


def test_one_long_pause_does_not_turn_the_next_requests_away() -> None:
    requests = open_loop(6, load=0.5, count=500, noise=0.0, timeout_s=0.1)
    requests[250] = dataclasses.replace(requests[250], service_s=2.0)
    outcomes = serve(requests)
    after = [o for o in outcomes if o.request.arrival_s > requests[250].arrival_s + 2.0]
    assert in_time(after) >= 0.95 * len(after)


def sized(
    size: ImageSize, *, at_s: Iterable[float], service_s: float, timeout_s: float = 30.0
) -> list[Request]:
    """Return requests for pictures of one size."""
    key = BatchKey("model", size)
    return [Request(arrival_s, service_s, timeout_s, key) for arrival_s in at_s]


def test_tiny_pictures_say_nothing_about_large_ones() -> None:
    probes = sized(ImageSize(32, 32), at_s=[0.0, 0.1, 0.2], service_s=0.005)
    large = sized(ImageSize(2048, 2048), at_s=[1.0, 1.3, 1.6], service_s=3.5)
    assert in_time(serve(probes + large)) == 6


@pytest.mark.parametrize("factor", [2, 4, 16, 100])
def test_no_size_is_refused_because_of_one_that_is_much_smaller(factor: int) -> None:
    small = sized(ImageSize(64, 64), at_s=np.arange(100) / 10, service_s=0.010)
    large = sized(
        ImageSize(64 * factor, 64 * factor), at_s=[20.0, 20.0, 20.0], service_s=0.011, timeout_s=0.2
    )
    assert in_time(serve(small + large)) == 103


@pytest.mark.parametrize("minutes", [1, 10])
def test_after_foreign_load_the_first_answer_ends_all_refusals(minutes: int) -> None:
    size, end_s = ImageSize(512, 512), 60.0 * minutes
    loaded = sized(size, at_s=np.arange(0.0, end_s, 0.5), service_s=0.4, timeout_s=0.5)
    after = sized(size, at_s=end_s + 1.0 + np.arange(300) // 3 / 10, service_s=0.02, timeout_s=0.3)
    outcomes = serve(loaded + after)[len(loaded) :]
    assert outcomes[0].is_in_time
    assert in_time(outcomes[3:]) == 297


def test_after_foreign_load_a_quick_small_picture_lets_large_ones_in() -> None:
    large, small = ImageSize(1024, 1024), ImageSize(256, 256)
    loaded = sized(large, at_s=np.arange(0.0, 100.0, 6.0), service_s=5.0)
    loaded += sized(small, at_s=np.arange(5.1, 100.0, 6.0), service_s=0.4)
    # A device that is never idle from now on: there is always a small picture waiting.
    after = sized(small, at_s=np.arange(200.0, 210.0, 0.05), service_s=0.055, timeout_s=3.0)
    after += sized(large, at_s=[203.0], service_s=0.5, timeout_s=3.0)
    assert serve(loaded + after)[-1].is_in_time


def test_a_wrong_prediction_is_refuted_by_trying() -> None:
    scheduler: Scheduler[Outcome, None] = Scheduler()
    for _ in range(16):
        scheduler._latencies[ALONE.model].learn(pixels=ALONE.size.pixels, duration_s=100.0)
    outcomes = serve(open_loop(7, load=0.5, count=500, noise=0.0, timeout_s=0.2), scheduler=scheduler)
    assert in_time(outcomes[100:]) == 400
