"""Jobs of every kind: states, plans and progress, and the interfaces of what stores and runs them.

A job is cut into shards, which workers share, and each shard into steps of a few seconds. The outcome of a
finished step is stored; after a crash the work continues behind the last stored step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from model.artifacts.manifest import ModelVersion

JsonObject = dict[str, Any]
"""Document in the jobs database; plain JSON."""

MAX_RESCUES = 3
"""Restarts of a shard at the same picture after the death of its worker; then the job fails."""

_STEPS_PER_SHARD = 4
_MAX_SHARDS = 256  # each costs its worker some milliseconds, and its job a list entry


class JobError(Exception):
    """A job fails; the message says why, and names no path outside the data set."""


class JobHeldUpError(Exception):
    """A step cannot run now, for a temporary reason; the message names no path outside the data set."""


class JobInterruptedError(Exception):
    """A step was given up because this process stops; it runs again later."""


class JobState(StrEnum):
    """State of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return not SUCCESSORS[self]


SUCCESSORS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
        JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELLED: frozenset(),
    }
)
"""The allowed transitions."""


class JobRequest(Protocol):
    """What a job does; each kind has its own class."""

    @property
    def version(self) -> ModelVersion:
        """The model version."""
        ...

    @property
    def client_fields(self) -> tuple[object, ...]:
        """The request as the client sent it, independent of what its model reference means now."""
        ...

    def to_json(self) -> JsonObject:
        """Return the stored document; equal requests have equal ones."""
        ...


class JobResult(Protocol):
    """What a job has found or made; each kind has its own class."""

    def to_json(self) -> JsonObject:
        """Return the stored document."""
        ...


RequestT = TypeVar("RequestT", bound=JobRequest)
ResultT = TypeVar("ResultT", bound=JobResult)


@dataclass(frozen=True)
class JobKind(Generic[RequestT, ResultT]):
    """A kind of jobs, and how its documents are read.

    Args:
        name: in the jobs database; never changes.
        request_of: returns the request of a stored document.
        result_of: returns the result of a stored document.
    """

    name: str
    request_of: Callable[[JsonObject], RequestT]
    result_of: Callable[[JsonObject], ResultT]


@dataclass(frozen=True)
class Job(Generic[RequestT, ResultT]):
    """A snapshot of a job.

    Attributes:
        id: its name in paths.
        request: what to do.
        state: queued to final.
        done: pictures whose outcome is stored.
        total: pictures of the job; None until a worker has listed them.
        error: reason of a failure.
        result: of a job that has succeeded.
        pictures_per_s: pace since a worker last took the job up; None if no picture is done since.
    """

    id: str
    request: RequestT
    state: JobState
    done: int = 0
    total: int | None = None
    error: str | None = None
    result: ResultT | None = None
    pictures_per_s: float | None = None

    @property
    def eta_s(self) -> float | None:
        """The time that the rest of a running job takes at this pace, in seconds; None if that is unknown."""
        if self.state is not JobState.RUNNING or self.total is None or not self.pictures_per_s:
            return None
        return (self.total - self.done) / self.pictures_per_s


@dataclass(frozen=True)
class JobPlan:
    """The division of a job into steps; made once by its first worker and stored for all.

    Attributes:
        images: pictures of the job.
        images_per_step: pictures that take a few seconds together.
        pins: everything that the outcome depends on; a worker with other values refuses the job.
    """

    images: int
    images_per_step: int
    pins: JsonObject

    def to_json(self) -> JsonObject:
        """Return the stored document."""
        return {"images": self.images, "images_per_step": self.images_per_step, "pins": self.pins}

    @classmethod
    def from_json(cls, document: JsonObject) -> JobPlan:
        """Return the object of a stored document."""
        return cls(**document)

    def shards(self) -> tuple[tuple[range, ...], ...]:
        """Return the steps of each shard, as ranges of pictures; each picture is in exactly one step."""
        steps = tuple(
            range(start, min(start + self.images_per_step, self.images))
            for start in range(0, self.images, self.images_per_step)
        )
        size = max(_STEPS_PER_SHARD, math.ceil(len(steps) / _MAX_SHARDS))
        return tuple(steps[start : start + size] for start in range(0, len(steps), size))


@dataclass(frozen=True)
class JobProgress:
    """Progress of a job or shard. The attributes are keys in the jobs database.

    Attributes:
        done: pictures whose outcome is stored.
        begun_at: ``done`` at the last start; None before the first one and after a planned stop.
        rescues: restarts at the same picture.
        pictures_per_s: pace since the last start; None before the first picture.
    """

    done: int = 0
    begun_at: int | None = None
    rescues: int = 0
    pictures_per_s: float | None = None

    def started(self) -> JobProgress:
        """Return the progress after a start or restart.

        Raises:
            JobError: too many workers died at the same picture.
        """
        rescues = self.rescues + 1 if self.begun_at == self.done else int(self.begun_at is not None)
        if rescues > MAX_RESCUES:
            raise JobError(f"the workers died {rescues} times at the same pictures, after {self.done}")
        return replace(self, begun_at=self.done, rescues=rescues)

    def advanced(self, images: int, pictures_per_s: float | None = None) -> JobProgress:
        """Return the progress when ``images`` pictures are stored; replayed steps change nothing."""
        if images <= self.done:
            return self
        return JobProgress(images, begun_at=images, pictures_per_s=pictures_per_s)

    def suspended(self) -> JobProgress:
        """Return the progress after a planned stop, so that the next start counts as no restart."""
        return JobProgress(self.done)


@dataclass(frozen=True)
class Pace:
    """How fast pictures are done.

    Args:
        begun_s: time of the first look, seconds of a monotonic clock.
        done: pictures that were done then.
    """

    begun_s: float
    done: int

    def pictures_per_s(self, now_s: float, done: int) -> float | None:
        """Return the mean since the first look; None if none was done since."""
        if done <= self.done or now_s <= self.begun_s:
            return None
        return round((done - self.done) / (now_s - self.begun_s), 3)


class JobSteps(Protocol[RequestT, ResultT]):
    """The work of one kind of jobs. Each call is one durable step, so arguments and results are plain JSON.

    Each call may raise ``JobHeldUpError``; it is repeated for up to ten minutes. Other exceptions, beside the
    errors of this module, are defects that may be temporary; they are repeated a few times.
    """

    @property
    def kind(self) -> JobKind[RequestT, ResultT]:
        """The kind of the jobs."""
        ...

    def plan_job(self, request: RequestT) -> JobPlan:
        """Divide a job into steps.

        Raises:
            JobError: the model or something else that the request names cannot be used.
        """
        ...

    def process_images(self, request: RequestT, plan: JobPlan, images: range) -> JsonObject:
        """Work on some pictures of a job.

        Returns:
            Their outcome; equal on every worker that matches the pins.

        Raises:
            JobError: a file is broken, or this worker does not match the pins.
            JobInterruptedError: the process is about to stop.
        """
        ...

    def finish_job(
        self,
        job_id: str,
        request: RequestT,
        plan: JobPlan,
        outcomes: Sequence[JsonObject],
        *,
        confirm: Callable[[], None],
    ) -> ResultT:
        """Put the outcomes together and store a report on them; may be called twice.

        Args:
            job_id: of the job.
            request: of the job.
            plan: of the job.
            outcomes: results of ``process_images`` for all pictures, in order.
            confirm: called right before the report is stored; raises if the job was cancelled meanwhile.

        Raises:
            JobError: there is no space for the report, or nothing to report.
        """
        ...

    def release_idle(self) -> None:
        """Free the models of jobs; called from time to time while no job runs here."""
        ...

    def stop(self) -> None:
        """Let the running call, and all later ones, end with ``JobInterruptedError``."""
        ...


class Jobs(Protocol[RequestT, ResultT]):
    """The jobs of one kind in their database. Calls block; any thread may call.

    Every method raises ``BusyError`` when the database does not answer.
    """

    def enqueue_job(self, request: RequestT, *, key: str | None = None) -> Job[RequestT, ResultT]:
        """Queue a job.

        Args:
            request: what to do.
            key: of the client; a second call with the same key returns the job of the first one.

        Raises:
            ConflictError: the key was used for a request with other ``client_fields``.
            StorageFullError: there is no space for the job.
        """
        ...

    def find_by_key(self, key: str) -> Job[RequestT, ResultT] | None:
        """Return the job that was queued with a key, or None."""
        ...

    def get_job(self, job_id: str) -> Job[RequestT, ResultT]:
        """Return a job.

        Raises:
            NotFoundError: there is no such job.
        """
        ...

    def list_jobs(self) -> tuple[Job[RequestT, ResultT], ...]:
        """Return all jobs, newest first."""
        ...

    def cancel_job(self, job_id: str) -> Job[RequestT, ResultT]:
        """Stop a job before its next step; a job that has ended stays as it is.

        Raises:
            NotFoundError: there is no such job.
        """
        ...
