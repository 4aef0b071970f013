"""How many steps fit into a time budget: measured once, then frozen."""

from __future__ import annotations

from dataclasses import dataclass

_SECONDS = 60
_MEASURED_SHARE = 0.02
# Validations, checkpoints, the artifact at the end, and a margin for a machine that gets slower.
_RESERVED_SHARE = 0.06


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
        return now_s - self.started_s >= _MEASURED_SHARE * self.limit_s

    def remaining_steps(self, now_s: float, step_s: float) -> int:
        """Return how many more steps of ``step_s`` seconds the run may take, at least 1."""
        remaining_s = self.started_s + self.limit_s * (1 - _RESERVED_SHARE) - now_s
        return max(1, int(remaining_s / step_s))
