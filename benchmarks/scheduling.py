"""The scheduler: its own time for an item and, in virtual time, its distance from the ideal.

    python benchmarks/scheduling.py
    python benchmarks/scheduling.py --requests 100000 --seeds 5

The simulated figures do not depend on the machine. Their devices: ``slow:20`` takes 20 ms a picture, give or
take the noise (standard deviation of the logarithm); ``10+2n`` takes 10 + 2n ms for a batch of n <= 16.
``ideal`` knows each duration before it begins; ``peak`` is the device running without a pause.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from benchmarks.command_line import make_parser, parse_if_idle
from benchmarks.simulation import (
    BATCHED,
    Outcome,
    Request,
    ideal_fifo,
    one_by_one,
    open_loop,
    poisson_arrivals,
    serve,
    ten_plus_two,
)
from model.pictures.preprocess import ImageSize
from service.cli.bench.percentile import percentile
from service.core.scheduling.scheduler import BatchKey, BatchLimits, Item, Scheduler
from service.machine import this_machine

FULL_BATCH_S = 0.010 + 0.002 * 16
PEAK = 16 / FULL_BATCH_S
SERVICE_S = 0.020


def main() -> None:
    """Print all tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="of each simulated run")
    parser.add_argument(
        "--seeds", type=int, default=3, help="simulated runs of each line; medians are printed"
    )
    parser.add_argument("--items", type=int, default=20_000, help="of each timed run")
    options = parse_if_idle(parser)
    print(f"{this_machine().summary}; 1 thread")
    report_cost(options.items)
    print(f"\n{options.requests} requests, medians of {options.seeds} seeds")
    report_latency(options.requests, options.seeds)
    report_shedding(options.requests, options.seeds)
    report_batches(options.requests, options.seeds)


def report_cost(items: int) -> None:
    """Print the scheduler's own time for an item, from its admission to the end of its batch."""
    print(f"\n{'scheduler itself':44} {'us an item':>10}")
    for waiting, full, sources, sizes in (
        (0, 1, 1, 1),
        (255, 1, 1, 1),
        (255, 1, 64, 1),
        (255, 1, 1, 10),
        (255, 16, 1, 1),
        (255, 16, 64, 1),
        (255, 16, 1, 10),
    ):
        name = f"{waiting} waiting, batch {full}, {sources} sources, {sizes} sizes"
        runs_us = [cost_us(items, waiting=waiting, full=full, sources=sources, sizes=sizes) for _ in range(5)]
        print(f"{name:44} {statistics.median(runs_us):10.1f}")


def cost_us(items: int, *, waiting: int, full: int, sources: int, sizes: int) -> float:
    """Return microseconds for an item while ``waiting`` items wait; making the items is not timed."""
    scheduler: Scheduler[None, None] = Scheduler(1_000_000)
    keys = [BatchKey("model", ImageSize(512, 1024 + 32 * n), BatchLimits(full)) for n in range(sizes)]
    coming: list[Item[None, None]] = [
        Item(None, keys[n % sizes], n * 1e-3, 1e9, source=n % sources) for n in range(items + waiting + full)
    ]
    for item in coming[:waiting]:
        scheduler.admit_item(item)
    queue = iter(coming[waiting:])
    taken = 0
    began_s = time.perf_counter()
    while taken < items:
        for _ in range(len(scheduler), waiting + full):
            scheduler.admit_item(next(queue))
        batch = scheduler.take_batch(now_s=1.0)
        assert batch
        scheduler.finish_batch(batch, now_s=1.0, duration_s=SERVICE_S)
        taken += len(batch.items)
    return 1e6 * (time.perf_counter() - began_s) / taken


def report_latency(count: int, seeds: int) -> None:
    """Print p99 of the scheduler and of an ideal queue on equal arrivals and durations."""
    print(f"\n{'slow:20, nothing refused':44} {'p99 ms':>10} {'ideal ms':>10} {'ratio':>7}")
    for load in (0.5, 0.8, 0.95):
        runs = [latency(seed, load, count) for seed in range(seeds)]
        ours_ms, ideal_ms = (statistics.median(column) for column in zip(*runs, strict=True))
        name = f"load {load:.0%}, noise 10 %"
        print(f"{name:44} {ours_ms:10.1f} {ideal_ms:10.1f} {ours_ms / ideal_ms:7.3f}")


def latency(seed: int, load: float, count: int) -> tuple[float, float]:
    """Return p99 in ms, of the scheduler and of the ideal queue."""
    requests = open_loop(seed, load=load, count=count, noise=0.1, timeout_s=60.0)
    ours_s = [outcome.latency_s for outcome in serve(requests)]
    return _p99_ms(ours_s), _p99_ms(ideal_fifo(requests))


def _p99_ms(latencies_s: Sequence[float]) -> float:
    p99_ms = percentile([1e3 * latency_s for latency_s in latencies_s], 99)
    assert p99_ms is not None, "too few requests"
    return p99_ms


def report_shedding(count: int, seeds: int) -> None:
    """Print the answers within a deadline of five durations, at and beyond full load."""
    print(f"\n{'slow:20, deadline 100 ms':44} {'of ideal':>10} {'of peak':>10} {'admitted but late':>18}")
    for load in (0.5, 0.95, 1.2, 2.0, 5.0, 10.0):
        for noise in (0.0, 0.02, 0.1, 0.3):
            runs = [shedding(seed, load, noise, count) for seed in range(seeds)]
            ideal, peak, late = (statistics.median(column) for column in zip(*runs, strict=True))
            name = f"load {load:.0%}, noise {noise:.0%}"
            print(f"{name:44} {ideal:10.3f} {peak:10.3f} {late:18.2%}")


def shedding(seed: int, load: float, noise: float, count: int) -> tuple[float, float, float]:
    """Return answers in time / ideal, answers in time / peak, and the late share of admitted ones."""
    requests = open_loop(seed, load=load, count=count, noise=noise, timeout_s=5 * SERVICE_S)
    outcomes = serve(requests, one_by_one)
    in_time = sum(outcome.is_in_time for outcome in outcomes)
    admitted = sum(outcome.is_admitted for outcome in outcomes)
    peak = requests[-1].arrival_s / SERVICE_S
    return in_time / len(ideal_fifo(requests)), in_time / peak, 1 - in_time / admitted


def report_batches(count: int, seeds: int) -> None:
    """Print goodput / peak of the device that is faster with batches."""
    print(f"\n{'10+2n ms, batches of 16':44} {'of peak':>10} {'admitted but late':>18}")
    for load in (0.95, 1.2, 2.0, 5.0, 10.0):
        for timeout in (1.5, 2.0, 5.0):
            name = f"load {load:.0%}, deadline {timeout:g} full batches"
            report_goodput(name, seeds, batched(count, load, timeout_s=timeout * FULL_BATCH_S), depth=1)
    report_goodput("saturated, no deadline", seeds, batched(count, 1.5, timeout_s=60.0), depth=1)
    report_goodput("the same, one batch staged", seeds, batched(count, 1.5, timeout_s=60.0), depth=2)
    report_goodput("the same, ten sizes", seeds, in_ten_sizes(batched(count, 1.5, timeout_s=60.0)), depth=1)


def report_goodput(name: str, seeds: int, requests: Callable[[int], list[Request]], *, depth: int) -> None:
    """Print one line for a load."""
    runs = [serve(requests(seed), ten_plus_two, depth=depth) for seed in range(seeds)]
    goods = statistics.median(goodput(outcomes) for outcomes in runs)
    late = statistics.median(lateness(outcomes) for outcomes in runs)
    print(f"{name:44} {goods / PEAK:10.3f} {late:18.2%}")


def batched(count: int, load: float, *, timeout_s: float) -> Callable[[int], list[Request]]:
    """Return a function that makes requests from a seed; a load of 1 is the peak."""

    def make(seed: int) -> list[Request]:
        arrivals_s = poisson_arrivals(np.random.default_rng(seed), rate=load * PEAK, count=count)
        return [Request(arrival_s, timeout_s=timeout_s, key=BATCHED) for arrival_s in arrivals_s]

    return make


def in_ten_sizes(make: Callable[[int], list[Request]]) -> Callable[[int], list[Request]]:
    """Give requests ten sizes of pictures; different sizes do not share a batch."""
    keys = [BatchKey("model", ImageSize(512, 32 * n), BatchLimits(16)) for n in range(1, 11)]
    return lambda seed: [replace(request, key=keys[n % 10]) for n, request in enumerate(make(seed))]


def goodput(outcomes: Sequence[Outcome]) -> float:
    """Return answers in time a second, until the last arrival."""
    end_s = outcomes[-1].request.arrival_s
    return sum(o.is_in_time for o in outcomes if o.request.arrival_s + o.latency_s <= end_s) / end_s


def lateness(outcomes: Sequence[Outcome]) -> float:
    """Return the share of admitted requests that was not answered in time."""
    return 1 - sum(o.is_in_time for o in outcomes) / sum(o.is_admitted for o in outcomes)


if __name__ == "__main__":
    main()
