from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import TimeLimitError
from training.run.time_budget import MIN_STEPS, Costs, Pace, TimeBudget

STARTED_S = 1e4


@dataclass
class Script:
    """A run whose parts take scripted times, under a virtual clock.

    Args:
        start_s: of reading the data set and of measuring the costs.
        steps_s: of the steps, one after the other; the last one repeats.
        validation_s: of a validation.
        export_s: of artifact and report.
        validate_every: steps from one validation to the next.
        told: what was measured of the costs, where that is not the truth.
    """

    start_s: float
    steps_s: list[float]
    validation_s: float
    export_s: float
    validate_every: int = 1000
    told: Costs | None = None
    now_s: float = STARTED_S
    step: int = 0
    totals: list[int] = field(default_factory=list)

    def run(self, budget: TimeBudget) -> float:
        """Do what the trainer does; returns how long it took, in seconds."""
        self.now_s += self.start_s
        costs = self.told or Costs(self.validation_s, self.export_s)
        durations = self._durations()
        budget.check(self.now_s, self.step, Pace(0.0, self.validate_every, costs))
        total = 10**9
        recent: list[float] = []
        while self.step < total:
            step_s = next(durations)
            self.now_s += step_s
            self.step += 1
            if self.step % self.validate_every == 0 and self.step < total:
                self.now_s += self.validation_s
                costs = Costs(self.validation_s, costs.export_s)
            recent = [*recent[-19:], step_s] if self.step > 1 else []
            if self.step > 1:
                pace = Pace(sum(recent) / len(recent), self.validate_every, costs)
                if not self.totals and budget.is_measured(self.now_s):
                    budget.check(self.now_s, self.step, pace)
                    total = budget.total_steps(self.now_s, self.step, pace)
                    self.totals.append(total)
                elif self.totals:
                    total = budget.chosen_again(self.now_s, self.step, total, pace)
                    self.totals += [total] * (total != self.totals[-1])
        self.now_s += self.validation_s + self.export_s
        return self.now_s - STARTED_S

    def _durations(self) -> Iterator[float]:
        yield from self.steps_s
        while True:
            yield self.steps_s[-1]


@given(
    limit_s=st.floats(120, 1e5),
    start=st.floats(0, 0.2),
    step=st.floats(1e-4, 0.02),
    validation=st.floats(0, 0.15),
    validate_every=st.integers(5, 1000),
)
@settings(max_examples=60)
def test_a_run_of_steady_parts_ends_within_a_tenth_of_its_limit(
    limit_s: float, start: float, step: float, validation: float, validate_every: int
) -> None:
    shares = start * limit_s, [step * limit_s], validation * limit_s, 0.08 * limit_s
    script = Script(*shares, validate_every)
    took_s = script.run(TimeBudget(limit_s, STARTED_S))
    # What does not fit any more is a step, or a step and the validation before it.
    assert (0.92 - step - validation) * limit_s <= took_s <= 1.04 * limit_s
    assert script.step >= MIN_STEPS


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_a_machine_that_gets_slower_or_faster_ends_in_time_nevertheless(factor: float) -> None:
    script = Script(10, [1.0] * 60 + [factor], 8, 6)
    took_s = script.run(TimeBudget(300, STARTED_S))
    assert took_s == pytest.approx(300, rel=0.08)
    assert 1 < len(script.totals) < 12


def test_a_steady_run_chooses_its_steps_once() -> None:
    script = Script(10, [2.5, 1.0, 1.02, 0.99, 1.01, 1.0], 8, 6)
    assert script.run(TimeBudget(300, STARTED_S)) == pytest.approx(294, abs=4)
    assert len(script.totals) == 1


def test_a_validation_that_takes_longer_than_its_sample_told_shortens_the_run() -> None:
    script = Script(10, [1.0], 20, 6, validate_every=50, told=Costs(5, 6))
    assert script.run(TimeBudget(300, STARTED_S)) == pytest.approx(294, abs=10)


def test_what_does_not_fit_is_said_before_the_first_step() -> None:
    script = Script(20, [1.0], 75, 40)
    with pytest.raises(TimeLimitError) as refusal:
        script.run(TimeBudget(120, STARTED_S))
    assert script.step == 0
    said = str(refusal.value)
    assert "--max-minutes 2 is too short" in said
    assert "0:00:20 have passed; calibrating and validating take 0:01:15" in said
    assert "the artifact and its report 0:00:40. Give it 3 minutes or more" in said


def test_steps_that_do_not_fit_are_said_after_two_of_them() -> None:
    script = Script(5, [9.0], 10, 10)  # 5 + 10 * 9 + 20 = 115 s
    with pytest.raises(TimeLimitError, match=r"10 steps take 0:01:30; .* Give it 2 minutes or more"):
        script.run(TimeBudget(100, STARTED_S))
    assert script.step == 2


def test_a_run_that_is_late_ends_with_the_step_it_takes() -> None:
    pace = Pace(1.0, 10, Costs(1, 1))
    assert TimeBudget(60, 0).total_steps(1000, 7, pace) == 7
    assert TimeBudget(60, 0).chosen_again(1000, 7, 500, pace) == 7


def test_the_time_that_remains_counts_validations_between_steps_and_the_ending() -> None:
    pace = Pace(2.0, 10, Costs(validation_s=5, export_s=7))
    assert pace.remaining_s(0, 30) == 60 + 2 * 5 + 5 + 7  # after 10 and 20; after 30 it is the last one
    assert pace.remaining_s(10, 31) == 42 + 2 * 5 + 12
    assert pace.remaining_s(30, 30) == 12


def test_the_rate_counts_as_measured_after_a_share_of_the_time() -> None:
    budget = TimeBudget(1000, 50)
    assert not budget.is_measured(60)
    assert budget.is_measured(71)


def test_of_a_long_run_a_minute_is_enough_to_measure() -> None:
    day = TimeBudget(limit_s=86_400, started_s=5)
    assert not day.is_measured(5 + 59)
    assert day.is_measured(5 + 61)


def test_no_limit_is_no_budget() -> None:
    assert TimeBudget.of_minutes(None, 0) is None
    assert TimeBudget.of_minutes(2, 7) == TimeBudget(120, 7)
