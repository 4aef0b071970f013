from __future__ import annotations

import asyncio
from pathlib import Path

from fakes import until

from service.assembly import open_core, worker_process
from service.core.device.engine import DEFAULT_TUNING
from service.settings import load_settings


def test_threads_of_a_worker_sleep_while_they_wait(tmp_path: Path) -> None:
    settings = load_settings(
        flags={"models": {"cache_folder": tmp_path, "device": "cpu"}, "jobs": {"mode": "off"}}, environment={}
    )
    runner = worker_process(settings)
    with open_core(settings, runner, lambda _version, _manifest: DEFAULT_TUNING):
        asyncio.run(until(lambda: runner.pid is not None))
        environment = Path(f"/proc/{runner.pid}/environ").read_bytes().split(b"\0")
    assert b"OMP_WAIT_POLICY=PASSIVE" in environment
