from __future__ import annotations

import pytest

from service.cli.bench.percentile import percentile


@pytest.mark.parametrize(
    ("count", "percent", "known"),
    [(1, 50, True), (9, 95, False), (10, 95, True), (49, 99, False), (50, 99, True), (0, 50, False)],
)
def test_a_percentile_needs_values_beyond_it(count: int, percent: float, *, known: bool) -> None:
    assert (percentile([1.0] * count, percent) is not None) is known


def test_it_lies_between_the_values_around_it() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile(range(1001), 99) == 990.0
