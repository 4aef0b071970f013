"""The rules of the race under a scripted clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engines.race import LEAD, fastest, race

SECONDS = st.floats(min_value=1e-4, max_value=1e3)


class Track:
    """Time passes only while an entry runs."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.runs: list[str] = []

    def clock(self) -> float:
        return self.now_s

    def entry(self, name: str, seconds: Iterable[float]) -> Callable[[], None]:
        durations: Iterator[float] = iter(seconds)

        def run() -> None:
            self.now_s += next(durations)
            self.runs.append(name)

        return run

    def race(self, *seconds: Iterable[float], budget_s: float = 1e6) -> tuple[float, ...]:
        entries = [self.entry("abcdef"[index], one) for index, one in enumerate(seconds)]
        return race(entries, budget_s=budget_s, clock=self.clock)


@pytest.fixture
def track() -> Track:
    return Track()


def test_entries_take_turns_and_a_clear_lead_ends_the_race_after_five_rounds(track: Track) -> None:
    assert track.race(itertools.repeat(3.0), itertools.repeat(2.0)) == (3.0, 2.0)
    assert "".join(track.runs) == "ab" * 5


def test_a_median_leaves_single_slow_runs_out(track: Track) -> None:
    slowed = [90.0, 2.0, 2.0, 90.0, *itertools.repeat(2.0, 26)]
    assert track.race(itertools.repeat(3.0), slowed) == (3.0, 2.0)


def test_a_disturbance_that_lasts_slows_all_entries_down_alike(track: Track) -> None:
    disturbance = [1.0, 1.0, 4.0, 4.0, 4.0]
    first, second = track.race([3 * d for d in disturbance], [2 * d for d in disturbance])
    assert first / second == 1.5


def test_without_a_clear_lead_there_are_thirty_rounds(track: Track) -> None:
    assert track.race(itertools.cycle([2.0, 2.5]), itertools.cycle([2.5, 2.0])) == (2.25, 2.25)
    assert len(track.runs) == 2 * 30


def test_no_run_begins_when_the_time_is_up(track: Track) -> None:
    track.race(itertools.cycle([4.0, 5.0]), itertools.cycle([5.0, 4.0]), budget_s=31.0)
    assert "".join(track.runs) == "abababa"


def test_each_entry_runs_once_though_the_first_one_takes_longer_than_there_is_time(track: Track) -> None:
    assert track.race([50.0], [40.0], budget_s=15.0) == (50.0, 40.0)


def test_an_entry_that_is_hopelessly_slow_leaves_after_two_rounds(track: Track) -> None:
    times = track.race(itertools.repeat(9.0), itertools.repeat(2.0), itertools.repeat(3.0))
    assert times == (9.0, 2.0, 3.0)
    assert "".join(track.runs) == "abcabc" + "bc" * 3


def test_an_entry_alone_is_timed_five_times(track: Track) -> None:
    assert track.race([5.0, 1.0, 2.0, 3.0, 4.0]) == (3.0,)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ([1.0, 1.0, 1.0], 0),
        ([1.04, 1.0], 0),
        ([1.06, 1.0], 1),
        ([1.00, 0.97, 0.94], 2),  # each step is small; the last one is 6 % faster than the first
        ([1.00, 0.94, 0.92], 1),
        ([0.9, 1.0], 0),
    ],
)
def test_a_later_entry_must_be_faster_by_more_than_five_percent(seconds: list[float], chosen: int) -> None:
    assert fastest(seconds) == chosen


@given(st.lists(SECONDS, min_size=1, max_size=6))
def test_the_chosen_entry_is_within_five_percent_of_the_fastest(seconds: list[float]) -> None:
    assert seconds[fastest(seconds)] <= LEAD * min(seconds)


@given(st.lists(SECONDS, min_size=1, max_size=6))
def test_no_earlier_entry_is_as_fast_as_the_chosen_one(seconds: list[float]) -> None:
    chosen = fastest(seconds)
    assert all(earlier > seconds[chosen] for earlier in seconds[:chosen])
