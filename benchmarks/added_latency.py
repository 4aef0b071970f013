"""What a request takes beside reading, the network and encoding: over HTTP, and in process, in turns.

    python benchmarks/added_latency.py --pictures CAMVID/val --precision int8

One request at a time, JPEG in and palette PNG out. Of each latency the time is taken off that the service
itself says decoding, the network, labelling and encoding took: from one process to the next the network alone
differs by more than what is measured here. What HTTP adds is the median of the differences of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import uvloop

from service.cli.bench.http_target import started_service
from service.cli.bench.load_bench import make_load
from service.cli.local import local_settings, open_segmenter
from service.core.models.loaded_model import LoadedModel
from service.core.pictures import codec
from service.core.pictures.picture import EncodedPicture
from service.core.pictures.segmenter import Segmentation, Segmenter, StageTimings
from service.machine import is_busy, this_machine

WARM_UP = 10
PATIENCE_S = 60.0
WORK = ("decode", "infer", "post", "encode")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TIMING = re.compile(rb"\r\nserver-timing: *([^\r]+)", re.IGNORECASE)
_STAGE = re.compile(r"(\w+);dur=([0-9.]+)")


def main() -> None:
    """Measure in turns, and print the medians."""
    options = _options()
    if is_busy() and not options.force:
        raise SystemExit("the machine is busy with other work; wait, or measure with --force")
    pictures = make_load([options.size], options.pictures).pictures
    ways: dict[str, Callable[[], list[float]]] = {}
    with ExitStack() as stack:
        flags = ["--model", options.model, "--precision", options.precision]
        url = stack.enter_context(started_service(flags))
        ways["HTTP"] = lambda: uvloop.run(_over_http(url, pictures, options.requests))
        ways["in process"] = lambda: uvloop.run(_in_process(options, pictures))
        outside_ms: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, measure in ways.items():
                outside_ms[name].append(median(measure()))
    machine = this_machine()
    print(f"{options.model} {options.precision}, {options.size}; {machine.processor}, {machine.cores} cores")
    print(f"beside {', '.join(WORK)}; medians of rounds, and each round:")
    for name, values_ms in outside_ms.items():
        print(f"{name:<14}{median(values_ms):.2f} ms ({_shown(values_ms)})")
    added_ms = [http - alone for http, alone in zip(*outside_ms.values(), strict=True)]
    print(f"{'added':<14}{median(added_ms):.2f} ms ({_shown(added_ms)})")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="camvid@2", help="name@version")
    parser.add_argument("--precision", default="int8", help="of that version")
    parser.add_argument("--size", default="512x1024", metavar="HxW", help="of the pictures")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures; else made-up ones")
    parser.add_argument("--requests", type=int, default=60, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--force", action="store_true", help="measure even though the machine is busy")
    return parser.parse_args()


async def _over_http(url: str, pictures: list[bytes], count: int) -> list[float]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
    outside_ms = []
    for number in range(WARM_UP + count):
        picture = pictures[number % len(pictures)]
        head = f"POST /v1/segment HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: image/jpeg\r\n"
        began_s = time.monotonic()
        writer.writelines([f"{head}Content-Length: {len(picture)}\r\n\r\n".encode(), picture])
        answer = await reader.readuntil(b"\r\n\r\n")
        length, timing = _LENGTH.search(answer), _TIMING.search(answer)
        assert length is not None, answer
        assert timing is not None, answer
        await reader.readexactly(int(length[1]))
        latency_ms = 1e3 * (time.monotonic() - began_s)
        stages_ms = {name: float(ms) for name, ms in _STAGE.findall(timing[1].decode())}
        outside_ms.append(latency_ms - sum(stages_ms[name] for name in WORK))
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return outside_ms[WARM_UP:]


async def _in_process(options: argparse.Namespace, pictures: list[bytes]) -> list[float]:
    settings = local_settings({"models": {"precision": options.precision, "serve": [options.model]}})
    with open_segmenter(settings) as (segmenter, model):
        outside_ms = [
            await _one(segmenter, model, pictures[number % len(pictures)])
            for number in range(WARM_UP + options.requests)
        ]
    return outside_ms[WARM_UP:]


async def _one(segmenter: Segmenter, model: LoadedModel, data: bytes) -> float:
    picture, began_s = EncodedPicture(data), time.monotonic()
    answering = segmenter.segment(model, picture, _encode, deadline_s=began_s + PATIENCE_S)
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
    sys.exit(main())
