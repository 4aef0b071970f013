"""Pictures a second from JPEG to palette PNG: the service and its peers, in turns on one machine.

    pip install --no-deps --target runs/litserve litserve==0.2.19 pyzmq==27.3.0
    python benchmarks/serving_peers.py --pictures CAMVID/val --litserve runs/litserve --precision bf16
    python benchmarks/serving_peers.py --pictures CAMVID/val --litserve runs/litserve --precision int8

    benchmark_app   OpenVINO's own benchmark of the bare graph at its best number of streams: the baseline
    service         bisenet serve, pictures of one size, --in-flight at a time
    service mixed   the same with ten sizes that have, on average, as many pixels
    service one     the same with one request at a time
    in process      bisenet bench pipeline, one picture at a time: the difference to "service one" is the
                    price of the network protocol
    litserve        LitServe with the same graph, decoding and encoding (benchmarks/peers)
    eager           torch in f32 behind FastAPI (benchmarks/peers)

All servers run all the time. While one is measured, SIGSTOP holds the others, so that an idle server costs
no processor time.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.command_line import free_port, make_parser, parse_if_idle
from model.artifacts.artifact import Artifact
from model.artifacts.manifest import GRAPH_FILE
from service.cli.bench.engine_comparison import BenchmarkApp
from service.cli.bench.http_target import HttpTarget
from service.cli.bench.load import LoadFigures, RefusedError
from service.cli.bench.load_bench import Load, make_load
from service.core.device.engine import Precision
from service.machine import this_machine
from service.registry import open_registry
from service.settings import load_settings

HERE = Path(__file__).parent
SIZE = "512x1024"
MIXED = (
    *("512x1024", "1024x512", "448x1152", "576x896", "640x832"),
    *("704x736", "384x1376", "480x1088", "608x864", "544x960"),
)
BOUNDARY = "----------------picture"
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Round:
    """The figures of one system in one round.

    Attributes:
        pictures_per_s: answered.
        p50_ms: of the latency; None where the program does not report it.
    """

    pictures_per_s: float
    p50_ms: float | None = None


Measure = Callable[[float], Round]
"""Runs a system for about so many seconds."""


@dataclass(frozen=True)
class Server:
    """A server; it is stopped while other systems are measured.

    Attributes:
        process: leader of a process group.
        url: that it listens on.
        path: of the requests.
        headers: of the requests.
    """

    process: subprocess.Popen[bytes]
    url: str
    path: str = "/v1/segment"
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "image/jpeg"})

    def measure(self, load: Load) -> Round:
        """Send a load; a refused request is an error."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            figures = asyncio.run(self._run(load))
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)
        assert not figures.refused, figures.refused
        return Round(figures.pictures_per_s, figures.p50_ms)

    def wait_until_ready(self, picture: bytes) -> None:
        """Return when it has answered a picture."""
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                asyncio.run(self._send(picture))
            except RefusedError as error:
                if time.monotonic() > give_up_s or self.process.poll() is not None:
                    raise SystemExit(f"{self.process.args!r} does not answer: {error}") from error
                time.sleep(0.5)
            else:
                return

    async def _run(self, load: Load) -> LoadFigures:
        async with HttpTarget(self.url, headers=self.headers) as target:

            async def send(number: int) -> None:
                await target.segment(load.pictures[number % len(load.pictures)], self.path)

            return await load.run(send)

    async def _send(self, picture: bytes) -> None:
        async with HttpTarget(self.url, headers=self.headers) as target:
            await target.segment(picture, self.path)


def main() -> None:
    """Print a table of medians, and of ratios within the rounds."""
    options = _options()
    with ExitStack() as stack:
        systems = _systems(options, stack)
        rounds: dict[str, list[Round]] = {name: [] for name in systems}
        for _ in range(options.rounds):
            for name, measure in systems.items():
                rounds[name].append(measure(options.seconds))
    _print_table(rounds, options)


def _options() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="camvid", help="name, or name@version of the original")
    parser.add_argument("--registry", help="URL of the registry")
    parser.add_argument("--precision", choices=["f32", "bf16", "int8"], default="bf16")
    parser.add_argument("--pictures", type=Path, help="folder of pictures; made-up ones if left out")
    parser.add_argument("--in-flight", type=int, default=4, help="requests under way")
    parser.add_argument("--litserve", type=Path, help="folder that LitServe was installed to")
    parser.add_argument("--no-eager", action="store_true", help="leave torch behind FastAPI out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each system in each round")
    return parse_if_idle(parser)


def _systems(options: argparse.Namespace, stack: ExitStack) -> dict[str, Measure]:
    precision: Precision = options.precision
    version, artifact = _model(options, int8=precision == "int8")
    single, mixed = (make_load(sizes, options.pictures) for sizes in ([SIZE], MIXED))
    flags = ["--model", version, "--precision", precision]
    flags += ["--registry", options.registry] if options.registry else []
    systems = {
        f"benchmark_app {streams}": _benchmark_app(artifact, precision, streams)
        for streams in range(1, len(os.sched_getaffinity(0)) + 1)
    }
    service = stack.enter_context(_server(["-m", "service", *flags, "--http-port"], single))
    systems["service"] = _under_load(service, single, options.in_flight)
    systems["service mixed"] = _under_load(service, mixed, options.in_flight)
    systems["service one"] = _under_load(service, single, 1)
    systems["in process"] = _pipeline(flags, options.pictures)
    if options.litserve:
        systems["litserve"] = _litserve(artifact, options, single, stack)
    if not options.no_eager:
        _, original = _model(options, int8=False)
        command = [str(HERE / "peers" / "eager_server.py"), str(original.folder)]
        eager = stack.enter_context(_server(command, single))
        systems["eager"] = _under_load(eager, single, options.in_flight)
    return systems


def _model(options: argparse.Namespace, *, int8: bool) -> tuple[str, Artifact]:
    registry = open_registry(load_settings(flags={"registry": {"url": options.registry}}))
    version = registry.resolve(options.model, int8=int8)
    return str(version), registry.open(version)


def _under_load(server: Server, load: Load, in_flight: int) -> Measure:
    return lambda seconds: server.measure(dataclasses.replace(load, in_flight=in_flight, seconds=seconds))


def _benchmark_app(artifact: Artifact, precision: Precision, streams: int) -> Measure:
    height, width = map(int, SIZE.split("x"))
    program = BenchmarkApp(artifact.path(GRAPH_FILE), (1, height, width, 3), precision, streams)
    return lambda seconds: Round(1 / program.run_for(seconds)[0])


def _pipeline(flags: Sequence[str], pictures: Path | None) -> Measure:
    command = [sys.executable, "bisenet.py", "bench", "pipeline", *flags, "--size", SIZE, "--json", "--force"]
    command += ["--pictures", str(pictures)] if pictures else []

    def measure(seconds: float) -> Round:
        run = subprocess.run(
            [*command, "--seconds", str(seconds)], cwd=HERE.parent, check=True, stdout=subprocess.PIPE
        )
        figures = json.loads(run.stdout)["figures"]
        return Round(figures["pictures_per_s"], figures["p50_ms"])

    return measure


def _litserve(artifact: Artifact, options: argparse.Namespace, load: Load, stack: ExitStack) -> Measure:
    """Start LitServe, which reads a picture from a form and any other body as JSON."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="request"; filename="picture.jpg"\r\n\r\n'
    tail = f"\r\n--{BOUNDARY}--\r\n"
    forms = dataclasses.replace(
        load, pictures=[head.encode() + picture + tail.encode() for picture in load.pictures]
    )
    command = [str(HERE / "peers" / "litserve_server.py"), str(artifact.folder), options.precision]
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    server = _server(command, forms, path="/predict", headers=headers, packages=options.litserve)
    return _under_load(stack.enter_context(server), forms, options.in_flight)


@contextmanager
def _server(
    command: Sequence[str],
    load: Load,
    *,
    path: str = "/v1/segment",
    headers: Mapping[str, str] | None = None,
    packages: Path | None = None,
) -> Iterator[Server]:
    """Start a program on a free port, the last argument of its command; stop it after its first answer."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, *command, str(port)],
        cwd=HERE.parent,
        env=_environment(packages),
        start_new_session=True,
    ) as process:
        try:
            server = Server(
                process, f"http://127.0.0.1:{port}", path, headers or {"Content-Type": "image/jpeg"}
            )
            server.wait_until_ready(load.pictures[0])
            os.killpg(process.pid, signal.SIGSTOP)
            yield server
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _environment(packages: Path | None) -> dict[str, str]:
    paths = [str(HERE.parent), *([str(packages.resolve())] if packages else [])]
    alone = {"BISENET_SERVER__ADMIN_PORT": "0", "BISENET_SERVER__GRPC_PORT": "0", "BISENET_JOBS__MODE": "off"}
    return {**os.environ, **alone, "BISENET_LOG__LEVEL": "warning", "PYTHONPATH": os.pathsep.join(paths)}


def _print_table(rounds: Mapping[str, Sequence[Round]], options: argparse.Namespace) -> None:
    print(f"{options.model} {options.precision}, {SIZE}, {options.in_flight} in flight")
    print(this_machine().summary)
    baseline = max((n for n in rounds if n.startswith("benchmark_app")), key=lambda n: _rate(rounds[n]))
    print(f"{'':<18}{'pictures/s':>12}{'p50 ms':>10}{'x ' + baseline:>20}")
    for name, own in rounds.items():
        latencies_ms = [one.p50_ms for one in own if one.p50_ms is not None]
        p50 = f"{median(latencies_ms):.2f}" if latencies_ms else "-"
        print(f"{name:<18}{_rate(own):>12.2f}{p50:>10}{_ratio(rounds, name, baseline):>20.3f}")
    print(f"mixed by single size: {_ratio(rounds, 'service mixed', 'service'):.3f}")
    print(f"added by HTTP at one in flight: {_added_ms(rounds):.2f} ms of p50")


def _rate(rounds: Sequence[Round]) -> float:
    return median(one.pictures_per_s for one in rounds)


def _ratio(rounds: Mapping[str, Sequence[Round]], name: str, other: str) -> float:
    pairs = zip(rounds[name], rounds[other], strict=True)
    return median(a.pictures_per_s / b.pictures_per_s for a, b in pairs)


def _added_ms(rounds: Mapping[str, Sequence[Round]]) -> float:
    pairs = zip(rounds["service one"], rounds["in process"], strict=True)
    return median((a.p50_ms or 0.0) - (b.p50_ms or 0.0) for a, b in pairs)


if __name__ == "__main__":
    main()
