"""Evaluation jobs: requests, states, plans and results, and the interfaces of what stores and runs them.

A job is cut into shards, which workers share, and each shard into steps of a few seconds. The counts of a
finished step are stored; after a crash the work continues behind the last stored step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol

from model.artifacts.manifest import ModelVersion
from service.core.device.engine import Precision

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


@dataclass(frozen=True)
class JobRequest:
    """What to evaluate.

    Args:
        version: the model version.
        dataset: name in the configuration, never a path.
        split: of the data set.
        protocol: name of a protocol in ``model.evaluation.protocols``.
        skip_broken: leave out and count pairs with broken files; else they fail the job.
        reference: the model as the client named it; None = by its version.
        precision: of the computation on every worker; None = the choice of the first one.
    """

    version: ModelVersion
    dataset: str
    split: str
    protocol: str
    skip_broken: bool = False
    reference: str | None = None
    precision: Precision | None = None

    @property
    def client_fields(self) -> tuple[str, str, str, str, bool]:
        """The request as the client sent it, independent of what its model reference means now."""
        model = self.reference or str(self.version)
        return model, self.dataset, self.split, self.protocol, self.skip_broken

    def to_json(self) -> JsonObject:
        """Return the stored document; equal requests have equal ones."""
        return {
            "model": str(self.version),
            "dataset": self.dataset,
            "split": self.split,
            "protocol": self.protocol,
            "skip_broken": self.skip_broken,
            "reference": self.reference,
            "precision": self.precision,
        }

    @classmethod
    def from_json(cls, document: JsonObject) -> JobRequest:
        """Return the object of a stored document."""
        return cls(
            version=ModelVersion.parse(document["model"]),
            dataset=document["dataset"],
            split=document["split"],
            protocol=document["protocol"],
            skip_broken=document["skip_broken"],
            reference=document.get("reference"),  # older documents have neither
            precision=document.get("precision"),
        )


@dataclass(frozen=True)
class JobResult:
    """Scores of a job.

    Attributes:
        miou: mean IoU of the classes that occur, 0..1; None if no class does.
        per_class: IoU by class name, 0..1; None for a class in neither the labels nor the predictions.
        images: number of scored pictures.
        skipped: names of the broken pairs that were left out.
        digest: SHA-256 of the report without its times; equal runs have equal digests.
    """

    miou: float | None
    per_class: Mapping[str, float | None]
    images: int
    skipped: tuple[str, ...]
    digest: str

    def to_json(self) -> JsonObject:
        """Return the stored document."""
        return {
            "miou": self.miou,
            "per_class": dict(self.per_class),
            "images": self.images,
            "skipped": list(self.skipped),
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, document: JsonObject) -> JobResult:
        """Return the object of a stored document."""
        return cls(**(document | {"skipped": tuple(document["skipped"])}))


@dataclass(frozen=True)
class EvaluationJob:
    """A snapshot of a job.

    Attributes:
        id: its name in paths.
        request: what to evaluate.
        state: queued to final.
        done: pictures whose counts are stored.
        total: pictures of the split; None until a worker has read its list.
        error: reason of a failure.
        result: scores of a job that has succeeded.
    """

    id: str
    request: JobRequest
    state: JobState
    done: int = 0
    total: int | None = None
    error: str | None = None
    result: JobResult | None = None


@dataclass(frozen=True)
class JobPlan:
    """The division of a job into steps; made once by its first worker and stored for all.

    Attributes:
        images: pictures of the split.
        images_per_step: pictures that take a few seconds together.
        pins: everything that the counts depend on; a worker with other values refuses the job.
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
        done: pictures whose counts are stored.
        begun_at: ``done`` at the last start; None before the first one and after a planned stop.
        rescues: restarts at the same picture.
    """

    done: int = 0
    begun_at: int | None = None
    rescues: int = 0

    def started(self) -> JobProgress:
        """Return the progress after a start or restart.

        Raises:
            JobError: too many workers died at the same picture.
        """
        rescues = self.rescues + 1 if self.begun_at == self.done else int(self.begun_at is not None)
        if rescues > MAX_RESCUES:
            raise JobError(f"the workers died {rescues} times at the same pictures, after {self.done}")
        return replace(self, begun_at=self.done, rescues=rescues)

    def advanced(self, images: int) -> JobProgress:
        """Return the progress when ``images`` pictures are stored; replayed steps change nothing."""
        return self if images <= self.done else JobProgress(images, begun_at=images)

    def suspended(self) -> JobProgress:
        """Return the progress after a planned stop, so that the next start counts as no restart."""
        return JobProgress(self.done)


class JobSteps(Protocol):
    """The work of jobs. Each call is one durable step, so arguments and results are plain JSON.

    Each call may raise ``JobHeldUpError``; it is repeated for up to ten minutes. Other exceptions, beside the
    errors of this module, are defects that may be temporary; they are repeated a few times.
    """

    def plan_job(self, request: JobRequest) -> JobPlan:
        """Divide a job into steps.

        Raises:
            JobError: the model, data set, split or protocol cannot be used.
        """
        ...

    def count_images(self, request: JobRequest, plan: JobPlan, images: range) -> JsonObject:
        """Evaluate some pictures of a job.

        Returns:
            Their counts; equal on every worker that matches the pins.

        Raises:
            JobError: a file is broken, or this worker does not match the pins.
            JobInterruptedError: the process is about to stop.
        """
        ...

    def finish_job(
        self,
        job_id: str,
        request: JobRequest,
        plan: JobPlan,
        counts: Sequence[JsonObject],
        *,
        confirm: Callable[[], None],
    ) -> JobResult:
        """Add up the counts and store the report; may be called twice.

        Args:
            job_id: of the job.
            request: of the job.
            plan: of the job.
            counts: results of ``count_images`` for all pictures, in order.
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


class EvaluationJobs(Protocol):
    """The jobs of a service in their database. Calls block; any thread may call.

    Every method raises ``BusyError`` when the database does not answer.
    """

    def enqueue_job(self, request: JobRequest, *, key: str | None = None) -> EvaluationJob:
        """Queue a job.

        Args:
            request: what to evaluate.
            key: of the client; a second call with the same key returns the job of the first one.

        Raises:
            ConflictError: the key was used for a request with other ``client_fields``.
            StorageFullError: there is no space for the job.
        """
        ...

    def find_by_key(self, key: str) -> EvaluationJob | None:
        """Return the job that was queued with a key, or None."""
        ...

    def get_job(self, job_id: str) -> EvaluationJob:
        """Return a job.

        Raises:
            NotFoundError: there is no such job.
        """
        ...

    def list_jobs(self) -> tuple[EvaluationJob, ...]:
        """Return all jobs, newest first."""
        ...

    def cancel_job(self, job_id: str) -> EvaluationJob:
        """Stop a job before its next step; a job that has ended stays as it is.

        Raises:
            NotFoundError: there is no such job.
        """
        ...
