"""The JSON documents of the HTTP interface, as ``/openapi.json`` describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from model.artifacts.evaluation_records import StoredEvaluation
from service.core.models.loaded_model import LoadedModel

MaskEncoding = Literal["png", "coco_rle", "none"]
Confidence = Literal["none", "mean", "png"]


class ProblemDocument(BaseModel):
    """An error (RFC 9457). Programs compare ``code``; ``request_id`` finds the log line."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str


class ProbeDocument(BaseModel):
    """The answer of a successful probe."""

    status: Literal["live", "started"]


class ChoiceDocument(BaseModel):
    """A way to run a model on this machine, and the median time of one picture of 512x1024 alone."""

    precision: str
    streams: int
    threads: int
    latency_ms: float


class EngineDocument(BaseModel):
    """A served version and the engine that runs it.

    `refused`: why faster engines do not run here; empty if there are none. `choice`: the timings on this
    processor from which the engine was chosen, the chosen one first, then the fastest first; empty if the
    settings decided.
    """

    name: str
    version: int
    engine: str
    device: str
    precision: str
    refused: str
    choice: list[ChoiceDocument]


class ReadinessDocument(BaseModel):
    """The service accepts work. The first model is the default one."""

    status: Literal["ready"] = "ready"
    models: list[EngineDocument]


class ClassDocument(BaseModel):
    """A class of a model and its id in masks."""

    id: int
    name: str
    color: tuple[int, int, int]


class ScoreDocument(BaseModel):
    """The newest evaluation of a kind; mIoU from 0 to 1."""

    dataset: str
    split: str
    protocol: str
    precision: str
    miou: float | None
    images: int
    finished_at: str


class ModelDocument(EngineDocument):
    """A served version with its classes and its evaluations."""

    default: bool
    architecture: str
    ignore_id: int
    classes: list[ClassDocument]
    evaluations: list[ScoreDocument]


class ModelListDocument(BaseModel):
    """All served versions: the first is the default one."""

    models: list[ModelDocument]


class ClassShareDocument(ClassDocument):
    """The share of a picture that a class covers.

    `confidence` is the mean probability of its pixels' labels, 0 to 1: null if the class has no pixel or the
    request did not ask for it.
    """

    pixels: int
    fraction: float
    confidence: float | None = None


class MaskDocument(BaseModel):
    """A mask inside JSON: a base64 palette PNG, or one COCO run-length encoding for each class."""

    encoding: MaskEncoding
    data: str | list[dict[str, object]] | None


class ConfidenceDocument(BaseModel):
    """The probability of each pixel's label: a base64 grey PNG, 255 = 1."""

    encoding: Literal["png"] = "png"
    data: str


class SegmentationDocument(BaseModel):
    """The answer for one picture; `confidence` is null unless it was asked for."""

    model: str
    version: int
    width: int
    height: int
    classes: list[ClassShareDocument]
    mask: MaskDocument
    confidence: ConfidenceDocument | None = None
    timings_ms: dict[str, float]


class HuggingFaceSegment(BaseModel):
    """One class of a picture.

    `score` is the mean confidence of its pixels, 0 to 1; `mask` is a base64 grey PNG, 255 inside.
    """

    label: str
    score: float
    mask: str


def engine_document(served: LoadedModel) -> EngineDocument:
    """Describe the engine of a version."""
    return EngineDocument(
        name=served.version.name,
        version=served.version.number,
        engine=served.engine.engine,
        device=served.engine.device,
        precision=served.engine.precision,
        refused=served.engine.refused,
        choice=[ChoiceDocument.model_validate(one, from_attributes=True) for one in served.choice],
    )


def model_document(
    served: LoadedModel, *, default: bool, scores: Sequence[StoredEvaluation]
) -> ModelDocument:
    """Describe a version.

    Args:
        served: the version.
        default: whether it answers requests that name no model.
        scores: its evaluations.
    """
    palette = served.manifest.palette
    classes = [
        ClassDocument(id=class_id, name=name, color=color)
        for class_id, (name, color) in enumerate(zip(palette.names, palette.colors, strict=True))
    ]
    return ModelDocument(
        **engine_document(served).model_dump(),
        default=default,
        architecture=served.manifest.architecture,
        ignore_id=palette.ignore_id,
        classes=classes,
        evaluations=[ScoreDocument.model_validate(one, from_attributes=True) for one in scores],
    )
