"""How many functions a picture passes on its way through the service and its worker process.

    python benchmarks/path_of_a_picture.py [--root OTHER_TREE] [--show]

Starts a service, warms it up, and records the calls of one picture over HTTP at a time
(``threading.setprofile``), in the service and in the worker together. Functions that run without a picture
are taken off; lambdas and comprehensions do not count. The median of the pictures is printed:

functions      distinct functions of ``model`` and ``service``, and the files that hold them
straight line  those of them that stand on the stack when the picture goes to another thread or process, when
               a library works on its pixels, and when its answer is sent
hand-offs      how often the picture goes from one thread to another; threads that share the rows of one
               picture, the thread that writes the log and work in the background are left out
look-ups       how often a model is looked up by its name

``--show`` prints the way itself: each function where the picture passes it first, and each hand-off.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from model.pictures.preprocess import ImageSize
from service.cli.bench.pictures import encoded_pictures

WARM_UP = 20
IDLE_S = 12.0  # the slowest poller runs every 5 s
SETTLE_S = 0.5
START_S = 240.0
SIZE = ImageSize(512, 1024)
SETTINGS = {
    "BISENET_SERVER__ADMIN_PORT": "0",
    "BISENET_SERVER__GRPC_PORT": "0",
    "BISENET_SERVER__LAME_DUCK_S": "0",
    "BISENET_JOBS__MODE": "off",
}
HELPERS = ("model/decoding/kernels.py:in_bands", "service/log_stream.py:")
BACKGROUND = ("service/core/models/alias_follower.py:",)
LOOK_UP = "service/core/models/model_host.py:ModelHost.find"


@dataclass(frozen=True)
class Event:
    """A line of the recorder."""

    at_ns: int
    thread: tuple[str, str]
    kind: str
    stack: tuple[str, ...]


@dataclass(frozen=True)
class Way:
    """What one picture passed."""

    functions: frozenset[str]
    line: frozenset[str]
    hand_offs: int
    look_ups: int

    @property
    def files(self) -> int:
        """How many files hold the functions."""
        return len({name.partition(":")[0] for name in self.functions})


def main() -> None:
    """Measure and print."""
    options = _options()
    picture = encoded_pictures([SIZE])[0]
    with tempfile.TemporaryDirectory() as folder, _service(options.root, Path(folder)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(WARM_UP):
            _ask(connection, picture)
        (Path(folder) / "armed").touch()
        time.sleep(SETTLE_S)
        idle = (time.monotonic_ns(), time.sleep(IDLE_S), time.monotonic_ns())[::2]
        windows = [_window(connection, picture) for _ in range(options.pictures)]
        events = _events(Path(folder))
    at_rest = {event.stack[0] for event in _within(events, idle) if event.kind == "call"}
    ways = [_way(_within(events, window), at_rest) for window in windows]
    for title, values in (
        ("functions", [len(way.functions) for way in ways]),
        ("files", [way.files for way in ways]),
        ("on the straight line", [len(way.line) for way in ways]),
        ("hand-offs", [way.hand_offs for way in ways]),
        ("model look-ups", [way.look_ups for way in ways]),
    ):
        print(f"{title:<22}{median(values):g}  {sorted(set(values))}")
    if options.show:
        _show(_within(events, windows[-1]), ways[-1])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=Path, default=root, help="the tree to measure; default: this one")
    parser.add_argument("--pictures", type=int, default=9)
    parser.add_argument("--show", action="store_true", help="print the way of the last picture")
    return parser.parse_args()


@contextmanager
def _service(root: Path, folder: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    recorder = {
        "PYTHONPATH": str(Path(__file__).parent / "call_recorder"),
        "RECORD_ROOT": str(root),
        "RECORD_FOLDER": str(folder),
    }
    command = [sys.executable, "-m", "service", "--http-port", str(port)]
    environment = {**os.environ, **SETTINGS, **recorder}
    with subprocess.Popen(command, cwd=root, env=environment, stdout=2, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_until_ready(process, port)
            yield port
        finally:
            process.terminate()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    given_up_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < given_up_s:
        with suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        time.sleep(0.5)
    raise SystemExit("the service did not start")


def _ask(connection: http.client.HTTPConnection, picture: bytes) -> None:
    connection.request("POST", "/v1/segment", picture)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == http.HTTPStatus.OK, answer.status


def _window(connection: http.client.HTTPConnection, picture: bytes) -> tuple[int, int]:
    began_ns = time.monotonic_ns()
    _ask(connection, picture)
    time.sleep(SETTLE_S)  # what happens behind the answer belongs to the picture
    return began_ns, time.monotonic_ns()


def _events(folder: Path) -> list[Event]:
    time.sleep(SETTLE_S)
    return sorted(
        (
            Event(int(at_ns), (file.stem, thread), kind, tuple(stack.split()))
            for file in folder.glob("*.tsv")
            for at_ns, thread, kind, stack in (line.split("\t") for line in file.read_text().splitlines())
        ),
        key=lambda event: event.at_ns,
    )


def _within(events: Sequence[Event], window: tuple[int, int]) -> list[Event]:
    return [event for event in events if window[0] <= event.at_ns < window[1]]


def _way(events: Sequence[Event], at_rest: set[str]) -> Way:
    calls = [event.stack[0] for event in events if event.kind == "call"]
    functions = frozenset(
        name
        for name in calls
        if name not in at_rest and not name.endswith(">") and not name.startswith(BACKGROUND)
    )
    marks = [event for event in events if event.kind != "call" and not _is_helper(event)]
    line = frozenset(name for event in marks for name in event.stack) & functions
    hand_offs = sum(event.kind == "handoff" for event in marks)
    return Way(functions, line, hand_offs, calls.count(LOOK_UP))


def _is_helper(event: Event) -> bool:
    return any(name.startswith(HELPERS + BACKGROUND) for name in event.stack)


def _show(events: Sequence[Event], way: Way) -> None:
    seen: set[str] = set()
    threads: dict[tuple[str, str], int] = {}
    for event in events:
        number = threads.setdefault(event.thread, len(threads) + 1)
        name = event.stack[0] if event.stack else ""
        if event.kind == "call" and name in way.functions - seen:
            seen.add(name)
            print(f"thread {number}  {'|' if name in way.line else ' '} {name}")
        elif event.kind == "handoff" and not _is_helper(event):
            print(f"thread {number}  hands over in {name}")


if __name__ == "__main__":
    main()
