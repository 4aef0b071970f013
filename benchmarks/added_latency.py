"""Latency of a request outside decoding, the network and encoding: over HTTP, and in process, in turns.

    python benchmarks/added_latency.py --pictures CAMVID/val --precision int8

One request at a time, JPEG in and palette PNG out. The times of decoding, the network, labelling and
encoding, as the service reports them, are taken off each latency: the network alone differs from one process
to the next by more than is measured here. The latency that HTTP adds is the median of the differences of the
rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median

import uvloop

from benchmarks.command_line import add_model_and_pictures, make_parser, parse_if_idle
from service.cli.bench.http_target import HttpTarget
from service.cli.bench.load_bench import make_load
from service.cli.bench.own_service import own_service
from service.cli.local import local_settings, open_segmenter
from service.core.models.loaded_model import LoadedModel
from service.core.pictures import codec
from service.core.pictures.picture import EncodedPicture
from service.core.pictures.segmenter import Segmentation, Segmenter, StageTimings
from service.machine import this_machine

WARM_UP = 10
TIMEOUT_S = 60.0
WORK = ("decode", "infer", "post", "encode")


def main() -> None:
    """Measure in turns, and print the medians."""
    options = _options()
    pictures = make_load([options.size], options.pictures).pictures
    ways: dict[str, Callable[[], list[float]]] = {}
    with ExitStack() as stack:
        flags = ["--model", options.model, "--precision", options.precision]
        url = stack.enter_context(own_service(flags)).url
        ways["HTTP"] = lambda: uvloop.run(_over_http(url, pictures, options.requests))
        ways["in process"] = lambda: uvloop.run(_in_process(options, pictures))
        outside_ms: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, measure in ways.items():
                outside_ms[name].append(median(measure()))
    print(f"{options.model} {options.precision}, {options.size}; {this_machine().summary}")
    print(f"outside {', '.join(WORK)}; medians of rounds, and each round:")
    for name, values_ms in outside_ms.items():
        print(f"{name:<14}{median(values_ms):.2f} ms ({_shown(values_ms)})")
    added_ms = [http - alone for http, alone in zip(*outside_ms.values(), strict=True)]
    print(f"{'added':<14}{median(added_ms):.2f} ms ({_shown(added_ms)})")


def _options() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_model_and_pictures(parser)
    parser.add_argument("--requests", type=int, default=60, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=5)
    return parse_if_idle(parser)


async def _over_http(url: str, pictures: Sequence[bytes], count: int) -> list[float]:
    outside_ms = []
    async with HttpTarget(url) as target:
        for number in range(WARM_UP + count):
            began_s = time.monotonic()
            answer = await target.segment(pictures[number % len(pictures)])
            latency_ms = 1e3 * (time.monotonic() - began_s)
            outside_ms.append(latency_ms - sum(answer.stages_ms[name] for name in WORK))
    return outside_ms[WARM_UP:]


async def _in_process(options: argparse.Namespace, pictures: Sequence[bytes]) -> list[float]:
    settings = local_settings({"models": {"precision": options.precision, "serve": [options.model]}})
    with open_segmenter(settings) as (segmenter, model):
        outside_ms = [
            await _one(segmenter, model, pictures[number % len(pictures)])
            for number in range(WARM_UP + options.requests)
        ]
    return outside_ms[WARM_UP:]


async def _one(segmenter: Segmenter, model: LoadedModel, data: bytes) -> float:
    picture, began_s = EncodedPicture(data), time.monotonic()
    answering = segmenter.segment(model, picture, _encode, deadline_s=began_s + TIMEOUT_S)
    async with answering as (timings, encode_s):
        latency_s = time.monotonic() - began_s
    read_s = timings.decode_s + timings.preprocess_s
    return 1e3 * (latency_s - read_s - timings.infer_s - timings.post_s - encode_s)


def _encode(segmentation: Segmentation) -> tuple[StageTimings, float]:
    began_s = time.monotonic()
    codec.encode_palette_png(segmentation.label_map)
    return segmentation.timings, time.monotonic() - began_s


def _shown(values_ms: list[float]) -> str:
    return ", ".join(f"{value_ms:.2f}" for value_ms in sorted(values_ms))


if __name__ == "__main__":
    main()
