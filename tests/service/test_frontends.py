"""The frontends of a process end together: the data first, the admin last, and at once when told twice."""

from __future__ import annotations

import asyncio
import signal

import pytest

from service.core.lifecycle import Lifecycle
from service.frontends import Frontends


class FakeFrontend:
    """Notes what it is told in a diary that it shares with others; answers until it is stopped or cut."""

    def __init__(self, name: str, diary: list[str], *, cut_off: bool = False) -> None:
        self.cut_off = cut_off
        self._name = name
        self._diary = diary
        self._stopped = asyncio.Event()

    async def answer(self) -> None:
        self._diary.append(f"{self._name} answers")
        await self._stopped.wait()
        self._diary.append(f"{self._name} ended")

    def stop(self) -> None:
        self._diary.append(f"{self._name} stops")
        self._stopped.set()

    def cut(self) -> None:
        self._diary.append(f"{self._name} cut")
        self._stopped.set()


def site(
    *, lame_duck_s: float = 0.0, cut_off: bool = False, started: bool = True
) -> tuple[Frontends, Lifecycle, list[str]]:
    diary: list[str] = []
    lifecycle = Lifecycle()
    lifecycle.started = started
    data = [FakeFrontend("http", diary, cut_off=cut_off), FakeFrontend("grpc", diary)]
    frontends = Frontends(data, FakeFrontend("admin", diary), lifecycle, lame_duck_s=lame_duck_s)
    return frontends, lifecycle, diary


async def test_the_admin_frontend_ends_after_those_that_carry_data() -> None:
    frontends, lifecycle, diary = site()
    running = asyncio.create_task(frontends.run())
    await asyncio.sleep(0)
    frontends.end(signal.SIGTERM)
    assert frontends.ending
    assert lifecycle.draining
    assert await running == 0
    assert diary.index("admin stops") > max(diary.index("http ended"), diary.index("grpc ended"))


@pytest.mark.parametrize(
    ("signum", "started"), [(signal.SIGINT, True), (signal.SIGTERM, False), (None, True)]
)
async def test_only_a_sigterm_to_a_ready_service_has_a_lame_duck_time(
    signum: int | None, *, started: bool
) -> None:
    frontends, _, _ = site(lame_duck_s=1e6, started=started)
    running = asyncio.create_task(frontends.run())
    await asyncio.sleep(0)
    frontends.end(signum)
    assert await running == 0


async def test_in_the_lame_duck_time_nothing_stops_and_a_second_signal_ends_it() -> None:
    frontends, lifecycle, diary = site(lame_duck_s=1e6)
    running = asyncio.create_task(frontends.run())
    await asyncio.sleep(0)
    frontends.end(signal.SIGTERM)
    await asyncio.sleep(0)
    assert lifecycle.draining
    assert not [entry for entry in diary if "stop" in entry or "cut" in entry]
    frontends.end(signal.SIGTERM)
    assert await running == 1
    assert {"http cut", "grpc cut", "admin cut"} <= set(diary)


async def test_requests_that_outlasted_the_grace_are_a_failure() -> None:
    frontends, _, _ = site(cut_off=True)
    running = asyncio.create_task(frontends.run())
    await asyncio.sleep(0)
    frontends.end(signal.SIGTERM)
    assert await running == 1
