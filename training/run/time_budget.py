"""How many steps fit into a time budget: measured once, then frozen."""

from __future__ import annotations

from dataclasses import dataclass

_SECONDS = 60
_MEASURED_SHARE = 0.02
_MEASURED_S = 60.0
"""Longer measuring says little more, and until it ends the learning rate follows a provisional schedule."""

_RESERVED_SHARE = 0.06
"""For checkpoints, the artifact at the end, and a machine that gets slower."""

_LAST_VALIDATIONS = 2
"""That of the last step, and the report's."""


@dataclass(frozen=True)
class TimeBudget:
    """A wall-clock limit for a whole run, from its start to the finished artifact.

    Args:
        limit_s: seconds.
        started_s: when the run started, by the clock that ``now_s`` comes from.
    """

    limit_s: float
    started_s: float

    @classmethod
    def of_minutes(cls, minutes: float | None, started_s: float) -> TimeBudget | None:
        """Return the budget of so many minutes; None stays None."""
        return None if minutes is None else cls(_SECONDS * minutes, started_s)

    def is_measured(self, now_s: float) -> bool:
        """Whether the rate of the first steps says enough to choose the number of steps."""
        return now_s - self.started_s >= min(_MEASURED_SHARE * self.limit_s, _MEASURED_S)

    def remaining_steps(
        self, now_s: float, step_s: float, *, validation_s: float, validate_every: int
    ) -> int:
        """Return how many more steps the run may take, at least 1.

        Args:
            now_s: by the clock of ``started_s``.
            step_s: seconds of a step.
            validation_s: seconds of a validation.
            validate_every: steps from one validation to the next.
        """
        end_s = self.started_s + self.limit_s * (1 - _RESERVED_SHARE) - _LAST_VALIDATIONS * validation_s
        return max(1, int((end_s - now_s) / (step_s + validation_s / validate_every)))
