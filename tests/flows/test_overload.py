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
    command = [sys.executable, str(ROOT / "benchmarks" / "overload.py"), *arguments, "--busy", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    sys.stdout.buffer.write(done.stdout)
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["results"]
    return results


@pytest.mark.parametrize("times", ["2", "5", "10"])
def test_an_overload_costs_no_goodput_and_passes_without_trace(times: str) -> None:
    (result,) = measured("flood", "--times", times, "--size", "128x256")
    assert result["share"] >= 0.95
    assert result["refusal_p99_ms"] <= 50
    assert result["accepted_p99_ms"] <= 1050
    assert result["recovery_s"] <= 2
    before_mb, after_mb = result["rss_mb"]
    assert after_mb <= 1.1 * before_mb
    assert set(result["refused"]) <= {"queue_full", "deadline_exceeded"}


def test_with_nothing_refused_requests_wait_hardly_longer_than_in_an_ideal_queue() -> None:
    for result in measured("waiting", "--size", "128x256"):
        assert not result["refused"]
        assert result["ratio"] <= 1.2


def test_as_much_is_answered_in_time_as_by_ideal_shedding() -> None:
    for result in measured("deadlines", "--size", "128x256"):
        assert result["ratio"] >= 0.95
