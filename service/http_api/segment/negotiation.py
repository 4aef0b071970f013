"""Content negotiation: ``Accept`` against the media types of an output (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from service.core.errors import InvalidArgumentError, NotAcceptableError

Output = Literal["labels", "color", "overlay"]

PNG = "image/png"
JPEG = "image/jpeg"
JSON = "application/json"
NPY = "application/x-npy"
RAW = "application/octet-stream"

OFFERS: dict[Output, tuple[str, ...]] = {
    "labels": (PNG, JSON, NPY, RAW),
    "color": (PNG, JPEG, JSON, NPY, RAW),
    "overlay": (PNG, JPEG, JSON, NPY, RAW),
}
"""Media types of each output, the preferred one first; a JPEG would change label ids."""

_MAX_RANGES = 64
"""Ranges in all ``Accept`` headers: browsers send about ten; 16,000 would block the event loop for 80 ms."""

_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


@dataclass(frozen=True)
class _Range:
    media_type: str
    quality: float

    @property
    def specificity(self) -> int:
        if self.media_type == "*/*":
            return 0
        return 1 if self.media_type.endswith("/*") else 2

    def covers(self, media_type: str) -> bool:
        kind = media_type.partition("/")[0]
        return self.media_type in (media_type, f"{kind}/*", "*/*")


def negotiate(accept: Sequence[str], output: Output, *, confidence: bool = False) -> str:
    """Choose the media type of an answer.

    Args:
        accept: the values of all ``Accept`` headers; none = any type.
        output: the output that the client asks for.
        confidence: whether the client asks for the confidence of labels; then the answer is JSON.

    Returns:
        The offered type with the highest quality; among equals the preferred one.

    Raises:
        NotAcceptableError: no media type of this output is accepted.
        InvalidArgumentError: ``Accept`` has too many alternatives.
    """
    offers = (JSON,) if confidence else OFFERS[output]
    ranges = _parse(",".join(accept)) if accept else []
    if not ranges:
        return offers[0]
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    if _quality(best, ranges) == 0:
        answer = "an answer with confidence" if confidence else f"output {output!r}"
        raise NotAcceptableError(f"{answer} is one of {', '.join(offers)}")
    return best


def _quality(offer: str, ranges: Sequence[_Range]) -> float:
    """Return the quality that the most specific range which covers an offer gives it."""
    covering = [r for r in ranges if r.covers(offer)]
    return max(covering, key=lambda r: r.specificity).quality if covering else 0.0


def _parse(accept: str) -> list[_Range]:
    elements = [element for element in accept.split(",") if element.strip()]
    if len(elements) > _MAX_RANGES:
        raise InvalidArgumentError(f"Accept has at most {_MAX_RANGES} alternatives")
    return [_parse_range(element) for element in elements]


def _parse_range(element: str) -> _Range:
    media_type, *parameters = (part.strip().lower() for part in element.split(";"))
    quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
    # A malformed weight gives the range no weight: another range decides, or the client gets a 406.
    return _Range(media_type, float(quality) if _QUALITY.fullmatch(quality) else 0.0)
