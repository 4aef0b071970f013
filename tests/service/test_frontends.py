"""The frontends of a process end together: the data first, the admin last, and at once when told twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import pytest
from fakes import PATIENCE_S

from service.core.readiness import Readiness
from service.frontends import Frontends


class FakeFrontend:
    """Notes what it is told in a diary that it shares with others; answers until it is stopped or cut."""

    def __init__(self, name: str, diary: list[str], *, cut_off: bool = False, stubborn: bool = False) -> None:
        self.cut_off = cut_off
        self._stubborn = stubborn
        self._name = name
        self._diary = diary
        self._stopped = asyncio.Event()

    async def answer(self) -> None:
        self._diary.append(f"{self._name} answers")
        await self._stopped.wait()
        self._diary.append(f"{self._name} ended")

    def stop(self) -> None:
        self._diary.append(f"{self._name} stops")
        if not self._stubborn:
            self._stopped.set()

    def cut(self) -> None:
        self._diary.append(f"{self._name} cut")
        self.cut_off |= self._stubborn
        self._stopped.set()


def site(
    *,
    lame_duck_s: float = 0.0,
    grace_s: float = 2e6,
    cut_off: bool = False,
    started: bool = True,
    stubborn_admin: bool = False,
) -> tuple[Frontends, Readiness, list[str]]:
    diary: list[str] = []
    lifecycle = Readiness()
    lifecycle.started = started
    data = [FakeFrontend("http", diary, cut_off=cut_off), FakeFrontend("grpc", diary)]
    admin = FakeFrontend("admin", diary, stubborn=stubborn_admin)
    frontends = Frontends(data, admin, lifecycle, lame_duck_s=lame_duck_s, grace_s=grace_s)
    return frontends, lifecycle, diary


async def nothing() -> None:
    pass


async def for_ever() -> None:
    await asyncio.Event().wait()


def run(frontends: Frontends, loading: Coroutine[Any, Any, None] | None = None) -> asyncio.Task[int]:
    return asyncio.create_task(frontends.run(asyncio.create_task(loading or nothing())))


async def test_the_admin_frontend_ends_after_those_that_carry_data() -> None:
    frontends, lifecycle, diary = site()
    running = run(frontends)
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
    running = run(frontends)
    await asyncio.sleep(0)
    frontends.end(signum)
    assert await running == 0


async def test_in_the_lame_duck_time_nothing_stops_and_a_second_signal_ends_it() -> None:
    frontends, lifecycle, diary = site(lame_duck_s=1e6)
    running = run(frontends)
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
    running = run(frontends)
    await asyncio.sleep(0)
    frontends.end(signal.SIGTERM)
    assert await running == 1


async def test_an_administrator_who_does_not_end_is_cut_off_at_the_deadline() -> None:
    frontends, _, diary = site(grace_s=0.01, stubborn_admin=True)
    running = run(frontends)
    await asyncio.sleep(0)
    frontends.end(signal.SIGTERM)
    assert await running == 1
    assert diary[-2:] == ["admin cut", "admin ended"]


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_model_that_is_being_loaded_is_not_waited_for_beyond_the_deadline_or_a_second_signal(
    signals: int,
) -> None:
    frontends, _, _ = site(grace_s=0.01 if signals == 1 else 2e6, started=False)
    running = run(frontends, for_ever())
    await asyncio.sleep(0)
    for _ in range(signals):
        frontends.end(signal.SIGTERM)
    assert await asyncio.wait_for(running, PATIENCE_S) == 1


async def test_a_second_signal_is_heard_while_only_the_model_is_waited_for() -> None:
    frontends, _, diary = site(started=False)
    running = run(frontends, for_ever())
    await asyncio.sleep(0)
    frontends.end(signal.SIGTERM)
    while "admin ended" not in diary:  # noqa: ASYNC110 - the diary is all there is
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not running.done()
    frontends.end(signal.SIGTERM)
    assert await asyncio.wait_for(running, PATIENCE_S) == 1


async def test_a_load_that_ends_in_time_is_no_failure_of_the_end() -> None:
    frontends, _, _ = site(started=False)
    loaded = asyncio.Event()

    async def load() -> None:
        await loaded.wait()

    running = run(frontends, load())
    await asyncio.sleep(0)
    frontends.end(signal.SIGTERM)
    loaded.set()
    assert await asyncio.wait_for(running, PATIENCE_S) == 0
