"""When a worker is restarted, and when it counts as hanging: rules that are given the time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    """Delays between restarts.

    Args:
        first_delay_s: before the second restart in a row; the first one is not delayed.
        longest_delay_s: each further delay is twice the one before, up to this.
        stable_s: a worker that was ready for so long ends the row.
    """

    first_delay_s: float = 1.0
    longest_delay_s: float = 60.0
    stable_s: float = 5.0


class RestartBackoff:
    """Computes the delay before each restart.

    Args:
        policy: None = the defaults.
    """

    def __init__(self, policy: RestartPolicy | None = None) -> None:
        self._policy = policy or RestartPolicy()
        self._deaths = 0
        self._ready_since_s: float | None = None

    def record_ready(self, now_s: float) -> None:
        """Record that the worker can be given work."""
        self._ready_since_s = now_s

    def record_death(self, now_s: float) -> float:
        """Record that the worker has ended; return the delay before the next start, in seconds."""
        if self._ready_since_s is not None and now_s - self._ready_since_s >= self._policy.stable_s:
            self._deaths = 0
        self._ready_since_s = None
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        doublings = min(self._deaths - 2, 32)  # longer than any delay; 2.0**1024 would overflow
        return min(self._policy.first_delay_s * 2.0**doublings, self._policy.longest_delay_s)


@dataclass(frozen=True)
class WorkerTimeouts:
    """How long a worker may take before it counts as hanging.

    Args:
        start_s: from its start to its first message.
        load_s: to build and prove an engine; compilers of GPUs take minutes.
        batch_s: for one batch, at least; the first one of a size may be compiled for.
        batch_factor: for one batch, as a multiple of its estimated duration.
    """

    start_s: float = 60.0
    load_s: float = 1800.0
    batch_s: float = 10.0
    batch_factor: float = 10.0


class Watchdog:
    """Computes when a worker that answers batches in the order of their sending counts as hanging.

    Args:
        timeouts: time allowed for each batch.
    """

    def __init__(self, timeouts: WorkerTimeouts) -> None:
        self._timeouts = timeouts
        self._expected_s: dict[int, float] = {}  # by token, in the order of sending
        self._since_s = 0.0

    def record_sent(self, token: int, *, expected_s: float, now_s: float) -> None:
        """Record that a batch was sent.

        Args:
            token: of the batch.
            expected_s: estimated duration, in seconds; 0 = unknown.
            now_s: time of sending.
        """
        if not self._expected_s:
            self._since_s = now_s
        self._expected_s[token] = expected_s

    def record_answered(self, token: int, now_s: float) -> None:
        """Record that a batch was answered; from now on the worker owes the next one."""
        del self._expected_s[token]
        self._since_s = now_s

    def hangs_at_s(self) -> float | None:
        """Return when the worker counts as hanging; None while it owes no answer."""
        if not self._expected_s:
            return None
        expected_s = next(iter(self._expected_s.values()))
        return self._since_s + max(self._timeouts.batch_s, self._timeouts.batch_factor * expected_s)
