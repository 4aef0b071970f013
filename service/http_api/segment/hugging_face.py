"""The image-segmentation task as Hugging Face's clients ask for it.

A body is a file, whatever its Content-Type is, or JSON: {"inputs": base64, "parameters": {...}}. The answer
is a list with one {"label", "score", "mask"} for each class that occurs.

Source:
    https://huggingface.co/docs/inference-providers/tasks/image-segmentation: inputs, parameters and answer.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.labels import UInt8Array
from model.pictures.image import ImageHeader, ImageLimits
from service.core.errors import InvalidArgumentError
from service.core.pictures import codec
from service.core.pictures.picture import EncodedPicture, Picture
from service.core.pictures.segmenter import Segmentation
from service.http_api.documents import HuggingFaceSegment
from service.http_api.segment.negotiation import JSON
from service.http_api.segment.parameters import SegmentQuery
from service.http_api.segment.picture_body import base64_file, json_document, picture_of
from service.http_api.segment.rendering import Plan, Rendering, Task, render_masks

FILE_KEY = "inputs"
PARAMETERS_KEY = "parameters"
_KEYS = (FILE_KEY, PARAMETERS_KEY)
_RENDER_BYTES = 6  # pairs of label and confidence in 2 bytes, a mask, and files as base64


class MaskParameters(BaseModel):
    """What a client may ask for in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = Field(0, ge=0, le=1, description="Classes with a lower score are left out: 0 to 1.")
    mask_threshold: float = Field(
        0, ge=0, le=1, description="Pixels with a lower confidence are left out of their mask: 0 to 1."
    )
    overlap_mask_area_threshold: float = Field(
        0, ge=0, le=1, description="Changes nothing: masks of different classes do not overlap."
    )
    subtask: Literal["semantic"] = Field("semantic", description="semantic: one mask for each class.")


_DEFAULTS = MaskParameters.model_validate({})


class HuggingFacePicture:
    """The file in ``inputs``; decoded by the thread that reads the picture.

    Args:
        body: the JSON document.

    Attributes:
        parameters: what the document asks for, once its header was read.
    """

    def __init__(self, body: bytes) -> None:
        self.parameters = _DEFAULTS
        self._body = body

    def header(self, limits: ImageLimits) -> ImageHeader:
        """Decode the document and read the header of the file in it.

        Raises:
            InvalidArgumentError: the document is not as described; the message says why.
            ServiceError: what ``EncodedPicture`` raises.
        """
        document = json_document(self._body)
        if unknown := [key for key in document if key not in _KEYS]:
            raise InvalidArgumentError(f"unknown key {unknown[0]!r} in the JSON body: it holds {_KEYS}")
        text = document.get(FILE_KEY)
        if not isinstance(text, str):
            raise InvalidArgumentError(f"the JSON body needs {FILE_KEY!r}: the file as base64")
        self.parameters = _parameters(document.get(PARAMETERS_KEY))
        self._file = EncodedPicture(base64_file(text, FILE_KEY))
        return self._file.header(limits)

    def read(self, limits: ImageLimits) -> UInt8Array:
        """Decode the file."""
        return self._file.read(limits)


def plan(content_type: str, query: SegmentQuery) -> Plan:
    """Return what a request asks for.

    Args:
        content_type: of the request, or empty.
        query: of the request.

    Raises:
        InvalidArgumentError: the query has another parameter than ``timeout_ms``.
    """
    if query.model_fields_set - {"timeout_ms"}:
        raise InvalidArgumentError(f"parameters stand in the JSON body here, as {PARAMETERS_KEY!r}")
    return partial(_task, content_type)


def _task(content_type: str, body: bytes) -> Task:
    if not body.lstrip().startswith(b"{"):
        return _task_of(picture_of(content_type, body), lambda: _DEFAULTS)
    picture = HuggingFacePicture(body)
    return _task_of(picture, lambda: picture.parameters)


def _task_of(picture: Picture, parameters: Callable[[], MaskParameters]) -> Task:
    def render(segmentation: Segmentation, receive_s: float) -> Rendering:
        return render_masks(lambda one: list(segments(one, parameters())), segmentation, receive_s)

    return Task(picture, render, _RENDER_BYTES, confidence=True, media_type=JSON)


def segments(segmentation: Segmentation, parameters: MaskParameters) -> Iterator[HuggingFaceSegment]:
    """Make the elements of an answer, in the order of the class ids.

    Args:
        segmentation: with confidence.
        parameters: what the client asked for.
    """
    label_map, confidence_HW = segmentation.label_map, segmentation.confidence_HW
    assert confidence_HW is not None
    counts = codec.confidence_histogram(label_map, confidence_HW)
    least = math.ceil(codec.FULL_CONFIDENCE * parameters.mask_threshold)
    counts[:, :least] = 0
    for class_id, name in enumerate(label_map.palette.names):
        score = codec.mean_confidence(counts[class_id])
        if score is None or score < parameters.threshold:
            continue
        is_inside_HW = label_map.ids_HW == class_id
        if least:
            is_inside_HW &= confidence_HW >= least
        mask = base64.b64encode(codec.encode_mask_png(is_inside_HW)).decode()
        yield HuggingFaceSegment(label=name, score=score, mask=mask)


def _parameters(wanted: Any) -> MaskParameters:
    if wanted is None:
        return _DEFAULTS
    if not isinstance(wanted, dict):
        raise InvalidArgumentError(f"{PARAMETERS_KEY!r} is an object")
    try:
        return MaskParameters.model_validate({key: v for key, v in wanted.items() if v is not None})
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
    field = MaskParameters.model_fields.get(name)
    if field is None:
        raise InvalidArgumentError(f"unknown parameter {name!r}")
    raise InvalidArgumentError(f"parameter {name!r} is not valid. {field.description}")
