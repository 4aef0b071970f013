"""When to start a worker again, and when to give one up: rules that are told the time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    """How patient one is with a worker that dies.

    Args:
        first_delay_s: before the second start in a row that went wrong; the first one costs no delay.
        longest_delay_s: each delay is twice the last one, up to this.
        stable_s: a worker that was ready for so long is forgiven all earlier deaths.
    """

    first_delay_s: float = 1.0
    longest_delay_s: float = 60.0
    stable_s: float = 5.0


class RestartBackoff:
    """Decides when the next worker is started.

    Args:
        policy: how patient to be.
    """

    def __init__(self, policy: RestartPolicy | None = None) -> None:
        self._policy = policy or RestartPolicy()
        self._deaths = 0
        self._ready_since_s: float | None = None

    def became_ready(self, now_s: float) -> None:
        """Take note that the worker can be given work."""
        self._ready_since_s = now_s

    def died(self, now_s: float) -> float:
        """Take note that the worker is gone.

        Returns:
            How many seconds to wait before the next one is started; 0 the first time.
        """
        if self._ready_since_s is not None and now_s - self._ready_since_s >= self._policy.stable_s:
            self._deaths = 0
        self._ready_since_s = None
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        doublings = min(self._deaths - 2, 32)  # beyond all delays; floats end at 1023
        return min(self._policy.first_delay_s * 2.0**doublings, self._policy.longest_delay_s)


@dataclass(frozen=True)
class WorkerTimeouts:
    """How long a worker may take before it counts as hanging.

    Args:
        start_s: from its start until it says that it is there.
        load_s: to build and prove an engine; compilers of GPUs take minutes.
        job_s: at least, for one batch: the first one of a size may be compiled for.
        job_factor: times what the batch is expected to take.
    """

    start_s: float = 60.0
    load_s: float = 1800.0
    job_s: float = 10.0
    job_factor: float = 10.0


class Watchdog:
    """Knows since when a worker owes an answer; its jobs are answered in the order in which they were sent.

    Args:
        patience: how long each answer may take.
    """

    def __init__(self, patience: WorkerTimeouts) -> None:
        self._patience = patience
        self._expected_s: dict[int, float] = {}  # by token, in the order in which they were sent
        self._owed_since_s = 0.0

    def sent(self, token: int, *, expected_s: float, now_s: float) -> None:
        """Take note of a job.

        Args:
            token: of the job.
            expected_s: how long it should take; 0 = unknown.
            now_s: when it was sent.
        """
        if not self._expected_s:
            self._owed_since_s = now_s
        self._expected_s[token] = expected_s

    def answered(self, token: int, now_s: float) -> None:
        """Take note of an answer: from now on the next one is owed."""
        del self._expected_s[token]
        self._owed_since_s = now_s

    def due_s(self) -> float | None:
        """Return when the worker counts as hanging; None while it owes nothing."""
        if not self._expected_s:
            return None
        expected_s = next(iter(self._expected_s.values()))
        return self._owed_since_s + max(self._patience.job_s, self._patience.job_factor * expected_s)
