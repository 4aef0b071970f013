"""The paths that take pictures, in one table for all protocols; each request is looked up once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from service.core.models.model_host import version_number

NATIVE_ROUTES = (
    "/v1/segment",
    "/v1/models/{model}:segment",
    "/v1/models/{model}/versions/{version}:segment",
)
"""The service's own. The first one asks the default model."""

HUGGING_FACE_ROUTES = ("/hf/{model}", "/models/{model}")
"""The same twice: clients that are given a base URL append the second one to it."""

ROUTES = NATIVE_ROUTES + HUGGING_FACE_ROUTES

INFER_ROUTES = (
    "/v2/models/{model}/infer",
    "/v2/models/{model}/versions/{version}/infer",
)
"""Those of the Open Inference Protocol."""

_PATTERNS = {
    route: re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", route)) for route in (*ROUTES, *INFER_ROUTES)
}


@dataclass(frozen=True)
class SegmentTarget:
    """The model in a path.

    Attributes:
        route: one of ``ROUTES`` or ``INFER_ROUTES``; a closed set, unlike the path.
        model: name of the model; None = the default one.
        version: text of the version in the path; None = the version that is served under the name.
    """

    route: str
    model: str | None = None
    version: str | None = None

    @property
    def is_hugging_face(self) -> bool:
        """Whether a client of Hugging Face asks."""
        return self.route in HUGGING_FACE_ROUTES

    @property
    def version_number(self) -> int | None:
        """The number of the version.

        Raises:
            VersionNotFoundError: the text is not a number.
        """
        return None if self.version is None else version_number(self.version)


def target_of(path: str) -> SegmentTarget | None:
    """Return the model in a path; None for paths that take no pictures."""
    for route, pattern in _PATTERNS.items():
        if (match := pattern.fullmatch(path)) is not None:
            return SegmentTarget(route, **match.groupdict())
    return None


def is_open_inference(path: str) -> bool:
    """Return whether a path belongs to the Open Inference Protocol, whose errors are plain JSON."""
    return path == "/v2" or path.startswith("/v2/")
