"""Camera streams against the way through the pipeline without a server, in turns.

What a stream costs beside decoding, the network and encoding, and how evenly many cameras are served:

1. One stream of JPEG frames, as fast as it goes, against ``bench pipeline`` on the same frames: target 0.95.
2. Processor time of the serving process for each frame outside decoding and encoding: target 0.5 ms. Beside
   it the floor: what grpc.aio takes in a process that answers frames with made-up masks, at the same rate.
3. Eight cameras at 30 frames a second: ages, shares, the ledger, memory at begin, middle and end.

    python benchmarks/streams.py --rounds 5 --seconds 10 --minutes 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from service.cli.bench.pictures import encoded_pictures, parse_image_size
from service.cli.bench.stream_bench import process_cpu_s
from service.client.answers import Frame
from service.client.grpc_client import AsyncGrpcClient

ROOT = Path(__file__).parents[1]
ONE_STREAM = ("stream", "--cameras", "1", "--fps", "0", "--policy", "block")
PIPELINE = ("pipeline", "--in-flight", "4")
EIGHT_CAMERAS = ("stream", "--cameras", "8", "--fps", "30")
MASK_BYTES = 6300
"""Of the shipped model's mask of a made-up frame of 360x480, about."""


def main() -> None:
    """Parse the command line, measure in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="of stream and pipeline, in turns")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--minutes", type=float, default=1.0, help="of the eight cameras")
    parser.add_argument("--size", default="360x480", metavar="HxW", help="of the frames")
    parser.add_argument("--force", action="store_true", help="measure even though the machine is busy")
    arguments = parser.parse_args()
    shared = ["--size", arguments.size, *(["--force"] if arguments.force else [])]
    rounds = [one_round(shared, arguments.size, arguments.seconds) for _ in range(arguments.rounds)]
    ratios, costs_ms, floors_ms = zip(*rounds, strict=True)
    print(f"stream / pipeline: median {statistics.median(ratios):.3f} of {sorted(ratios)}")
    print(f"overhead: median {statistics.median(costs_ms):.3f} ms a frame")
    print(f"of grpc.aio alone: median {statistics.median(floors_ms):.3f} ms a frame")
    cameras = bench(*EIGHT_CAMERAS, *shared, "--seconds", str(60 * arguments.minutes))
    print(json.dumps(cameras, indent=2))


def one_round(shared: list[str], size: str, seconds: float) -> tuple[float, float, float]:
    """Return the stream's rate over the pipeline's, and in milliseconds a frame's overhead and the floor."""
    flags = [*shared, "--seconds", str(seconds)]
    stream, pipeline = bench(*ONE_STREAM, *flags), bench(*PIPELINE, *flags)
    ratio = stream["results_per_s"] / pipeline["figures"]["pictures_per_s"]
    return round(ratio, 3), stream["cost"]["overhead_ms"], floor_ms(size, stream["results_per_s"], seconds)


def floor_ms(size: str, rate: float, seconds: float) -> float:
    """Return what a process without a model takes for a frame, in milliseconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
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
