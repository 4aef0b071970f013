"""Races ways to run a model on this machine: they take turns, and their medians are compared.

Each round runs every entry once, so that a disturbance that lasts meets all of them; a median over the rounds
leaves out one that does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

LEAD = 1.05
"""An entry wins against an earlier one that takes more than this many times as long."""

_ROUNDS_IN_A_ROW = 5
_MAX_ROUNDS = 30
"""Of entries that are equally fast, none wins all the time."""

_HOPELESS = 2.0
"""An entry whose shortest run takes more than this many times as long as the shortest of all leaves."""

_ROUNDS_BEFORE_LEAVING = 2


def race(
    entries: Sequence[Callable[[], object]],
    *,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, ...]:
    """Time entries in turns until one has won five rounds in a row, or the time is up.

    Args:
        entries: each runs a model once; in the order of ``fastest``.
        budget_s: after the first round, no run begins later than this.
        clock: seconds.

    Returns:
        The median time of each entry, in seconds.
    """
    times_s: list[list[float]] = [[] for _ in entries]
    racing = list(range(len(entries)))
    winners: list[int] = []
    end_s = clock() + budget_s
    while not _is_decided(winners):
        for index in racing:
            began_s = clock()
            if winners and began_s >= end_s:
                return _medians(times_s)
            entries[index]()
            times_s[index].append(clock() - began_s)
        winners.append(racing[fastest([times_s[index][-1] for index in racing])])
        if len(winners) >= _ROUNDS_BEFORE_LEAVING:
            racing = _hopeful(racing, times_s)
    return _medians(times_s)


def fastest(seconds: Sequence[float]) -> int:
    """Return the entry to choose: the first one, unless a later one is faster by more than 5 %.

    The chosen entry takes at most ``LEAD`` times as long as any other.

    Args:
        seconds: of each entry, the simplest and most exact one first.
    """
    chosen = 0
    for index, one_s in enumerate(seconds):
        if seconds[chosen] > LEAD * one_s:
            chosen = index
    return chosen


def _is_decided(winners: Sequence[int]) -> bool:
    last = winners[-_ROUNDS_IN_A_ROW:]
    return len(winners) == _MAX_ROUNDS or (len(last) == _ROUNDS_IN_A_ROW and len(set(last)) == 1)


def _hopeful(racing: Sequence[int], times_s: Sequence[Sequence[float]]) -> list[int]:
    shortest_s = min(map(min, times_s))
    return [index for index in racing if min(times_s[index]) <= _HOPELESS * shortest_s]


def _medians(times_s: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(map(median, times_s))
