"""The HTTP application, put together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import ASGIApp

from service.core.models.model_host import ModelHost
from service.core.models.scoreboard import Scoreboard
from service.core.pictures.segmenter import Segmenter
from service.core.readiness import Readiness
from service.http_api import problems
from service.http_api.access import AccessCheck, AccessPolicy
from service.http_api.cors import allow_origins
from service.http_api.docs import add_docs
from service.http_api.edge import HttpEdge
from service.http_api.foundation import problem_app
from service.http_api.health import health_router
from service.http_api.models import models_router
from service.http_api.open_inference.infer import InferEndpoint
from service.http_api.open_inference.metadata import open_inference_router
from service.http_api.open_inference.openapi import describe_infer_routes
from service.http_api.open_inference.repository import repository_index_router
from service.http_api.picture_routes import PictureEndpoint, PictureRoutes
from service.http_api.root_path import RootPath
from service.http_api.segment.intake import Intake, SegmentOptions
from service.http_api.segment.openapi import describe_segment_routes
from service.http_api.segment.routes import INFER_ROUTES, ROUTES
from service.http_api.segment.segment import SegmentEndpoint
from service.open_inference.inference import Inference
from service.open_inference.statistics import InferenceStatistics
from service.spans import NO_TRACING, Tracing
from service.telemetry import Metrics

if TYPE_CHECKING:  # a service without the page does not load it
    from service.http_api.camera import AnswerFrames


@dataclass(frozen=True)
class HttpOptions:
    """How the HTTP frontend behaves.

    Args:
        access: conditions on a request.
        segment: limits of a segmentation request.
        cors_origins: origins whose pages may use the service from a browser; ``*`` = any.
        root_path: prefix under which a proxy offers the service; empty = none.
        page: serve the page for people at ``/``, and the WebSocket of its camera.
        max_streams: WebSockets of the page at the same time; the setting ``limits.max_calls``.
        pictures_at_once: of one request with several pictures, those that are queued at the same time.
    """

    access: AccessPolicy = field(default_factory=AccessPolicy)
    segment: SegmentOptions = field(default_factory=SegmentOptions)
    cors_origins: tuple[str, ...] = ()
    root_path: str = ""
    page: bool = False
    max_streams: int = 512
    pictures_at_once: int = 4


def create_app(
    segmenter: Segmenter,
    host: ModelHost,
    *,
    lifecycle: Readiness,
    metrics: Metrics,
    options: HttpOptions,
    scoreboard: Scoreboard | None = None,
    statistics: InferenceStatistics | None = None,
    tracing: Tracing = NO_TRACING,
    frames: AnswerFrames | None = None,
) -> ASGIApp:
    """Return the application.

    Args:
        segmenter: segments pictures.
        host: the served models.
        lifecycle: state that the probes report.
        metrics: counts the answers.
        options: of the frontend.
        scoreboard: results of evaluations; None = there are none.
        statistics: of the Open Inference Protocol, shared with the gRPC frontend; None = of HTTP alone.
        tracing: decides which requests are traced.
        frames: answers the camera of the page; None = the page has no camera.
    """
    statistics = statistics or InferenceStatistics()
    app = problem_app(
        title="BiSeNet segmentation service", description=_description(), root_path=options.root_path
    )
    app.include_router(models_router(host, scoreboard))
    app.include_router(health_router(host, lifecycle))
    app.include_router(open_inference_router(host, lifecycle, statistics))
    app.include_router(repository_index_router(host))
    describe_infer_routes(app)
    describe_segment_routes(app)
    add_docs(app)
    access = options.access
    if options.page:
        access = _add_page(app, access)
    intake = Intake(host, access=access, options=options.segment)
    segment = SegmentEndpoint(segmenter, intake)
    inference = Inference(segmenter, at_once=options.pictures_at_once)
    infer = InferEndpoint(inference, intake, metrics=metrics, statistics=statistics)
    endpoints: dict[str, PictureEndpoint] = {
        **dict.fromkeys(ROUTES, segment),
        **dict.fromkeys(INFER_ROUTES, infer),
    }
    routes = PictureRoutes(app, endpoints)
    guarded = allow_origins(AccessCheck(routes, access), options.cors_origins)
    if options.page and frames is not None:
        guarded = _add_camera(guarded, frames, options)
    edge = HttpEdge(guarded, lifecycle, metrics, tracing)
    return RootPath(edge, options.root_path) if options.root_path else edge


def _add_page(app: FastAPI, access: AccessPolicy) -> AccessPolicy:
    """Serve the page, and return the policy that lets it be loaded without a key."""
    from service.http_api.page import Page  # noqa: PLC0415  # a service without the page does not load it

    page = Page()
    app.include_router(page.router())
    return replace(access, open_paths=access.open_paths | page.paths)


def _add_camera(app: ASGIApp, frames: AnswerFrames, options: HttpOptions) -> ASGIApp:
    from service.http_api.camera import CameraRoute  # noqa: PLC0415  # likewise

    access = replace(options.access, scopes=("stream",))
    return CameraRoute(
        app, frames, access=access, origins=options.cors_origins, max_streams=options.max_streams
    )


_INTRODUCTION = """
Send a picture (JPEG, PNG or WebP), get its segmentation mask.

    curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/segment -o mask.png
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/v1/segment?output=overlay' -o overlay.png
    curl -F file=@photo.jpg -H 'Accept: application/json' 'http://127.0.0.1:8000/v1/segment?mask=none'

Every error, but for `/v2`, is application/problem+json with the request's id and one of these codes: """


def _description() -> str:
    codes = ", ".join(f"{code} ({status.value})" for code, status in problems.STATUS_OF_CODE.items())
    return f"{_INTRODUCTION}{codes}."
