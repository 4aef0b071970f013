"""The paths that segment pictures, in one table. Each request is looked up once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from service.core.errors import VersionNotFoundError

ROUTES = (
    "/v1/segment",
    "/v1/models/{model}:segment",
    "/v1/models/{model}/versions/{version}:segment",
)
"""Patterns of the paths; the first one means the default model."""

_PATTERNS = tuple(re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", route)) for route in ROUTES)
_VERSION_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class SegmentTarget:
    """The model in a path.

    Attributes:
        route: one of ``ROUTES``; a closed set, unlike the path.
        model: name of the model; None = the default one.
        version: text of the version in the path; None = the version that is served under the name.
    """

    route: str
    model: str | None = None
    version: str | None = None

    @property
    def version_number(self) -> int | None:
        """The number of the version.

        Raises:
            VersionNotFoundError: the text is not a number.
        """
        return None if self.version is None else version_number(self.version)


def target_of(path: str) -> SegmentTarget | None:
    """Return the model in a path; None for other paths."""
    for route, pattern in zip(ROUTES, _PATTERNS, strict=True):
        if (match := pattern.fullmatch(path)) is not None:
            return SegmentTarget(route, **match.groupdict())
    return None


def version_number(text: str) -> int:
    """Return the number of a version in a path.

    Raises:
        VersionNotFoundError: the text is not a number.
    """
    if not _VERSION_NUMBER.fullmatch(text):
        raise VersionNotFoundError("a version is a number from 1")
    return int(text)
