"""A service near and beyond its peak, over HTTP: waiting, deadlines, refusals.

    python benchmarks/overload.py waiting                  # p99 beside an ideal queue, at 50, 80 and 95 %
    python benchmarks/overload.py deadlines                # answered in time beside ideal shedding
    python benchmarks/overload.py flood                    # goodput, refusals, recovery, memory: 2x, 5x, 10x
    python benchmarks/overload.py flood --engine openvino --times 2 --deadline-ms 2000

Requests arrive at random times (Poisson), whether or not earlier ones are answered. Latency counts from the
intended time of sending. ``slow_engine:20`` takes 20 ms for each picture and no processor. At a load of 100
%, one picture arrives in the median time for which a picture keeps the device busy, as the service reports
it.

The ideal queue gets the same arrivals and the same busy times, without any cost of HTTP, pictures or masks.
It knows how long each request takes, and refuses at once those that would be late.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import uvloop

from benchmarks.command_line import make_parser, parse_if_idle
from benchmarks.simulation import Request, ideal_fifo
from service.cli.bench.http_target import HttpTarget
from service.cli.bench.load import (
    RefusedError,
    RequestRecord,
    closed_loop,
    open_loop,
    poisson_arrivals,
    refusals,
)
from service.cli.bench.load_bench import make_load
from service.cli.bench.own_service import OwnService, ServiceWatch, own_service
from service.cli.bench.percentile import percentile
from service.core.memory import frozen_objects
from service.machine import this_machine

HERE = Path(__file__).parent
PATH = "/v1/segment?mask=none"
SATURATED = 8
RESTED = 2.0
"""A service has recovered when an answer takes no more than this many times its time at rest."""

HOPELESS_S = 30.0


class Client:
    """Sends pictures in turn, and remembers for how long each kept the device busy.

    Args:
        target: the service.
        pictures: JPEG files.
    """

    def __init__(self, target: HttpTarget, pictures: Sequence[bytes]) -> None:
        self._target = target
        self._pictures = pictures
        self.busy_s: dict[int, float] = {}

    async def send(self, number: int) -> None:
        """Send a picture and wait for its answer."""
        picture = self._pictures[number % len(self._pictures)]
        timings_ms = json.loads((await self._target.segment(picture, PATH)).body)["timings_ms"]
        self.busy_s[number] = 1e-3 * (timings_ms["infer"] + timings_ms["post"])

    async def typical_busy_s(self) -> float:
        """Return the median time for which a picture keeps the device busy."""
        await closed_loop(self.send, in_flight=1, seconds=3.0)
        return median(self.busy_s.values())

    async def peak(self, seconds: float) -> float:
        """Return the answers a second while some requests always wait."""
        records = await closed_loop(self.send, in_flight=SATURATED, seconds=seconds)
        assert not refusals(records), "refused without overload"
        return len(records) / (max(one.ended_s for one in records) - min(one.intended_s for one in records))

    async def rested_s(self) -> float:
        """Return the median latency of requests that are sent one after the other."""
        return median(one.latency_s for one in await closed_loop(self.send, in_flight=1, seconds=2.0))


@dataclass(frozen=True)
class Waiting:
    """One load without refusals, beside an ideal queue."""

    load: float
    arrivals: int
    refused: dict[str, int]
    p50_ms: float
    p99_ms: float
    ideal_p99_ms: float
    ratio: float


@dataclass(frozen=True)
class Deadlines:
    """One load with deadlines, beside ideal shedding.

    Attributes:
        load: arrivals in the time that a picture takes.
        arrivals: requests.
        answered: in time by the clock of the service.
        received: in time by the clock of the client, from the intended time of sending.
        ideal: of the simulation.
        ratio: of ``answered`` to ``ideal``.
        received_ratio: of ``received`` to ``ideal``.
    """

    load: float
    arrivals: int
    answered: int
    received: int
    ideal: int
    ratio: float
    received_ratio: float


@dataclass(frozen=True)
class Flood:
    """One overload.

    Attributes:
        times: arrivals / peak.
        peak_per_s: answers a second while some requests always wait, measured before.
        goodput_per_s: answers a second within the deadline.
        share: goodput / peak.
        accepted_p99_ms: of the latency of answered requests.
        refused: number of refused requests by code.
        refusal_p99_ms: of the time from the intended sending to an immediate refusal (429).
        recovery_s: time from the last arrival until a request was answered as fast as before.
        rss_mb: memory of all processes of the service, before and at the end.
    """

    times: float
    peak_per_s: float
    goodput_per_s: float
    share: float
    accepted_p99_ms: float | None
    refused: dict[str, int]
    refusal_p99_ms: float | None
    recovery_s: float
    rss_mb: tuple[float, float]


def main() -> None:
    """Measure and print."""
    options = _options()
    load = make_load([options.size], options.pictures)
    with (
        _service(options) as service,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        frozen_objects(),  # a pause of this process would count as latency of the service
    ):
        measure = {"waiting": waiting, "deadlines": deadlines, "flood": flood}[options.what]
        results = runner.run(measure(options, service, load.pictures))
    context = f"{options.engine} {options.precision}, {options.size}; {this_machine().summary}"
    if options.json:
        print(json.dumps({"context": context, "results": [asdict(result) for result in results]}))
        return
    print(context)
    for result in results:
        print(result)


def _options() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["waiting", "deadlines", "flood"])
    parser.add_argument("--engine", default="slow_engine:20")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--model", default="camvid@1")
    parser.add_argument("--size", default="512x1024", metavar="HxW")
    parser.add_argument("--pictures", type=Path, help="folder of pictures; made-up ones if left out")
    parser.add_argument("--arrivals", type=int, default=10_000, help="of each load of waiting and deadlines")
    parser.add_argument("--load", type=float, action="append", help="share of what the device can do")
    parser.add_argument("--times", type=float, action="append", help="the peak, of the flood")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each flood")
    parser.add_argument("--deadline-ms", type=int, default=1000, help="of the flood's requests")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parse_if_idle(parser)


@contextmanager
def _service(options: argparse.Namespace) -> Iterator[OwnService]:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])  # the service finds slow_engine
    flags = ["--engine", options.engine, "--precision", options.precision, "--model", options.model]
    with own_service(flags) as service:
        yield service


def _target(service: OwnService, *, deadline_s: float | None = None) -> HttpTarget:
    headers = {"Content-Type": "image/jpeg", "Accept": "application/json"}
    if deadline_s is not None:
        headers["X-Request-Timeout-Ms"] = str(round(1e3 * deadline_s))
    return HttpTarget(service.url, headers=headers)


async def waiting(
    options: argparse.Namespace, service: OwnService, pictures: Sequence[bytes]
) -> list[Waiting]:
    """Measure the latency of requests without deadlines, none of which is refused."""
    results = []
    for share in options.load or [0.5, 0.8, 0.95]:
        async with _target(service) as target:
            client = Client(target, pictures)
            typical_s = await client.typical_busy_s()
            records = await _arrive(client, share / typical_s, options.arrivals)
        asked = _as_requests(records, client.busy_s, typical_s)
        latencies_ms = _latencies_ms(records)
        p99_ms, ideal_ms = _p99(latencies_ms), _p99([1e3 * latency_s for latency_s in ideal_fifo(asked)])
        assert p99_ms is not None, "too few arrivals"
        assert ideal_ms is not None, "too few arrivals"
        figures = (share, len(records), refusals(records), round(median(latencies_ms), 2), p99_ms, ideal_ms)
        results.append(Waiting(*figures, round(p99_ms / ideal_ms, 3)))
    return results


async def deadlines(
    options: argparse.Namespace, service: OwnService, pictures: Sequence[bytes]
) -> list[Deadlines]:
    """Measure the answers in time, with a deadline of five service times."""
    results = []
    for share in options.load or [0.95, 1.2]:
        async with _target(service) as target:
            typical_s = await Client(target, pictures).typical_busy_s()
        deadline_s = 5 * typical_s
        async with _target(service, deadline_s=deadline_s) as target:
            client = Client(target, pictures)
            records = await _arrive(client, share / typical_s, options.arrivals)
        asked = _as_requests(records, client.busy_s, typical_s, timeout_s=deadline_s)
        latencies_ms = _latencies_ms(records)
        received = sum(latency_ms <= 1e3 * deadline_s for latency_ms in latencies_ms)
        ideal = len(ideal_fifo(asked))
        ratios = round(len(latencies_ms) / ideal, 3), round(received / ideal, 3)
        results.append(Deadlines(share, len(records), len(latencies_ms), received, ideal, *ratios))
    return results


async def flood(options: argparse.Namespace, service: OwnService, pictures: Sequence[bytes]) -> list[Flood]:
    """Measure the service while many more requests arrive than it can answer."""
    deadline_s = 1e-3 * options.deadline_ms
    watch = ServiceWatch(service)
    results = []
    async with _target(service, deadline_s=deadline_s) as target:
        client = Client(target, pictures)
        await client.peak(options.seconds / 3)  # the memory that any load takes
        for times in options.times or [2, 5, 10]:
            rested_s, peak = await client.rested_s(), await client.peak(options.seconds / 3)
            before_mb = watch.rss_mb()
            seconds = options.seconds
            records = await open_loop(
                client.send, arrivals_s=poisson_arrivals(rate=times * peak, seconds=seconds)
            )
            recovery_s = await _recovery_s(client, max(one.intended_s for one in records), rested_s)
            results.append(
                _flood(
                    records,
                    times=times,
                    peak=peak,
                    deadline_s=deadline_s,
                    recovery_s=recovery_s,
                    rss_mb=(before_mb, watch.rss_mb()),
                )
            )
    return results


def _flood(
    records: Sequence[RequestRecord],
    *,
    times: float,
    peak: float,
    deadline_s: float,
    recovery_s: float,
    rss_mb: tuple[float, float],
) -> Flood:
    began_s, last_s = records[0].intended_s, records[-1].intended_s
    answered = [one for one in records if one.refusal is None]
    good = [one for one in answered if one.latency_s <= deadline_s and one.ended_s <= last_s]
    refusals_ms = [1e3 * one.latency_s for one in records if one.refusal == "queue_full"]
    goodput = len(good) / (last_s - began_s)
    return Flood(
        times=times,
        peak_per_s=round(peak, 2),
        goodput_per_s=round(goodput, 2),
        share=round(goodput / peak, 3),
        accepted_p99_ms=_p99(_latencies_ms(records)),
        refused=refusals(records),
        refusal_p99_ms=_p99(refusals_ms),
        recovery_s=round(recovery_s, 3),
        rss_mb=(round(rss_mb[0], 1), round(rss_mb[1], 1)),
    )


async def _arrive(client: Client, rate: float, count: int) -> list[RequestRecord]:
    arrivals_s = poisson_arrivals(rate=rate, seconds=1.1 * count / rate + 10)[:count]
    client.busy_s.clear()
    return await open_loop(client.send, arrivals_s=arrivals_s)


async def _recovery_s(client: Client, last_s: float, rested_s: float) -> float:
    """Return the time from the last arrival to the first request that was answered as fast as at rest.

    ``open_loop`` returns with the last answer, so the requests that still waited are part of the time.
    """
    while (sent_s := time.monotonic()) < last_s + HOPELESS_S:
        try:
            await client.send(0)
        except RefusedError:
            continue
        if time.monotonic() - sent_s <= RESTED * rested_s:
            break
    return sent_s - last_s


def _as_requests(
    records: Sequence[RequestRecord],
    busy_s: dict[int, float],
    typical_s: float,
    *,
    timeout_s: float = HOPELESS_S,
) -> list[Request]:
    """Return the requests for the ideal queue; a refused one counts with the typical time."""
    began_s = records[0].intended_s
    request = partial(Request, timeout_s=timeout_s)
    return [
        request(one.intended_s - began_s, busy_s.get(number, typical_s)) for number, one in enumerate(records)
    ]


def _latencies_ms(records: Sequence[RequestRecord]) -> list[float]:
    return [1e3 * one.latency_s for one in records if one.refusal is None]


def _p99(values: Sequence[float]) -> float | None:
    return percentile(values, 99)


if __name__ == "__main__":
    main()
