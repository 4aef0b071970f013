"""Latency of interactive requests beside an evaluation job: p95 with a job against p95 without one.

    python benchmarks/jobs.py --size 512x1024 --job-size 1024x2048

A service with the shipped model answers JPEG pictures over HTTP at half of what it can, in an open (Poisson)
loop. In each pair the load runs once without a job and once beside a job over made-up labelled pictures; the
order alternates. The ratio is that of the pair. The goal is a median of at most 1.25.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.command_line import make_parser, parse_if_idle
from model.pictures.preprocess import ImageSize
from service.cli.admin import AdminClient
from service.cli.bench.http_target import HttpTarget
from service.cli.bench.load import LoadFigures, closed_loop, figures_of, open_loop, poisson_arrivals
from service.cli.bench.own_service import own_service
from service.cli.bench.pictures import encoded_pictures, parse_image_size
from service.machine import this_machine

PAIRS = 5
CAPACITY_SECONDS = 10.0
IN_FLIGHT = 4
EVALUATIONS = "/admin/v1/evaluations"
MODEL = "camvid"


@dataclass(frozen=True)
class Pair:
    """The same load without and beside a job."""

    idle: LoadFigures
    beside_job: LoadFigures

    @property
    def ratio(self) -> float:
        """P95 beside a job / p95 without one."""
        assert self.beside_job.p95_ms is not None
        assert self.idle.p95_ms is not None
        return self.beside_job.p95_ms / self.idle.p95_ms


class Job:
    """An evaluation job of the service."""

    def __init__(self, admin: AdminClient, protocol: str) -> None:
        self._admin = admin
        self._body = {"model": MODEL, "dataset": "noise", "protocol": protocol}
        self._id = ""

    def begin(self) -> None:
        """Submit it; returns when it scores pictures."""
        self._id = self._admin.call("POST", EVALUATIONS, self._body)["id"]
        while self._show()["total"] is None:
            assert self._show()["error"] is None, self._show()["error"]

    def end(self) -> int:
        """Cancel it; returns the number of scored pictures."""
        job = self._show()
        assert job["state"] == "running", f"the job has ended: raise --job-images ({job})"
        self._admin.call("DELETE", f"{EVALUATIONS}/{self._id}")
        return int(job["done"])

    def _show(self) -> dict[str, object]:
        return self._admin.call("GET", f"{EVALUATIONS}/{self._id}")


def main() -> None:
    """Print one line a pair, and the median."""
    parser = make_parser(__doc__)
    parser.add_argument("--size", default="512x1024", metavar="HxW", help="of the requests' pictures")
    parser.add_argument("--job-size", default="1024x2048", metavar="HxW", help="of the job's pictures")
    parser.add_argument("--job-images", type=int, default=500)
    parser.add_argument("--protocol", default="ss")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each half of a pair")
    options = parse_if_idle(parser)
    pictures = encoded_pictures([parse_image_size(options.size)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_config(folder, parse_image_size(options.job_size), options.job_images)
        with own_service(["--config", str(config), "--jobs", "embedded"]) as service:
            job = Job(AdminClient(service.admin_url, service.admin_token_file), options.protocol)
            pairs, engine = asyncio.run(measure(service.url, pictures, job, seconds=options.seconds))
    ratios = [pair.ratio for pair in pairs]
    print(json.dumps({"machine": asdict(this_machine()), "engine": engine, "options": vars(options)}))
    print(f"median ratio of p95 {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


async def measure(
    url: str, pictures: Sequence[bytes], job: Job, *, seconds: float
) -> tuple[list[Pair], dict[str, object]]:
    """Run the pairs; returns them and a description of the engine."""
    async with HttpTarget(url) as target:

        async def send(number: int) -> None:
            await target.segment(pictures[number % len(pictures)])

        served = (await target.models())[0]
        capacity = figures_of(await closed_loop(send, in_flight=IN_FLIGHT, seconds=CAPACITY_SECONDS))
        print(f"capacity {capacity.pictures_per_s:.1f} pictures/s")
        pairs = []
        for number in range(PAIRS):
            arrivals_s = poisson_arrivals(rate=capacity.pictures_per_s / 2, seconds=seconds, seed=number)

            async def load(arrivals_s: Sequence[float] = arrivals_s) -> LoadFigures:
                return figures_of(await open_loop(send, arrivals_s=arrivals_s))

            async def beside_job(arrivals_s: Sequence[float] = arrivals_s) -> LoadFigures:
                await asyncio.to_thread(job.begin)
                figures = await load(arrivals_s)
                print(f"  the job scored {await asyncio.to_thread(job.end)} pictures meanwhile")
                return figures

            if number % 2:
                second, first = await beside_job(), await load()
            else:
                first, second = await load(), await beside_job()
            pair = Pair(first, second)
            print(f"p95 {first.p95_ms} ms idle, {second.p95_ms} ms beside a job: {pair.ratio:.2f}")
            pairs.append(pair)
    return pairs, {key: served[key] for key in ("engine", "device", "precision")}


def write_config(folder: Path, size: ImageSize, images: int) -> Path:
    """Write a configuration with a data set of made-up pictures, whose labels are noise."""
    jpegs = encoded_pictures([size])
    random = np.random.default_rng(0)
    blocks = Image.fromarray(random.integers(0, 11, (16, 32), np.uint8))
    blocks.resize((size.width, size.height), Image.Resampling.NEAREST).save(folder / "ids.png")
    for number, jpeg in enumerate(jpegs):
        (folder / f"{number}.jpg").write_bytes(jpeg)
    lines = [f"{number % len(jpegs)}.jpg,ids.png\n" for number in range(images)]
    (folder / "val.csv").write_text("".join(lines))
    preset = (Path(__file__).parents[1] / "model/presets/camvid.toml").read_text()
    (folder / "noise.toml").write_text(f'root = "{folder}"\n{preset}')
    config = folder / "bisenet.toml"
    config.write_text(
        f'[registry]\nurl = "{folder}/registry"\n[jobs]\nstate_folder = "{folder}/state"\n'
        f'[auth]\nadmin_token_file = "{folder}/admin-token"\nscrape_token_file = "{folder}/scrape-token"\n'
        f'[datasets]\nnoise = "noise.toml"\n'
    )
    return config


if __name__ == "__main__":
    main()
