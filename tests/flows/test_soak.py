"""A service under load of all kinds keeps its memory, descriptors and threads; see ``tests/soak.py``."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import soak
from live_service import ROOT
from soak import PERIODS, WARM_UP, Rest, findings

STEADY = [Rest(300_000_000, 50, 38)] * PERIODS


def changed(**changes: Sequence[int]) -> list[Rest]:
    """Return measurements of which some differ from ``STEADY``, from the last one backwards."""
    rests = list(STEADY)
    for name, values in changes.items():
        for index, value in enumerate(reversed(values), start=1):
            rests[-index] = dataclasses.replace(rests[-index], **{name: value})
    return rests


@pytest.mark.parametrize(
    "rests",
    [
        STEADY,
        changed(memory_bytes=[302_900_000] * 4),
        changed(memory_bytes=[900_000_000]),  # one measurement is no growth
        [*[Rest(200_000_000, 40, 30)] * WARM_UP, *STEADY[WARM_UP:]],
        changed(descriptors=[51, 50, 50, 50, 50, 50, 51]),
    ],
)
def test_what_stays_or_grows_in_the_warm_up_is_nothing_to_find(rests: list[Rest]) -> None:
    assert findings(rests) == []


def test_what_grows_after_the_warm_up_is_found() -> None:
    assert findings(changed(memory_bytes=[303_100_000] * 4)) == ["memory grew by 1.03 %"]
    assert findings(changed(descriptors=[51])) == ["descriptors grew from 50 to 51"]
    assert findings(changed(threads=[39, 40])) == ["threads grew from 38 to 40"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, soak.__file__, *arguments]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    return done


@pytest.mark.guarantee("G13")
@pytest.mark.soak
def test_after_ten_minutes_of_everything_nothing_has_grown_and_no_answer_was_wrong() -> None:
    assert run("--minutes", "10").returncode == 0


@pytest.mark.guarantee("G13")
@pytest.mark.soak
def test_a_service_with_a_leak_does_not_pass() -> None:
    done = run("--minutes", "3", "--leak")
    assert done.returncode == 1
    assert all(f"{what} grew" in done.stdout for what in ("memory", "descriptors", "threads"))
