"""The query parameters of ``/v1/segment``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from model.errors import PaletteError
from model.evaluation.protocols import Protocol
from model.labels import ClassPalette
from service.core.errors import InvalidArgumentError
from service.core.pictures.codec import DEFAULT_ALPHA
from service.core.pictures.passes import FULL_DETAIL
from service.http_api.documents import Confidence, MaskEncoding
from service.http_api.segment.negotiation import Output, negotiate
from service.http_api.segment.rendering import RenderingRequest

MAX_TIMEOUT_MS = 600_000
TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_SAID_IN_THE_PATH = (
    ": the path says it, /v1/models/{model}:segment or /v1/models/{model}/versions/{version}:segment"
)
Detail = Literal["reduced", "full"]

_SIX_DIGITS = re.compile(r"[0-9]{1,6}")


class SegmentQuery(BaseModel):
    """The query parameters; each description ends with the values that are allowed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: Output = Field("color", description="Content of the answer: labels, color or overlay.")
    alpha: float = Field(
        DEFAULT_ALPHA,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Opacity of an overlay's colours: 0 to 1.",
    )
    classes: list[str] = Field(
        [],
        description="The classes to keep: ids or names, separated by commas. Others become the model's "
        "`ignore_id`, which `/v1/models` tells; 255 as a rule.",
    )
    mask: MaskEncoding = Field("png", description="Form of the mask in a JSON answer: png, coco_rle or none.")
    confidence: Confidence = Field(
        "none",
        description="Probability of the labels in the answer, which is JSON then: none, mean (of each class) "
        "or png (of each pixel, and mean).",
    )
    detail: Detail = Field(
        "reduced",
        description="How much of a large picture the network sees: reduced to `limits.max_infer_pixels`, or "
        "full, tile by tile (slower, and without confidence): reduced or full.",
    )
    timeout_ms: int | None = Field(
        None,
        ge=1,
        le=MAX_TIMEOUT_MS,
        description=f"Milliseconds after which the answer is no longer needed: 1 to {MAX_TIMEOUT_MS}. "
        f"The header {TIMEOUT_HEADER} means the same.",
    )

    @property
    def tiles(self) -> Protocol | None:
        """How the picture is labelled tile by tile; None = at once."""
        return FULL_DETAIL if self.detail == "full" else None


_NOTHING_ASKED = SegmentQuery.model_validate({})


def segment_query(request: Request) -> SegmentQuery:
    """Read the query of a request.

    Raises:
        InvalidArgumentError: a parameter is unknown or not valid, one other than ``classes`` is repeated, or
            two contradict each other.
    """
    asked = request.query_params
    if not asked:
        return _NOTHING_ASKED
    names = [name for name, _ in asked.multi_items() if name != "classes"]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InvalidArgumentError(f"query parameter {repeated!r} is given more than once")
    values: dict[str, Any] = dict(asked)
    if "classes" in asked:
        values["classes"] = asked.getlist("classes")
    try:
        query = SegmentQuery.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _invalid_parameter(first) from None
    if query.tiles is not None and query.confidence != "none":
        raise InvalidArgumentError("detail=full gives no confidence: leave one of the two out")
    return query


def _invalid_parameter(error: Mapping[str, Any]) -> InvalidArgumentError:
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        advice = _SAID_IN_THE_PATH if name in ("model", "version") else ""
        return InvalidArgumentError(f"unknown query parameter {name!r}{advice}")
    field = SegmentQuery.model_fields.get(name)
    advice = f" {field.description}" if field is not None else ""
    return InvalidArgumentError(f"query parameter {name!r} is not valid.{advice}")


def timeout_s(request: Request, query: SegmentQuery, default_s: float) -> float:
    """Return the time after which the client no longer needs the answer, in seconds.

    Raises:
        InvalidArgumentError: the header is not a number of milliseconds in range.
    """
    if query.timeout_ms is not None:
        return query.timeout_ms / 1e3
    return header_timeout_s(request, default_s)


def header_timeout_s(request: Request, default_s: float) -> float:
    """Return what ``X-Request-Timeout-Ms`` says, in seconds; the default where there is none.

    Raises:
        InvalidArgumentError: it is not a number of milliseconds in range.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return default_s
    if not _SIX_DIGITS.fullmatch(text) or not 1 <= int(text) <= MAX_TIMEOUT_MS:
        raise InvalidArgumentError(f"header {TIMEOUT_HEADER} is a whole number from 1 to {MAX_TIMEOUT_MS}")
    return int(text) / 1e3


def rendering_request(request: Request, query: SegmentQuery, palette: ClassPalette) -> RenderingRequest:
    """Return the form of the answer that a request asks for.

    Raises:
        NotAcceptableError: ``Accept`` has no media type of the output.
        InvalidArgumentError: ``Accept`` is too long, or a class is unknown.
    """
    return RenderingRequest(
        media_type=negotiate(
            request.headers.getlist("accept"), query.output, confidence=query.confidence != "none"
        ),
        output=query.output,
        alpha=query.alpha,
        mask=query.mask,
        confidence=query.confidence,
        keep=class_ids(query.classes, palette) if query.classes else None,
    )


def class_ids(classes: Sequence[str], palette: ClassPalette) -> frozenset[int]:
    """Return the ids of the classes to keep, in ``[0, K)``.

    Args:
        classes: values of the query parameter; a name that contains a comma stands alone.
        palette: of the model.

    Raises:
        InvalidArgumentError: a value is neither a name nor an id of the palette.
    """
    wanted = [name for text in classes for name in ([text] if text in palette.names else text.split(","))]
    try:
        return frozenset(palette.id_of(name.strip()) for name in wanted)
    except PaletteError as error:
        raise InvalidArgumentError(f"query parameter 'classes': {error}") from None
