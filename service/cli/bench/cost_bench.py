"""``bisenet bench cost``: the latency and the processor time of one request, stage by stage."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import fmean, median
from typing import Annotated

import typer

from service.cli.bench.http_target import HttpTarget
from service.cli.bench.load_bench import make_load
from service.cli.bench.options import (
    DEFAULT_SIZE,
    AsJson,
    Device,
    Engine,
    Force,
    Model,
    Pictures,
    Precision,
    RegistryUrl,
    exit_on_refusal,
    refuse_busy,
    run_async,
    service_arguments,
)
from service.cli.bench.own_service import OwnService, ProcessorTimes, ServiceWatch, own_service
from service.core.memory import frozen_objects
from service.machine import Machine, this_machine

_WARM_UP = 10
_BAR_WIDTH = 64


@dataclass(frozen=True)
class CostReport:
    """The cost of one request with its context.

    Attributes:
        model: ``name@version`` that answered.
        engine: that ran the model.
        precision: of the engine.
        size: of the pictures.
        requests: number of measured requests.
        latency_ms: median latency at the client.
        stages_ms: latency by stage, as means over the requests: the stages that the service reports, and
            ``other``: the network, HTTP, and all that lies between the stages.
        processor_ms: processor time of a request by part: ``decode`` and ``encode``; the rest of the process
            of the service (``service``); its worker processes, with the network and the labels (``workers``).
        machine: that ran service and client.
    """

    model: str
    engine: str
    precision: str
    size: str
    requests: int
    latency_ms: float
    stages_ms: dict[str, float]
    processor_ms: dict[str, float]
    machine: Machine

    def __str__(self) -> str:
        """Return the context and a stacked bar for each of latency and processor time."""
        context = (
            f"{self.model} ({self.engine} {self.precision}), {self.size}, {self.requests} requests, "
            f"one in flight, p50 {self.latency_ms:.2f} ms"
        )
        bars = [*_stacked_bar("latency", self.stages_ms), *_stacked_bar("processor", self.processor_ms)]
        return "\n".join([context, self.machine.summary, *bars])


def cost(
    *,
    model: Model = None,
    registry: RegistryUrl = None,
    engine: Engine = None,
    device: Device = None,
    precision: Precision = None,
    size: Annotated[str, typer.Option(metavar="HxW", help="Of the pictures.")] = DEFAULT_SIZE,
    pictures: Pictures = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests to measure, one after the other.")] = 200,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure what one HTTP request costs, as stacked bars of its latency and of its processor time.

    A service is started on this machine, and answers one request at a time: JPEG in, palette PNG out.

    Examples:
        bisenet bench cost
        bisenet bench cost --precision int8 --requests 500 --pictures photos/ --json
    """
    load = make_load([size], pictures)
    refuse_busy(force=force)
    flags = {
        "--model": model,
        "--registry": registry,
        "--engine": engine,
        "--device": device,
        "--precision": precision,
    }
    with exit_on_refusal("the service"), own_service(service_arguments(flags)) as service:
        report = run_async(_measure(service, load.pictures, size, requests))
    typer.echo(json.dumps(dataclasses.asdict(report), indent=2) if as_json else str(report))


async def _measure(service: OwnService, pictures: Sequence[bytes], size: str, requests: int) -> CostReport:
    watch = ServiceWatch(service)
    async with HttpTarget(service.url) as target:
        for number in range(_WARM_UP):
            await target.segment(pictures[number % len(pictures)])
        latencies_ms, stages_ms = [], []
        with frozen_objects():  # a pause of this process would count as latency
            before = watch.processor_times()
            for number in range(requests):
                began_s = time.perf_counter()
                answer = await target.segment(pictures[number % len(pictures)])
                latencies_ms.append(1e3 * (time.perf_counter() - began_s))
                stages_ms.append(answer.stages_ms)
            spent = watch.processor_times() - before
        answering = (await target.models())[0]
    return CostReport(
        model=f"{answering['name']}@{answering['version']}",
        engine=answering["engine"],
        precision=answering["precision"],
        size=size,
        requests=requests,
        latency_ms=round(median(latencies_ms), 3),
        stages_ms=mean_stages(latencies_ms, stages_ms),
        processor_ms=processor_parts(spent, requests),
        machine=this_machine(),
    )


def mean_stages(latencies_ms: Sequence[float], stages_ms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each stage and of the rest of the latency (``other``), in milliseconds.

    Means, because they add up to the mean latency.

    Args:
        latencies_ms: of each request.
        stages_ms: of each request: equal keys, in the order of the stages.
    """
    means = {name: round(fmean(one[name] for one in stages_ms), 3) for name in stages_ms[0]}
    return means | {"other": round(fmean(latencies_ms) - sum(means.values()), 3)}


def processor_parts(spent: ProcessorTimes, requests: int) -> dict[str, float]:
    """Return the processor time of one request by part, in milliseconds."""
    parts_s = {
        "decode": spent.decode_s,
        "encode": spent.encode_s,
        "service": spent.overhead_s,
        "workers": spent.workers_s,
    }
    return {name: round(1e3 * part_s / requests, 3) for name, part_s in parts_s.items()}


def _stacked_bar(title: str, parts_ms: Mapping[str, float]) -> list[str]:
    """Return a bar in which each part is as many letters long as its share, and a legend."""
    shares_ms = [max(0.0, part_ms) for part_ms in parts_ms.values()]
    total_ms = sum(shares_ms) or 1.0
    ends = [round(_BAR_WIDTH * end_ms / total_ms) for end_ms in accumulate(shares_ms, initial=0.0)]
    letters = zip(parts_ms, pairwise(ends), strict=True)
    bar = "".join(name[0] * (end - begin) for name, (begin, end) in letters)
    legend = ", ".join(f"{name} {part_ms:.2f}" for name, part_ms in parts_ms.items())
    return [f"{title:<10}[{bar}] {sum(parts_ms.values()):.2f} ms", f"{'':<10}{legend}"]
