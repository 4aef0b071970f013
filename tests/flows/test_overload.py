"""More requests than a device can answer, over HTTP, measured as ``benchmarks/overload.py`` does it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from live_service import ROOT

pytestmark = pytest.mark.soak


def measured(*arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "benchmarks" / "overload.py"), *arguments, "--force", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    sys.stdout.buffer.write(done.stdout)
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["results"]
    return results


@pytest.mark.guarantee("G5")
@pytest.mark.parametrize("times", ["2", "5", "10"])
def test_an_overload_is_refused_by_name_and_leaves_no_memory_behind(times: str) -> None:
    (result,) = measured("flood", "--times", times, "--size", "128x256")
    assert set(result["refused"]) <= {"queue_full", "deadline_exceeded"}
    before_mb, after_mb = result["rss_mb"]
    assert after_mb <= 1.1 * before_mb


@pytest.mark.guarantee("G5")
@pytest.mark.parametrize("what", ["waiting", "deadlines"])
def test_every_request_gets_an_answer(what: str) -> None:
    for result in measured(what, "--size", "128x256"):
        assert what == "deadlines" or not result["refused"]
        assert result["arrivals"] >= 10_000
