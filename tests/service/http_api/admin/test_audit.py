"""Every action of the admin port is on the disk before it happens, or does not happen."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fakes import admin_keys
from structlog.testing import capture_logs

from service.core.errors import BusyError, StorageFullError
from service.core.readiness import Readiness
from service.http_api.admin.access import AdminPolicy
from service.http_api.admin.app import create_admin_app
from service.http_api.admin.audit import AuditLog
from service.http_api.admin.drain import drain_router
from service.http_api.admin.metrics import metrics_router
from service.telemetry import Metrics

FULL = Path("/dev/full")
needs_full_device = pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def ask(
    lifecycle: Readiness, log: AuditLog, method: str, path: str, token: str = "t"
) -> httpx2.Response:
    metrics = Metrics()
    app = create_admin_app(
        [metrics_router(metrics), drain_router(lifecycle)],
        policy=AdminPolicy(admin_keys("t", "s"), None),
        lifecycle=lifecycle,
        metrics=metrics,
        audit=log,
    )
    transport = httpx2.ASGITransport(app=app, client=("192.0.2.7", 5000))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        headers = {"Authorization": f"Bearer {token}", "X-Request-Id": "my-id"}
        return await client.request(method, path, headers=headers)


async def test_an_action_says_who_did_what_and_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    assert (await ask(Readiness(), AuditLog(path), "POST", "/admin/v1/drain")).status_code == 202
    asked, done = lines(path)
    common = {
        "request_id": "my-id",
        "who": "admin-token",
        "client": "192.0.2.7",
        "method": "POST",
        "path": "/admin/v1/drain",
    }
    assert asked == {"phase": "asked", "time": asked["time"], **common}
    change = {"before": {"draining": False}, "after": {"draining": True}}
    assert done == {"phase": "done", "time": done["time"], "status": 202, "code": "ok", **common, **change}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_what_fails_is_told_too_and_what_only_reads_or_is_refused_is_not(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    assert (await ask(Readiness(), log, "GET", "/metrics")).status_code == 200
    assert (await ask(Readiness(), log, "POST", "/admin/v1/drain", token="wrong")).status_code == 401
    assert not path.exists()
    assert (await ask(Readiness(), log, "DELETE", "/admin/v1/drain")).status_code == 405
    assert [(line["phase"], line.get("code")) for line in lines(path)] == [
        ("asked", None),
        ("done", "invalid_argument"),
    ]


@needs_full_device
async def test_on_a_full_disk_an_action_is_refused_and_changes_nothing() -> None:
    lifecycle = Readiness()
    response = await ask(lifecycle, AuditLog(FULL), "POST", "/admin/v1/drain")
    assert (response.status_code, response.json()["code"]) == (507, "storage_full")
    assert not lifecycle.draining
    assert (await ask(lifecycle, AuditLog(FULL), "GET", "/metrics")).status_code == 200


async def test_a_file_that_cannot_be_opened_refuses_the_action(tmp_path: Path) -> None:
    lifecycle = Readiness()
    response = await ask(lifecycle, AuditLog(tmp_path / "none" / "audit"), "POST", "/admin/v1/drain")
    assert (response.status_code, response.json()["code"]) == (503, "busy")
    assert not lifecycle.draining
    assert str(tmp_path) not in response.text


async def test_an_action_stands_when_only_its_second_line_finds_no_room(tmp_path: Path) -> None:
    class FullAfterOne(AuditLog):
        def write(self, entry: Any) -> None:
            if entry["phase"] == "done":
                raise StorageFullError("no room")
            super().write(entry)

    lifecycle = Readiness()
    with capture_logs() as log:
        response = await ask(lifecycle, FullAfterOne(tmp_path / "audit"), "POST", "/admin/v1/drain")
    assert response.status_code == 202
    assert lifecycle.draining
    (lost,) = [entry for entry in log if entry["event"] == "audit line lost"]
    assert lost["after"] == {"draining": True}


def test_a_line_that_fits_only_in_part_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.write({"number": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    heeded = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
    try:
        for _ in range(2):
            with capture_logs(), pytest.raises(StorageFullError):  # pytest's own file has the limit too
                log.write({"number": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, heeded)
    log.write({"number": 3})
    assert lines(path) == [{"number": 1}, {"number": 3}]


def test_any_other_failure_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(BusyError):
        AuditLog(tmp_path / "audit").write({"number": 1})
    assert not (tmp_path / "audit").read_bytes()


def test_lines_of_many_threads_stay_whole_and_a_file_may_be_moved_away(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: log.write({"number": number, "text": "x" * 200}), range(64)))
    assert {line["number"] for line in lines(path)} == set(range(64))
    path.rename(tmp_path / "audit.1")
    log.write({"number": 64})
    assert lines(path) == [{"number": 64}]


def test_without_a_file_the_lines_are_those_of_the_service_log() -> None:
    with capture_logs() as log:
        AuditLog(None).write({"phase": "asked", "who": "ci"})
    assert log == [{"event": "audit", "log_level": "info", "phase": "asked", "who": "ci"}]
