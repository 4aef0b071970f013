"""The cost of a worker process: the same engine in this process and in a worker process, in turns.

    python benchmarks/worker.py [--engine openvino] [--size 512x1024] [--rounds 5] [--seconds 4]

The added latency is the median over the rounds of the difference of the medians, with one request in flight.
The ratio of throughputs is measured with four in flight.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from contextlib import ExitStack
from statistics import median

import numpy as np

from benchmarks.command_line import make_parser, parse_if_idle
from model.pictures.preprocess import PreprocessSpec
from service.assembly import engine_options, worker_process
from service.core.device.device import Device
from service.core.device.in_process import InProcessRunner
from service.core.models.model_host import ModelHost
from service.core.scheduling.dispatcher import Answer, Dispatcher
from service.engines import late_builder
from service.machine import this_machine
from service.registry import open_registry
from service.settings import load_settings

IN_FLIGHT = 4


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--size", default="512x1024")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parse_if_idle(parser)
    models = {"engine": options.engine, "precision": options.precision}
    settings = load_settings(flags={"models": models})
    registry = open_registry(settings)
    version = registry.resolve(settings.models.serve[0])
    device = Device(late_builder(options.engine), engine_options(settings))
    with ExitStack() as stack:
        hosts = {}
        for name, runner in {"here": InProcessRunner(device), "there": worker_process(settings)}.items():
            hosts[name] = ModelHost(Dispatcher(runner))
            stack.callback(hosts[name].close)
            served = hosts[name].load(version, registry.open(version))
        height, width = map(int, options.size.split("x"))
        image_HW3 = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        ask = {name: Client(host, served.manifest.preprocess, image_HW3) for name, host in hosts.items()}
        rounds = [
            {name: (a.latency_s(options.seconds), a.per_s(options.seconds)) for name, a in ask.items()}
            for _ in range(options.rounds)
        ]
    print(this_machine().summary)
    print(f"{version} {served.engine} {options.size}")
    for name in ask:
        p50 = 1e3 * median(one[name][0] for one in rounds)
        print(f"{name:>6}: p50 {p50:.3f} ms, {median(one[name][1] for one in rounds):.1f} pictures/s")
    added_ms = 1e3 * median(one["there"][0] - one["here"][0] for one in rounds)
    ratio = median(one["there"][1] / one["here"][1] for one in rounds)
    print(f"added p50 {added_ms:.3f} ms; throughput with {IN_FLIGHT} in flight x {ratio:.3f}")


class Client:
    """Sends one picture to a host again and again, like a request: prepare, submit, read the labels."""

    def __init__(self, host: ModelHost, spec: PreprocessSpec, image_HW3: np.ndarray) -> None:
        self._host = host
        self._spec = spec
        self._image_HW3 = image_HW3

    def latency_s(self, seconds: float) -> float:
        """Return the median time of a request, one at a time."""
        durations_s, end_s = [], time.perf_counter() + seconds
        while not durations_s or time.perf_counter() < end_s:
            began_s = time.perf_counter()
            self._look(self._submit())
            durations_s.append(time.perf_counter() - began_s)
        return median(durations_s)

    def per_s(self, seconds: float) -> float:
        """Return the answers a second with several requests in flight."""
        count, began_s = 0, time.perf_counter()
        waiting = deque(self._submit() for _ in range(IN_FLIGHT))
        while time.perf_counter() < began_s + seconds:
            self._look(waiting.popleft())
            waiting.append(self._submit())
            count += 1
        while waiting:
            self._look(waiting.popleft())
            count += 1
        return count / (time.perf_counter() - began_s)

    def _submit(self) -> Future[Answer]:
        model = self._host.find()
        prepared = self._spec.prepare(self._image_HW3, model.canvas)
        place = model.reserve(prepared.padded, deadline_s=time.monotonic() + 60)
        return model.submit(prepared, place)

    def _look(self, future: Future[Answer]) -> None:
        future.result().labels_HW.max()


if __name__ == "__main__":
    main()
