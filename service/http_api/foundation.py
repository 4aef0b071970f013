"""The empty application of both HTTP frontends: every error is answered as a problem."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from service.core.errors import ServiceError
from service.http_api import problems
from service.http_api.documents import ProblemDocument

INTERFACE_VERSION = "1"
"""Version of the HTTP interfaces, whose paths contain it; not of the program."""

ERROR_RESPONSE: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "An error.",
        "content": {problems.PROBLEM_TYPE: {"schema": ProblemDocument.model_json_schema()}},
    }
}
"""Description of every error in the OpenAPI documents."""


def problem_app(*, title: str, description: str, root_path: str = "") -> FastAPI:
    """Return an application without routes, without pages from the network, and without redirects.

    Args:
        title: of its OpenAPI document.
        description: text for people, paragraphs separated by empty lines.
        root_path: prefix of the service's URLs in its OpenAPI document.
    """
    return FastAPI(
        title=title,
        version=INTERFACE_VERSION,
        description=description,
        servers=[{"url": root_path}] if root_path else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            ServiceError: problems.service_error_response,
            HTTPException: problems.routing_error_response,
            Exception: problems.unexpected_error_response,
        },
        responses=ERROR_RESPONSE,
        generate_unique_id_function=lambda route: route.name,  # generated clients name their functions so
    )
