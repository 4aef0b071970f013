"""Evaluation jobs: what they are, how they move, how they are cut into steps; nothing here runs one.

A job is cut into shards, which workers share, and each shard into steps of a few seconds. A step is what
survives: its counts are stored, and after a crash the work goes on behind the last stored one.
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
"""What the jobs database stores; plain JSON."""

MAX_RESCUES = 3
"""How often work that died is begun again without having got any further; then the work is to blame."""

_STEPS_PER_SHARD = 4
_MAX_SHARDS = 256  # each costs its worker a few milliseconds, and the parent a place in a list


class JobError(Exception):
    """A job cannot be finished; the message says why, for people, and names no path outside its data set."""


class JobHeldUpError(Exception):
    """A step cannot be done for a reason that passes by itself; the message is like a ``JobError``'s."""


class JobInterruptedError(Exception):
    """A step was given up because this process is about to stop; it is begun again later."""


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
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
"""Every transition that there is."""


@dataclass(frozen=True)
class JobRequest:
    """What is to be evaluated.

    Args:
        version: the model.
        dataset: a name from the configuration, never a path.
        split: of the data set.
        protocol: a name of ``model.evaluation.protocols``.
        skip_broken: leave pairs out, and count them, whose files are broken; else they fail the job.
        reference: how the client called the model; None = by the version itself.
        precision: what every worker computes in; None = what the first one chooses.
    """

    version: ModelVersion
    dataset: str
    split: str
    protocol: str
    skip_broken: bool = False
    reference: str | None = None
    precision: Precision | None = None

    @property
    def said(self) -> tuple[str, str, str, str, bool]:
        """What the client said, whatever its reference to the model means by now."""
        model = self.reference or str(self.version)
        return model, self.dataset, self.split, self.protocol, self.skip_broken

    def to_json(self) -> JsonObject:
        """Return what is stored: equal requests give equal documents."""
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
        """Return what ``to_json`` stored."""
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
    """What came out.

    Attributes:
        miou: mean over the classes that are there, 0..1; None when there is none.
        per_class: IoU by class name, 0..1; None for a class that is neither in truth nor guess.
        images: how many were counted.
        skipped: the broken pairs that were left out, as the list calls them.
        digest: SHA-256 over the report without its times: equal runs have equal digests.
    """

    miou: float | None
    per_class: Mapping[str, float | None]
    images: int
    skipped: tuple[str, ...]
    digest: str

    def to_json(self) -> JsonObject:
        """Return what is stored."""
        return {
            "miou": self.miou,
            "per_class": dict(self.per_class),
            "images": self.images,
            "skipped": list(self.skipped),
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, document: JsonObject) -> JobResult:
        """Return what ``to_json`` stored."""
        return cls(**(document | {"skipped": tuple(document["skipped"])}))


@dataclass(frozen=True)
class EvaluationJob:
    """One job, as it stood a moment ago.

    Attributes:
        id: what it is called in paths.
        request: what is evaluated.
        state: where it stands.
        done: pictures that are counted for good.
        total: pictures of the split; None until a worker has read the list.
        error: why it failed.
        result: what came out, once it has succeeded.
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
    """What a worker found out before the first picture; stored, so that every later worker obeys it.

    Attributes:
        images: pictures of the split.
        images_per_step: how many of them make a few seconds of work.
        pins: all that the numbers depend on; a worker that is another one refuses.
    """

    images: int
    images_per_step: int
    pins: JsonObject

    def to_json(self) -> JsonObject:
        """Return what is stored."""
        return {"images": self.images, "images_per_step": self.images_per_step, "pins": self.pins}

    @classmethod
    def from_json(cls, document: JsonObject) -> JobPlan:
        """Return what ``to_json`` stored."""
        return cls(**document)

    def shards(self) -> tuple[tuple[range, ...], ...]:
        """Cut the pictures into shards, and each of them into steps: every picture is in one step."""
        steps = tuple(
            range(start, min(start + self.images_per_step, self.images))
            for start in range(0, self.images, self.images_per_step)
        )
        size = max(_STEPS_PER_SHARD, math.ceil(len(steps) / _MAX_SHARDS))
        return tuple(steps[start : start + size] for start in range(0, len(steps), size))


@dataclass(frozen=True)
class Progress:
    """How far a shard is, and how often it was begun again since it last got further.

    Attributes:
        done: pictures whose counts are stored.
        begun_at: ``done`` when it was begun last; None before that, and after a worker has laid it down.
        rescues: how often it was begun again at the same place.
    """

    done: int = 0
    begun_at: int | None = None
    rescues: int = 0

    def begin(self) -> Progress:
        """Begin the shard, or begin it again where it was left off.

        Raises:
            JobError: every worker that began it here has died.
        """
        rescues = self.rescues + 1 if self.begun_at == self.done else int(self.begun_at is not None)
        if rescues > MAX_RESCUES:
            raise JobError(f"the workers died {rescues} times at the same pictures, after {self.done}")
        return replace(self, begun_at=self.done, rescues=rescues)

    def advance(self, images: int) -> Progress:
        """Take note that so many pictures are stored; a replay of stored steps changes nothing."""
        return self if images <= self.done else Progress(images, begun_at=images)

    def lay_down(self) -> Progress:
        """Take note that the worker stopped on purpose, so that beginning again is no rescue."""
        return Progress(self.done)


class JobWork(Protocol):
    """What a worker does; each call is one durable step, so arguments and answers are plain JSON.

    Each may raise ``JobHeldUpError``: it is called again until ten minutes have passed. What it raises beside
    the errors of this module is a defect, but may pass, too: it is tried again a few times.
    """

    def plan(self, request: JobRequest) -> JobPlan:
        """Look at the data set and at this machine.

        Raises:
            JobError: model, data set, split or protocol cannot be used.
        """
        ...

    def count(self, request: JobRequest, plan: JobPlan, images: range) -> JsonObject:
        """Evaluate some of the pictures.

        Returns:
            Their counts; the same on every worker that fits the pins.

        Raises:
            JobError: a file is broken, or this worker does not fit the pins.
            JobInterruptedError: the process is about to stop.
        """
        ...

    def finish(
        self,
        job_id: str,
        request: JobRequest,
        plan: JobPlan,
        counts: Sequence[JsonObject],
        *,
        confirm: Callable[[], None],
    ) -> JobResult:
        """Add up what ``count`` returned, in order, and store the report; may happen twice.

        Args:
            job_id: of the job.
            request: of the job.
            plan: of the job.
            counts: of all its pictures.
            confirm: called right before the report is stored; raises if the job was cancelled meanwhile.

        Raises:
            JobError: there is no room for the report, or nothing to report.
        """
        ...

    def rest(self) -> None:
        """Give back what was held for jobs: none runs here; called now and then as long as that is so."""
        ...

    def stop(self) -> None:
        """Give up what runs, and whatever is begun from now on, with ``JobInterruptedError``."""
        ...


class EvaluationJobs(Protocol):
    """The jobs of a service, wherever they are kept; blocks, and may be called from any thread.

    Every method raises ``BusyError`` when the jobs database does not answer.
    """

    def submit(self, request: JobRequest, *, key: str | None = None) -> EvaluationJob:
        """Queue a job.

        Args:
            request: what is to be evaluated.
            key: chosen by the client: a second call with the same one returns the first one's job.

        Raises:
            ConflictError: the key was used for another request; the client ``said`` something else.
            StorageFullError: there is no room to write it down.
        """
        ...

    def of_key(self, key: str) -> EvaluationJob | None:
        """Return the job that was submitted with a key, or None when there is none."""
        ...

    def get(self, job_id: str) -> EvaluationJob:
        """Return a job.

        Raises:
            NotFoundError: there is none of this id.
        """
        ...

    def list(self) -> tuple[EvaluationJob, ...]:
        """Return all jobs, the newest first."""
        ...

    def cancel(self, job_id: str) -> EvaluationJob:
        """Stop a job before its next step; one that has ended stays as it is.

        Raises:
            NotFoundError: there is none of this id.
        """
        ...
