"""How many steps fit into a time limit: rules without a clock of their own.

A run starts, takes steps with validations between them, and ends with a last validation, the artifact and the
report. The duration of each part is measured; the number of steps follows from it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from model.progress import duration
from training.errors import TimeLimitError

_SECONDS = 60

MIN_STEPS = 10
"""A run of fewer steps learns nothing: its time limit is refused."""

_MEASURED_SHARE = 0.02
_MEASURED_S = 60.0
"""Longer measuring says little more, and until it ends the learning rate follows a provisional schedule."""

_RESERVED_SHARE = 0.02
"""Time for checkpoints and other work that is not measured."""

_TOLERATED_SHARE = 0.05
"""The number of steps is chosen again where the run would miss its end by more. Each change bends the
schedule of the learning rate."""


@dataclass(frozen=True)
class Costs:
    """Seconds that a run takes beside its steps.

    Attributes:
        validation_s: of one validation: calibration, scores and samples.
        export_s: of the artifact and its report.
    """

    validation_s: float = 0.0
    export_s: float = 0.0

    @property
    def ending_s(self) -> float:
        """Seconds from the last step to the end of the run."""
        return self.validation_s + self.export_s


@dataclass(frozen=True)
class Pace:
    """How fast a run goes.

    Attributes:
        step_s: seconds of a step.
        validate_every: steps from one validation to the next.
        costs: of everything else.
    """

    step_s: float
    validate_every: int
    costs: Costs = Costs()

    def remaining_s(self, step: int, total_steps: int) -> float:
        """Return the seconds to the end of the run.

        Args:
            step: finished steps.
            total_steps: of the run.
        """
        between = max(0, (total_steps - 1) // self.validate_every - step // self.validate_every)
        steps_s = self.step_s * (total_steps - step)
        return steps_s + between * self.costs.validation_s + self.costs.ending_s


@dataclass(frozen=True)
class TimeBudget:
    """A wall-clock limit for a whole run, from its start to the finished artifact.

    Args:
        limit_s: seconds.
        started_s: when the run started, by the clock that each ``now_s`` comes from.
    """

    limit_s: float
    started_s: float

    @classmethod
    def of_minutes(cls, minutes: float | None, started_s: float) -> TimeBudget | None:
        """Return the budget of so many minutes; None stays None."""
        return None if minutes is None else cls(_SECONDS * minutes, started_s)

    def is_measured(self, now_s: float) -> bool:
        """Return whether the steps so far say enough to choose the number of steps."""
        return now_s - self.started_s >= min(_MEASURED_SHARE * self.limit_s, _MEASURED_S)

    def total_steps(self, now_s: float, step: int, pace: Pace) -> int:
        """Return the number of steps with which the run ends in time; at least those that are finished.

        Args:
            now_s: by the clock of ``started_s``.
            step: finished steps.
            pace: of the run; its ``step_s`` is above 0.
        """
        left_s = self._end_s - now_s
        most = step + max(0, int(left_s / pace.step_s))
        totals = range(step, most + 1)
        return step + max(
            0, bisect_right(totals, left_s, key=lambda total: pace.remaining_s(step, total)) - 1
        )

    def chosen_again(self, now_s: float, step: int, total_steps: int, pace: Pace) -> int:
        """Return another number of steps where the present one misses the end, else the present one.

        Args:
            now_s: by the clock of ``started_s``.
            step: finished steps.
            total_steps: the present number.
            pace: of the run; its ``step_s`` is above 0.
        """
        missed_s = abs(now_s + pace.remaining_s(step, total_steps) - self._end_s)
        if missed_s <= max(_TOLERATED_SHARE * self.limit_s, pace.step_s):
            return total_steps
        return self.total_steps(now_s, step, pace)

    def check(self, now_s: float, step: int, pace: Pace) -> None:
        """Refuse a limit into which the run does not fit.

        Args:
            now_s: by the clock of ``started_s``.
            step: finished steps.
            pace: of the run; a ``step_s`` of 0 is unknown.

        Raises:
            TimeLimitError: fewer than ``MIN_STEPS`` steps fit; the message lists the durations.
        """
        passed_s, costs = now_s - self.started_s, pace.costs
        steps_s = max(0, MIN_STEPS - step) * pace.step_s
        needed_s = passed_s + steps_s + costs.ending_s
        if needed_s <= self.limit_s:
            return
        minutes = -(-needed_s // _SECONDS) if needed_s > _SECONDS else needed_s / _SECONDS
        a_step = f"; {MIN_STEPS} steps take {duration(MIN_STEPS * pace.step_s)}" if pace.step_s else ""
        raise TimeLimitError(
            f"--max-minutes {self.limit_s / _SECONDS:g} is too short for this run on this machine:"
            f" {duration(passed_s)} have passed{a_step}; calibrating and validating take"
            f" {duration(costs.validation_s)}, the artifact and its report {duration(costs.export_s)}."
            f" Give it {minutes:g} minutes or more; a smaller schedule.batch_size, augment.crop or validation"
            " split needs less"
        )

    @property
    def _end_s(self) -> float:
        return self.started_s + self.limit_s * (1 - _RESERVED_SHARE)
