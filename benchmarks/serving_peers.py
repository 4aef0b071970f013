"""Pictures a second from JPEG to palette PNG: the service and its peers, taking turns on one machine.

    pip install --no-deps --target runs/litserve litserve==0.2.19 pyzmq==27.3.0
    python benchmarks/serving_peers.py --pictures CAMVID/val --litserve runs/litserve --precision bf16
    python benchmarks/serving_peers.py --pictures CAMVID/val --litserve runs/litserve --precision int8

    benchmark_app   OpenVINO's own benchmark of the bare graph at its best number of streams: the baseline
    service         bisenet serve, pictures of one size, --in-flight at a time
    service mixed   the same with ten sizes that have, on average, as many pixels
    service one     the same with one request at a time
    in process      bisenet bench pipeline, one picture at a time: what "service one" adds to it is the
                    price of the network protocol
    litserve        LitServe with the same graph, decoding and encoding (benchmarks/peers)
    eager           torch in f32 behind FastAPI (benchmarks/peers)

All servers run all the time; those whose turn it is not are stopped by SIGSTOP, so that what they do with
nothing to do costs nobody anything.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import GRAPH_FILE
from service.cli.bench.engine_race import BenchmarkAppEntry
from service.cli.bench.http_target import HttpTarget
from service.cli.bench.load import LoadFigures, RefusedError
from service.cli.bench.load_bench import Load, make_load
from service.core.device.engine import Precision
from service.machine import is_busy, this_machine
from service.registry import open_registry
from service.settings import load_settings

HERE = Path(__file__).parent
SIZE = "512x1024"
MIXED = (
    *("512x1024", "1024x512", "448x1152", "576x896", "640x832"),
    *("704x736", "384x1376", "480x1088", "608x864", "544x960"),
)
BOUNDARY = "----------------picture"
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Turn:
    """What a contender did in one round.

    Attributes:
        pictures_per_s: answered.
        p50_ms: of the latency; None where the program does not tell.
    """

    pictures_per_s: float
    p50_ms: float | None = None


Play = Callable[[float], Turn]
"""Seconds -> what was done in about so many."""


@dataclass(frozen=True)
class Server:
    """A program that answers pictures; it stands still unless it is its turn.

    Attributes:
        process: leader of a group of its own.
        url: where it listens.
        path: that pictures are posted to.
        headers: of the requests.
    """

    process: subprocess.Popen[bytes]
    url: str
    path: str = "/v1/segment"
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "image/jpeg"})

    def play(self, load: Load) -> Turn:
        """Have pictures answered; refusals are an error."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            figures = asyncio.run(self._measured(load))
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)
        assert not figures.refused, figures.refused
        return Turn(figures.pictures_per_s, figures.p50_ms)

    def wait_until_ready(self, picture: bytes) -> None:
        """Return when it has answered a picture."""
        given_up_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                asyncio.run(self._answered(picture))
            except RefusedError as error:
                if time.monotonic() > given_up_s or self.process.poll() is not None:
                    raise SystemExit(f"{self.process.args!r} does not answer: {error}") from error
                time.sleep(0.5)
            else:
                return

    async def _measured(self, load: Load) -> LoadFigures:
        async with HttpTarget(self.url, headers=self.headers) as target:

            async def send(number: int) -> None:
                await target.segment(load.pictures[number % len(load.pictures)], self.path)

            return await load.run(send)

    async def _answered(self, picture: bytes) -> None:
        async with HttpTarget(self.url, headers=self.headers) as target:
            await target.segment(picture, self.path)


def main() -> None:
    """Print a table of medians, and of ratios within the rounds."""
    options = _options()
    if is_busy() and not options.busy:
        raise SystemExit("the machine is busy with other work; wait, or measure with --busy")
    with ExitStack() as stack:
        players = _players(options, stack)
        turns: dict[str, list[Turn]] = {name: [] for name in players}
        for _ in range(options.rounds):
            for name, play in players.items():
                turns[name].append(play(options.seconds))
    _print_table(turns, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="camvid", help="name, or name@version of the original")
    parser.add_argument("--registry", help="URL of the registry")
    parser.add_argument("--precision", choices=["f32", "bf16", "int8"], default="bf16")
    parser.add_argument("--pictures", type=Path, help="folder of pictures; made-up ones if left out")
    parser.add_argument("--in-flight", type=int, default=4, help="requests under way")
    parser.add_argument("--litserve", type=Path, help="folder that LitServe was installed to")
    parser.add_argument("--no-eager", action="store_true", help="leave torch behind FastAPI out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each contender in each round")
    parser.add_argument("--busy", action="store_true", help="run although the machine is busy")
    return parser.parse_args()


def _players(options: argparse.Namespace, stack: ExitStack) -> dict[str, Play]:
    precision: Precision = options.precision
    version, artifact = _model(options, int8=precision == "int8")
    single, mixed = (make_load(sizes, options.pictures) for sizes in ([SIZE], MIXED))
    flags = ["--model", version, "--precision", precision]
    flags += ["--registry", options.registry] if options.registry else []
    players = {
        f"benchmark_app {streams}": _benchmark_app(artifact, precision, streams)
        for streams in range(1, len(os.sched_getaffinity(0)) + 1)
    }
    service = stack.enter_context(_server(["-m", "service", *flags, "--http-port"], single))
    players["service"] = _player(service, single, options.in_flight)
    players["service mixed"] = _player(service, mixed, options.in_flight)
    players["service one"] = _player(service, single, 1)
    players["in process"] = _pipeline(flags, options.pictures)
    if options.litserve:
        players["litserve"] = _litserve(artifact, options, single, stack)
    if not options.no_eager:
        _, original = _model(options, int8=False)
        command = [str(HERE / "peers" / "eager_server.py"), str(original.folder)]
        players["eager"] = _player(stack.enter_context(_server(command, single)), single, options.in_flight)
    return players


def _model(options: argparse.Namespace, *, int8: bool) -> tuple[str, Artifact]:
    registry = open_registry(load_settings(flags={"registry": {"url": options.registry}}))
    version = registry.resolve(options.model, int8=int8)
    return str(version), registry.open(version)


def _player(server: Server, load: Load, in_flight: int) -> Play:
    return lambda seconds: server.play(dataclasses.replace(load, in_flight=in_flight, seconds=seconds))


def _benchmark_app(artifact: Artifact, precision: Precision, streams: int) -> Play:
    height, width = map(int, SIZE.split("x"))
    program = BenchmarkAppEntry(artifact.path(GRAPH_FILE), (1, height, width, 3), precision, streams)
    return lambda seconds: Turn(1 / program.play(seconds)[0])


def _pipeline(flags: Sequence[str], pictures: Path | None) -> Play:
    command = [sys.executable, "bisenet.py", "bench", "pipeline", *flags, "--size", SIZE, "--json", "--force"]
    command += ["--pictures", str(pictures)] if pictures else []

    def play(seconds: float) -> Turn:
        run = subprocess.run(
            [*command, "--seconds", str(seconds)], cwd=HERE.parent, check=True, stdout=subprocess.PIPE
        )
        figures = json.loads(run.stdout)["figures"]
        return Turn(figures["pictures_per_s"], figures["p50_ms"])

    return play


def _litserve(artifact: Artifact, options: argparse.Namespace, load: Load, stack: ExitStack) -> Play:
    """LitServe reads a picture from a form: whatever else is posted is JSON to it."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="request"; filename="picture.jpg"\r\n\r\n'
    tail = f"\r\n--{BOUNDARY}--\r\n"
    forms = dataclasses.replace(
        load, pictures=[head.encode() + picture + tail.encode() for picture in load.pictures]
    )
    command = [str(HERE / "peers" / "litserve_server.py"), str(artifact.folder), options.precision]
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    server = _server(command, forms, path="/predict", headers=headers, packages=options.litserve)
    return _player(stack.enter_context(server), forms, options.in_flight)


@contextmanager
def _server(
    command: Sequence[str],
    load: Load,
    *,
    path: str = "/v1/segment",
    headers: Mapping[str, str] | None = None,
    packages: Path | None = None,
) -> Iterator[Server]:
    """Start a program on a free port, the last word of its command, and stop it when it has answered once."""
    port = _free_port()
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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _environment(packages: Path | None) -> dict[str, str]:
    paths = [str(HERE.parent), *([str(packages.resolve())] if packages else [])]
    alone = {"BISENET_SERVER__ADMIN_PORT": "0", "BISENET_SERVER__GRPC_PORT": "0", "BISENET_JOBS__MODE": "off"}
    return {**os.environ, **alone, "BISENET_LOG__LEVEL": "warning", "PYTHONPATH": os.pathsep.join(paths)}


def _print_table(turns: Mapping[str, Sequence[Turn]], options: argparse.Namespace) -> None:
    machine = this_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    print(f"{options.model} {options.precision}, {SIZE}, {options.in_flight} in flight")
    print(f"{machine.processor}, {machine.cores} cores; {versions}")
    baseline = max((n for n in turns if n.startswith("benchmark_app")), key=lambda n: _rate(turns[n]))
    print(f"{'':<18}{'pictures/s':>12}{'p50 ms':>10}{'x ' + baseline:>20}")
    for name, rounds in turns.items():
        latencies_ms = [turn.p50_ms for turn in rounds if turn.p50_ms is not None]
        p50 = f"{median(latencies_ms):.2f}" if latencies_ms else "-"
        print(f"{name:<18}{_rate(rounds):>12.2f}{p50:>10}{_ratio(turns, name, baseline):>20.3f}")
    print(f"mixed by single size: {_ratio(turns, 'service mixed', 'service'):.3f}")
    print(f"added by HTTP at one in flight: {_added_ms(turns):.2f} ms of p50")


def _rate(rounds: Sequence[Turn]) -> float:
    return median(turn.pictures_per_s for turn in rounds)


def _ratio(turns: Mapping[str, Sequence[Turn]], name: str, other: str) -> float:
    pairs = zip(turns[name], turns[other], strict=True)
    return median(a.pictures_per_s / b.pictures_per_s for a, b in pairs)


def _added_ms(turns: Mapping[str, Sequence[Turn]]) -> float:
    pairs = zip(turns["service one"], turns["in process"], strict=True)
    return median((a.p50_ms or 0.0) - (b.p50_ms or 0.0) for a, b in pairs)


if __name__ == "__main__":
    main()
