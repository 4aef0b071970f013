"""Change one registry after the other, and be killed while doing it: at each step in turn, or at any time.

Usage: until_killed.py steps CHANGE ARTIFACT REGISTRIES      print how many steps the change has
       until_killed.py anytime TIMES ARTIFACT REGISTRIES     publish so many times, killed at random

REGISTRIES is a folder; each registry in it begins as a copy of REGISTRIES/template, if there is one. A step
is anything that the interpreter does to a path of the registry. The process forks for each registry, so that
libraries are imported once; the child ends by SIGKILL, which runs no handler at all.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.artifacts.manifest import ModelVersion
from model.artifacts.openvino_graph import load_openvino
from model.artifacts.registry import ModelRegistry

CHANGES: dict[str, Callable[[ModelRegistry, Path], object]] = {
    "publish": lambda registry, artifact: registry.publish(artifact, "city"),
    "promote": lambda registry, _: registry.promote(ModelVersion("city", 3)),
    "rollback": lambda registry, _: registry.rollback("city"),
    "delete": lambda registry, _: registry.delete(ModelVersion("city", 3)),
}


def on_each_step(registry: Path, act: Callable[[int], None]) -> None:
    """Call ``act`` with its number before each step of this process."""
    steps = itertools.count(1)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        touches = event == "open" or event.startswith("os.")
        if touches and any(str(registry) in str(a) for a in arguments[:2]):
            act(next(steps))

    sys.addaudithook(watch)


def fork(change: str, artifact: Path, registry: Path, act: Callable[[int], None]) -> int:
    """Begin a change in a child; return its process id."""
    template = registry.with_name("template")
    if template.exists():
        shutil.copytree(template, registry)
    child = os.fork()
    if child == 0:
        on_each_step(registry, act)
        CHANGES[change](ModelRegistry(registry), artifact)
        os._exit(0)
    return child


def die_at_each_step(change: str, artifact: Path, registries: Path) -> int:
    """Die at each step in turn; return the number of the first one that never came."""
    for last in itertools.count(1):

        def die(step: int, last: int = last) -> None:
            if step == last:
                os.kill(os.getpid(), signal.SIGKILL)

        child = fork(change, artifact, registries / str(last), die)
        if os.waitpid(child, 0)[1] == 0:
            return last
    raise AssertionError


def die_anytime(times: int, artifact: Path, registries: Path) -> None:
    """Publish, each time killed after a random share of the time that writing takes."""
    seconds = statistics.median(_publish(artifact, registries / f"whole-{n}") for n in range(5))
    chance = random.Random(0)
    for number in range(times):
        _publish(artifact, registries / str(number), kill_after_s=chance.uniform(0, 1.5 * seconds))


def _publish(artifact: Path, registry: Path, *, kill_after_s: float | None = None) -> float:
    """Publish in a child; return how many seconds passed since its first step."""
    begun, begin = os.pipe()

    def tell(step: int) -> None:
        if step == 1:
            os.write(begin, b".")

    child = fork("publish", artifact, registry, tell)
    os.read(begun, 1)
    started_s = time.monotonic()
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(begun)
    os.close(begin)
    return time.monotonic() - started_s


if __name__ == "__main__":
    load_openvino()
    mode, subject, artifact, registries = sys.argv[1:]
    if mode == "steps":
        sys.stdout.write(f"{die_at_each_step(subject, Path(artifact), Path(registries))}\n")
    else:
        die_anytime(int(subject), Path(artifact), Path(registries))
