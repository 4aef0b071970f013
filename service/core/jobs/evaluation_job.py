"""Evaluation jobs: their requests and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.artifacts.manifest import ModelVersion
from service.core.device.engine import Precision
from service.core.jobs.job import Job, JobKind, Jobs, JsonObject


@dataclass(frozen=True)
class EvaluationRequest:
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
    def from_json(cls, document: JsonObject) -> EvaluationRequest:
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
class EvaluationResult:
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
    def from_json(cls, document: JsonObject) -> EvaluationResult:
        """Return the object of a stored document."""
        return cls(**(document | {"skipped": tuple(document["skipped"])}))


EVALUATIONS = JobKind("evaluate", EvaluationRequest.from_json, EvaluationResult.from_json)
"""The kind of evaluation jobs."""

EvaluationJob = Job[EvaluationRequest, EvaluationResult]
EvaluationJobs = Jobs[EvaluationRequest, EvaluationResult]
