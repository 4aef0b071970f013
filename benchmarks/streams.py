"""Camera streams against the pipeline without a server, in turns: their cost, and their shares of a device.

1. One stream of JPEG frames at its highest rate, against ``bench pipeline`` on the same frames: target 0.95.
2. Processor time of the serving process for each frame outside decoding and encoding: target 0.5 ms. The
   lower limit is the time of grpc.aio in a process that answers frames with made-up masks, at the same rate.
3. Eight cameras at 30 frames a second: ages, shares, the ledger, memory at begin, middle and end.

    python benchmarks/streams.py --rounds 5 --seconds 10 --minutes 10
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.command_line import free_port, make_parser, parse_if_idle
from service.cli.bench.own_service import process_cpu_s
from service.cli.bench.pictures import encoded_pictures, parse_image_size
from service.client.answers import Frame
from service.client.grpc_client import AsyncGrpcClient

ROOT = Path(__file__).parents[1]
ONE_STREAM = ("stream", "--cameras", "1", "--fps", "0", "--policy", "block")
PIPELINE = ("pipeline", "--in-flight", "4")
EIGHT_CAMERAS = ("stream", "--cameras", "8", "--fps", "30")
MASK_BYTES = 6300
"""About as many as a mask of the shipped model for a made-up frame of 360x480 has."""


def main() -> None:
    """Measure in turns and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of stream and pipeline, in turns")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--minutes", type=float, default=1.0, help="of the eight cameras")
    parser.add_argument("--size", default="360x480", metavar="HxW", help="of the frames")
    options = parse_if_idle(parser)
    shared = ["--size", options.size, "--force"]
    rounds = [one_round(shared, options.size, options.seconds) for _ in range(options.rounds)]
    ratios, costs_ms, floors_ms = zip(*rounds, strict=True)
    print(f"stream / pipeline: median {statistics.median(ratios):.3f} of {sorted(ratios)}")
    print(f"overhead: median {statistics.median(costs_ms):.3f} ms a frame")
    print(f"of grpc.aio alone: median {statistics.median(floors_ms):.3f} ms a frame")
    cameras = bench(*EIGHT_CAMERAS, *shared, "--seconds", str(60 * options.minutes))
    print(json.dumps(cameras, indent=2))


def one_round(shared: list[str], size: str, seconds: float) -> tuple[float, float, float]:
    """Return rate of the stream / rate of the pipeline, and overhead and its limit in ms for each frame."""
    flags = [*shared, "--seconds", str(seconds)]
    stream, pipeline = bench(*ONE_STREAM, *flags), bench(*PIPELINE, *flags)
    ratio = stream["results_per_s"] / pipeline["figures"]["pictures_per_s"]
    return round(ratio, 3), stream["cost"]["overhead_ms"], floor_ms(size, stream["results_per_s"], seconds)


def floor_ms(size: str, rate: float, seconds: float) -> float:
    """Return the processor time for a frame in a process without a model, in milliseconds."""
    port = free_port()
    command = [sys.executable, str(ROOT / "benchmarks/peers/echo_server.py"), str(port), str(MASK_BYTES)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            return uvloop.run(_echoed_ms(process.pid, f"127.0.0.1:{port}", size, rate, seconds))
        finally:
            process.kill()


async def _echoed_ms(pid: int, address: str, size: str, rate: float, seconds: float) -> float:
    frames = encoded_pictures([parse_image_size(size)], None)
    count = round(rate * seconds)
    async with AsyncGrpcClient(address) as client, client.stream(policy="block") as call:
        await call.next_event()
        cpu_s, began_s = process_cpu_s(pid), time.monotonic()
        for seq in range(1, count + 1):
            await asyncio.sleep(began_s + seq / rate - time.monotonic())
            await call.send(Frame(seq, frames[seq % len(frames)]))
            await call.next_event()
        return 1e3 * (process_cpu_s(pid) - cpu_s) / count


def bench(*arguments: str) -> dict[str, Any]:
    """Run ``bisenet bench`` and return its report."""
    command = [sys.executable, str(ROOT / "bisenet.py"), "bench", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


if __name__ == "__main__":
    main()
