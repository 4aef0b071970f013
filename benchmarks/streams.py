"""Camera streams against the way through the pipeline without a server, in turns.

What a stream costs beside decoding, the network and encoding, and how evenly many cameras are served:

1. One stream of JPEG frames, as fast as it goes, against ``bench pipeline`` on the same frames: target 0.95.
2. Processor time of the serving process for each frame outside decoding and encoding: target 0.5 ms.
3. Eight cameras at 30 frames a second: ages, shares, the ledger, memory at begin, middle and end.

    python benchmarks/streams.py --rounds 5 --seconds 10 --minutes 10
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ONE_STREAM = ("stream", "--cameras", "1", "--fps", "0", "--policy", "block")
PIPELINE = ("pipeline", "--in-flight", "4")
EIGHT_CAMERAS = ("stream", "--cameras", "8", "--fps", "30")


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
    rounds = [one_round([*shared, "--seconds", str(arguments.seconds)]) for _ in range(arguments.rounds)]
    ratios = [ratio for ratio, _ in rounds]
    print(f"stream / pipeline: median {statistics.median(ratios):.3f} of {sorted(ratios)}")
    print(f"overhead: median {statistics.median(cost for _, cost in rounds):.3f} ms a frame")
    cameras = bench(*EIGHT_CAMERAS, *shared, "--seconds", str(60 * arguments.minutes))
    print(json.dumps(cameras, indent=2))


def one_round(flags: list[str]) -> tuple[float, float]:
    """Return the stream's rate over the pipeline's, and the overhead of a frame in milliseconds."""
    stream, pipeline = bench(*ONE_STREAM, *flags), bench(*PIPELINE, *flags)
    ratio = stream["results_per_s"] / pipeline["figures"]["pictures_per_s"]
    return round(ratio, 3), stream["cost"]["overhead_ms"]


def bench(*arguments: str) -> dict[str, Any]:
    """Run ``bisenet bench`` and return its report."""
    command = [sys.executable, str(ROOT / "bisenet.py"), "bench", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


if __name__ == "__main__":
    main()
