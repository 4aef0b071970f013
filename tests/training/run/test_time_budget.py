from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from training.run.time_budget import TimeBudget


@given(
    limit_s=st.floats(30, 1e5),
    share=st.floats(0, 0.9),
    step_s=st.floats(1e-3, 10),
    validation_s=st.floats(0, 100),
    validate_every=st.integers(1, 1000),
)
def test_the_steps_that_remain_end_in_time(
    limit_s: float, share: float, step_s: float, validation_s: float, validate_every: int
) -> None:
    started_s = 1e4
    budget = TimeBudget(limit_s, started_s)
    now_s = started_s + share * limit_s
    steps = budget.remaining_steps(now_s, step_s, validation_s=validation_s, validate_every=validate_every)
    assert steps >= 1
    validations = steps // validate_every + 2
    assert steps == 1 or now_s + steps * step_s + validations * validation_s <= started_s + limit_s


def test_the_budget_is_nearly_used_up() -> None:
    assert TimeBudget(1000, 0).remaining_steps(0, 0.5, validation_s=0, validate_every=1) > 1800


def test_the_rate_counts_as_measured_after_a_share_of_the_time() -> None:
    budget = TimeBudget(1000, 50)
    assert not budget.is_measured(60)
    assert budget.is_measured(71)


def test_of_a_long_run_a_minute_is_enough_to_measure() -> None:
    day = TimeBudget(limit_s=86_400, started_s=5)
    assert not day.is_measured(5 + 59)
    assert day.is_measured(5 + 61)


def test_a_run_that_is_late_takes_one_more_step() -> None:
    assert TimeBudget(60, 0).remaining_steps(1000, 1, validation_s=1, validate_every=1) == 1


def test_no_limit_is_no_budget() -> None:
    assert TimeBudget.of_minutes(None, 0) is None
    assert TimeBudget.of_minutes(2, 7) == TimeBudget(120, 7)
