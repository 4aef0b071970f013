"""Who does not take the answer is cut off; who takes it slowly, but takes it, is not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from service.http_api.connection.connection_limits import ConnectionLimits, WriteWatch

LIMITS = ConnectionLimits()
DUE = int(LIMITS.min_bytes_per_s * LIMITS.stall_timeout_s)


class Connection:
    """A transport whose client takes so many bytes a period, and a clock that the test turns.

    Args:
        unsent: bytes of an answer.
        piece: how many of them the transport is given at a time.
    """

    def __init__(self, unsent: int, piece: int) -> None:
        self.unsent = unsent
        self.piece = piece
        self.aborted = False
        self.due: list[Callable[[], None]] = []

    def get_write_buffer_size(self) -> int:
        return min(self.unsent, self.piece)

    def rest(self) -> int:
        return self.unsent - self.get_write_buffer_size()

    def abort(self) -> None:
        self.aborted = True

    def call_later(self, _delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.due.append(callback)
        return cast("asyncio.TimerHandle", self)

    def cancel(self) -> None:
        self.due.clear()

    def period(self, taken: int) -> None:
        self.unsent = max(0, self.unsent - taken)
        waiting, self.due = self.due, []
        for callback in waiting:
            callback()


def watched(unsent: int, *, piece: int = 1 << 40) -> tuple[Connection, WriteWatch]:
    connection = Connection(unsent, piece)
    watch = WriteWatch(cast("asyncio.Transport", connection), LIMITS, connection.call_later, connection.rest)
    watch.look()
    return connection, watch


def test_nothing_is_watched_where_nothing_waits() -> None:
    assert not watched(0)[0].due


def test_who_takes_nothing_is_cut_off_after_one_period() -> None:
    connection, _ = watched(1)
    connection.period(0)
    assert connection.aborted


@given(unsent=st.integers(1, 5 * DUE), more=st.integers(0, DUE), piece=st.integers(1, 5 * DUE))
def test_who_keeps_the_pace_gets_all_of_it(unsent: int, more: int, piece: int) -> None:
    connection, _ = watched(unsent, piece=piece)
    while connection.due:
        connection.period(DUE + more)
    assert not connection.aborted
    assert not connection.unsent


def test_who_keeps_the_pace_of_an_endless_answer_is_cut_off_in_the_end() -> None:
    connection, _ = watched(1000 * DUE)
    periods = 0
    while connection.due:
        connection.period(DUE)
        periods += 1
    assert connection.aborted
    allowed_s = LIMITS.allowed_s(1000 * DUE)
    assert periods == math.ceil(allowed_s / LIMITS.stall_timeout_s)
    assert allowed_s > LIMITS.write_timeout_s


@given(size=st.integers(1, 200_000_000), piece=st.integers(1, 200_000_000))
def test_who_takes_a_large_answer_at_the_pace_of_large_ones_gets_all_of_it(size: int, piece: int) -> None:
    connection, _ = watched(size, piece=piece)
    while connection.due:
        connection.period(math.ceil(LIMITS.large_bytes_per_s * LIMITS.stall_timeout_s))
    assert not connection.aborted


def test_an_answer_that_goes_on_does_not_begin_anew() -> None:
    connection, watch = watched(5 * DUE, piece=DUE)
    timers = list(connection.due)
    watch.look_again()
    assert connection.due == timers


def test_the_next_answer_begins_anew() -> None:
    connection, _ = watched(5 * DUE)
    connection.unsent = 9 * DUE
    connection.period(DUE)
    assert not connection.aborted
    connection.period(DUE - 1)
    assert connection.aborted


def test_a_connection_is_watched_once_however_often_it_pauses() -> None:
    connection, watch = watched(DUE)
    watch.look()
    assert len(connection.due) == 1


def test_the_rest_is_watched_after_the_client_caught_up_with_most() -> None:
    connection, watch = watched(5 * DUE)
    connection.unsent = 1
    watch.look_again()
    connection.period(0)
    assert connection.aborted


def test_a_connection_that_is_gone_is_watched_no_longer() -> None:
    connection, watch = watched(DUE)
    watch.stop()
    assert not connection.due
