"""Publish from many processes at once, all of them the same number, round after round.

Usage: publish_together.py ROUNDS REGISTRY ARTIFACT...

Each artifact has a process of its own. Prints, as JSON, the rounds that each one won.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

from model.artifacts.openvino_graph import load_openvino
from model.artifacts.registry import ModelRegistry
from model.errors import VersionConflictError


def publish_each_round(
    artifact: Path, registry: Path, rounds: int, barrier: Barrier, answer: Connection
) -> None:
    """Publish as version 1, 2, ... together with the others; send the numbers that were won."""
    won = []
    for number in range(1, rounds + 1):
        barrier.wait()
        try:
            ModelRegistry(registry).publish(artifact, "city", number)
        except VersionConflictError:
            continue
        won.append(number)
    answer.send(won)


def main(rounds: int, registry: Path, artifacts: list[Path]) -> list[list[int]]:
    """Run a process for each artifact; return what each has won."""
    load_openvino()
    context = multiprocessing.get_context("fork")  # libraries are imported once
    barrier = context.Barrier(len(artifacts))
    answers = []
    for artifact in artifacts:
        receiver, sender = context.Pipe(duplex=False)
        answers.append(receiver)
        context.Process(target=publish_each_round, args=(artifact, registry, rounds, barrier, sender)).start()
    return [receiver.recv() for receiver in answers]


if __name__ == "__main__":
    won = main(int(sys.argv[1]), Path(sys.argv[2]), [Path(argument) for argument in sys.argv[3:]])
    sys.stdout.write(json.dumps(won))
