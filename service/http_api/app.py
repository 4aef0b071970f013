"""The HTTP application, put together."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from service.core.errors import ServiceError
from service.core.host import ModelHost
from service.core.segmenter import Segmenter
from service.http_api import problems
from service.http_api.access import AccessPolicy, Gate
from service.http_api.docs import add_docs
from service.http_api.documents import ProblemDocument
from service.http_api.edge import Edge
from service.http_api.health import Lifecycle, health_router
from service.http_api.models import models_router
from service.http_api.segment import SegmentEndpoint, SegmentOptions, segment_router

INTERFACE_VERSION = "1"
"""Of the HTTP interface, whose paths begin with it; not of the program."""


@dataclass(frozen=True)
class HttpOptions:
    """How the HTTP frontend behaves.

    Args:
        access: who may ask.
        segment: limits of a segmentation request.
    """

    access: AccessPolicy = field(default_factory=AccessPolicy)
    segment: SegmentOptions = field(default_factory=SegmentOptions)


def create_app(
    segmenter: Segmenter, host: ModelHost, pool: Executor, lifecycle: Lifecycle, options: HttpOptions
) -> ASGIApp:
    """Return the application.

    Args:
        segmenter: answers pictures.
        host: knows the served models.
        pool: threads that encode answers.
        lifecycle: what the probes tell.
        options: how it behaves.
    """
    app = FastAPI(
        title="BiSeNet segmentation service",
        version=INTERFACE_VERSION,
        description=_description(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            ServiceError: problems.service_error_response,
            HTTPException: problems.routing_error_response,
            RequestValidationError: problems.invalid_query_response,
            ClientDisconnect: problems.disconnected_response,
            Exception: problems.unexpected_error_response,
        },
        responses={
            "default": {
                "description": "An error.",
                "content": {problems.PROBLEM_TYPE: {"schema": ProblemDocument.model_json_schema()}},
            }
        },
    )
    # Before the model routes: there "{model}" would match "NAME:segment" and answer 404 for a wrong method.
    app.include_router(segment_router(SegmentEndpoint(segmenter, host, pool, options.segment)))
    app.include_router(models_router(host))
    app.include_router(health_router(host, lifecycle))
    add_docs(app)
    return Edge(Gate(app, options.access))


_INTRODUCTION = """
Send a picture (JPEG, PNG or WebP), get its segmentation mask.

    curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/segment -o mask.png
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/v1/segment?output=overlay' -o overlay.png
    curl -F file=@photo.jpg -H 'Accept: application/json' 'http://127.0.0.1:8000/v1/segment?mask=none'

Every error is application/problem+json with the request's id and one of these codes: """


def _description() -> str:
    codes = ", ".join(f"{code} ({status.value})" for code, status in problems.STATUS_OF_CODE.items())
    return f"{_INTRODUCTION}{codes}."
