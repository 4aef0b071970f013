"""Bulk predictions: their requests and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from model.artifacts.manifest import ModelVersion
from service.core.device.engine import Precision
from service.core.jobs.job import Job, JobKind, Jobs, JsonObject

PredictionOutput = Literal["labels", "overlay", "coco"]
"""What the masks show: palette PNG of class ids, colours over the picture, or COCO panoptic segments."""


@dataclass(frozen=True)
class PredictionRequest:
    """What to predict.

    Args:
        version: the model version.
        source: name of the pictures in the configuration, never a path.
        target: name of the place of the masks in the configuration.
        output: content of the masks.
        reference: the model as the client named it.
        precision: of the computation on every worker; None = the choice of the first one.
    """

    version: ModelVersion
    source: str
    target: str
    output: PredictionOutput
    reference: str
    precision: Precision | None = None

    @property
    def client_fields(self) -> tuple[str, str, str, str]:
        """The request as the client sent it, independent of what its model reference means now."""
        return self.reference, self.source, self.target, self.output

    def to_json(self) -> JsonObject:
        """Return the stored document; equal requests have equal ones."""
        return asdict(self) | {"version": str(self.version)}

    @classmethod
    def from_json(cls, document: JsonObject) -> PredictionRequest:
        """Return the object of a stored document."""
        return cls(**(document | {"version": ModelVersion.parse(document["version"])}))


@dataclass(frozen=True)
class PictureFailure:
    """A picture without a mask.

    Attributes:
        picture: its path below the source.
        code: of the error, as in answers of the service.
        message: what is wrong with it.
    """

    picture: str
    code: str
    message: str


@dataclass(frozen=True)
class PredictionResult:
    """What a job has written.

    Attributes:
        written: number of masks that the job has written.
        kept: number of pictures whose masks were there before the job; they were not predicted.
        failed: number of pictures without a mask.
        failures: the first of these, by name; the manifest has them all.
        not_taken: number of other files in the source, by kind.
        manifest: path of the manifest below the target.
        digest: SHA-256 of the manifest; equal jobs on equal pictures have equal ones.
    """

    written: int
    kept: int
    failed: int
    failures: tuple[PictureFailure, ...]
    not_taken: Mapping[str, int]
    manifest: str
    digest: str

    def to_json(self) -> JsonObject:
        """Return the stored document."""
        return asdict(self) | {"failures": [asdict(one) for one in self.failures]}

    @classmethod
    def from_json(cls, document: JsonObject) -> PredictionResult:
        """Return the object of a stored document."""
        failures = tuple(PictureFailure(**one) for one in document["failures"])
        return cls(**(document | {"failures": failures}))


PREDICTIONS = JobKind("predict", PredictionRequest.from_json, PredictionResult.from_json)
"""The kind of bulk predictions."""

PredictionJob = Job[PredictionRequest, PredictionResult]
PredictionJobs = Jobs[PredictionRequest, PredictionResult]
