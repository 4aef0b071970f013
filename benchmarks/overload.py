"""A service under more load than suits it, over HTTP: its waiting, its deadlines, its refusals.

    python benchmarks/overload.py waiting                  # p99 beside an ideal queue, at 50, 80 and 95 %
    python benchmarks/overload.py deadlines                # answered in time beside ideal shedding
    python benchmarks/overload.py flood                    # goodput, refusals, recovery, memory: 2x, 5x, 10x
    python benchmarks/overload.py flood --engine openvino --times 2 --deadline-ms 2000

Requests come at random times (Poisson) whatever is answered, and latency counts from the moment at which a
request was meant to be sent. ``slow_engine:20`` takes 20 ms a picture and no processor. A load of 100 % is
what the device can do: one picture in the median time that the service says a picture keeps it busy.

The ideal is replayed on the same arrivals and the busy times of the same answers, without any cost of HTTP,
pictures or masks; it knows how long everything takes and turns away at once what would be late.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import uvloop
from simulation import Request, ideal_fifo

from service.cli.bench.http_target import HttpTarget, RunningService, running_service
from service.cli.bench.load import RefusedError, RequestRecord, closed_loop, open_loop, poisson_arrivals
from service.cli.bench.load_bench import make_load
from service.cli.bench.stream_bench import ServiceWatch
from service.core.memory import frozen_objects
from service.machine import is_busy, this_machine

HERE = Path(__file__).parent
PATH = "/v1/segment?mask=none"
SATURATED = 8
RESTED = 2.0
"""A service has recovered when an answer takes no more than so many times what it took before."""

HOPELESS_S = 30.0


class Client:
    """Sends pictures in turn, and keeps how long each kept the device busy.

    Args:
        target: the service.
        pictures: JPEG files.
    """

    def __init__(self, target: HttpTarget, pictures: Sequence[bytes]) -> None:
        self._target = target
        self._pictures = pictures
        self.busy_s: dict[int, float] = {}

    async def send(self, number: int) -> None:
        """Have a picture answered."""
        picture = self._pictures[number % len(self._pictures)]
        timings_ms = json.loads(await self._target.segment(picture, PATH))["timings_ms"]
        self.busy_s[number] = 1e-3 * (timings_ms["infer"] + timings_ms["post"])

    async def typical_busy_s(self) -> float:
        """Return the median over pictures that are sent one after the other."""
        await closed_loop(self.send, in_flight=1, seconds=3.0)
        return median(self.busy_s.values())

    async def peak(self, seconds: float) -> float:
        """Return how many a second are answered when some always wait."""
        shots = await closed_loop(self.send, in_flight=SATURATED, seconds=seconds)
        assert all(shot.refusal is None for shot in shots), "refused without overload"
        return len(shots) / (max(shot.ended_s for shot in shots) - min(shot.intended_s for shot in shots))

    async def rested_s(self) -> float:
        """Return the median latency of pictures that are sent one after the other."""
        shots = await closed_loop(self.send, in_flight=1, seconds=2.0)
        return median(shot.ended_s - shot.intended_s for shot in shots)


@dataclass(frozen=True)
class Waiting:
    """One load with nothing refused, beside an ideal queue."""

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
        times: the peak.
        peak_per_s: answers with some waiting all the time, before.
        goodput_per_s: answers within the deadline.
        share: goodput of the peak.
        accepted_p99_ms: latency of what was answered.
        refused: by code.
        refusal_p99_ms: from the intended time of sending to the refusal at once (429).
        recovery_s: after the last arrival, until a request was answered as fast as before.
        rss_mb: of all processes of the service, before and at the end.
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
    if is_busy() and not options.busy:
        raise SystemExit("the machine is busy with other work; wait, or measure with --busy")
    load = make_load([options.size], options.pictures)
    with (
        _service(options) as service,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        frozen_objects(),  # pauses of this program would be charged to the service
    ):
        measure = {"waiting": waiting, "deadlines": deadlines, "flood": flood}[options.what]
        results = runner.run(measure(options, service, load.pictures))
    machine = this_machine()
    context = (
        f"{options.engine} {options.precision}, {options.size}; {machine.processor}, {machine.cores} cores"
    )
    if options.json:
        print(json.dumps({"context": context, "results": [asdict(result) for result in results]}))
        return
    print(context)
    for result in results:
        print(result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    parser.add_argument("--busy", action="store_true", help="run although the machine is busy")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser.parse_args()


@contextmanager
def _service(options: argparse.Namespace) -> Iterator[RunningService]:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])  # the service finds slow_engine
    flags = ["--engine", options.engine, "--precision", options.precision, "--model", options.model]
    with running_service(flags) as service:
        yield service


def _target(service: RunningService, *, deadline_s: float | None = None) -> HttpTarget:
    headers = {"Content-Type": "image/jpeg", "Accept": "application/json"}
    if deadline_s is not None:
        headers["X-Request-Timeout-Ms"] = str(round(1e3 * deadline_s))
    return HttpTarget(service.url, headers=headers)


async def waiting(
    options: argparse.Namespace, service: RunningService, pictures: Sequence[bytes]
) -> list[Waiting]:
    """Measure how long requests wait when nothing is refused."""
    results = []
    for share in options.load or [0.5, 0.8, 0.95]:
        async with _target(service) as target:
            client = Client(target, pictures)
            typical_s = await client.typical_busy_s()
            shots = await _arrive(client, share / typical_s, options.arrivals)
        asked = _as_requests(shots, client.busy_s, typical_s)
        latencies_ms = [1e3 * (shot.ended_s - shot.intended_s) for shot in shots if shot.refusal is None]
        p99_ms, ideal_ms = _p99(latencies_ms), _p99([1e3 * latency_s for latency_s in ideal_fifo(asked)])
        figures = (share, len(shots), _refusals(shots), round(median(latencies_ms), 2), p99_ms, ideal_ms)
        results.append(Waiting(*figures, round(p99_ms / ideal_ms, 3)))
    return results


async def deadlines(
    options: argparse.Namespace, service: RunningService, pictures: Sequence[bytes]
) -> list[Deadlines]:
    """Measure what is answered in time, with a deadline of five service times."""
    results = []
    for share in options.load or [0.95, 1.2]:
        async with _target(service) as target:
            typical_s = await Client(target, pictures).typical_busy_s()
        patience_s = 5 * typical_s
        async with _target(service, deadline_s=patience_s) as target:
            client = Client(target, pictures)
            shots = await _arrive(client, share / typical_s, options.arrivals)
        asked = _as_requests(shots, client.busy_s, typical_s, patience_s=patience_s)
        answered = [shot for shot in shots if shot.refusal is None]
        received = sum(shot.ended_s - shot.intended_s <= patience_s for shot in answered)
        ideal = len(ideal_fifo(asked))
        ratios = round(len(answered) / ideal, 3), round(received / ideal, 3)
        results.append(Deadlines(share, len(shots), len(answered), received, ideal, *ratios))
    return results


async def flood(
    options: argparse.Namespace, service: RunningService, pictures: Sequence[bytes]
) -> list[Flood]:
    """Measure what becomes of the service when far more is asked than it can answer."""
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
            shots = await open_loop(
                client.send, arrivals_s=poisson_arrivals(rate=times * peak, seconds=seconds)
            )
            recovery_s = await _recovered_s(client, max(s.intended_s for s in shots), rested_s)
            results.append(
                _flood(
                    shots,
                    times=times,
                    peak=peak,
                    deadline_s=deadline_s,
                    recovery_s=recovery_s,
                    rss_mb=(before_mb, watch.rss_mb()),
                )
            )
    return results


def _flood(
    shots: Sequence[RequestRecord],
    *,
    times: float,
    peak: float,
    deadline_s: float,
    recovery_s: float,
    rss_mb: tuple[float, float],
) -> Flood:
    began_s, last_s = shots[0].intended_s, shots[-1].intended_s
    answered = [shot for shot in shots if shot.refusal is None]
    good = [s for s in answered if s.ended_s - s.intended_s <= deadline_s and s.ended_s <= last_s]
    refusals_ms = [1e3 * (s.ended_s - s.intended_s) for s in shots if s.refusal == "queue_full"]
    goodput = len(good) / (last_s - began_s)
    return Flood(
        times=times,
        peak_per_s=round(peak, 2),
        goodput_per_s=round(goodput, 2),
        share=round(goodput / peak, 3),
        accepted_p99_ms=_p99([1e3 * (s.ended_s - s.intended_s) for s in answered]) if answered else None,
        refused=_refusals(shots),
        refusal_p99_ms=_p99(refusals_ms) if refusals_ms else None,
        recovery_s=round(recovery_s, 3),
        rss_mb=(round(rss_mb[0], 1), round(rss_mb[1], 1)),
    )


async def _arrive(client: Client, rate: float, count: int) -> list[RequestRecord]:
    arrivals_s = poisson_arrivals(rate=rate, seconds=1.1 * count / rate + 10)[:count]
    client.busy_s.clear()
    return await open_loop(client.send, arrivals_s=arrivals_s)


async def _recovered_s(client: Client, last_s: float, rested_s: float) -> float:
    """Return how long after the last arrival a request that was sent then was answered as if at rest.

    ``open_loop`` returns with the last answer, so what was still waiting counts.
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
    shots: Sequence[RequestRecord],
    busy_s: dict[int, float],
    typical_s: float,
    *,
    patience_s: float = HOPELESS_S,
) -> list[Request]:
    """Return what was asked, for the ideal queue; what was refused would have taken as long as most."""
    began_s = shots[0].intended_s
    request = partial(Request, patience_s=patience_s)
    return [
        request(shot.intended_s - began_s, busy_s.get(number, typical_s)) for number, shot in enumerate(shots)
    ]


def _refusals(shots: Sequence[RequestRecord]) -> dict[str, int]:
    return dict(Counter(shot.refusal for shot in shots if shot.refusal is not None))


def _p99(values: Sequence[float]) -> float:
    return round(float(np.percentile(values, 99)), 2)


if __name__ == "__main__":
    main()
