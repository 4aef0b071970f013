"""``/admin/v1/predictions``: submit bulk predictions, watch them, cancel them."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from service.core.jobs.job import JobState
from service.core.jobs.prediction_job import PredictionJob, PredictionOutput
from service.core.jobs.submission import PredictionSubmission
from service.core.readiness import Readiness
from service.http_api.admin.job_routes import ETA, PACE, JobRoutes, body_of
from service.http_api.segment.body import read_document

PREFIX = "/admin/v1/predictions"


class PredictionSubmissionDocument(BaseModel):
    """A request for a bulk prediction; `source` and `target` are names of the configuration."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    source: str
    target: str
    output: PredictionOutput = "labels"


class PictureFailureDocument(BaseModel):
    """A picture without a mask, and why."""

    picture: str
    code: str
    message: str


class PredictionResultDocument(BaseModel):
    """The result of a bulk prediction."""

    written: int
    kept: Annotated[int, Field(description="Pictures whose masks were there before; they stay as they were.")]
    failed: int
    failures: Annotated[list[PictureFailureDocument], Field(description="The first ones, by name.")]
    not_taken: Annotated[dict[str, int], Field(description="Other files of the source, by kind.")]
    manifest: Annotated[str, Field(description="Path of the manifest below the target.")]
    digest: Annotated[str, Field(description="SHA-256 of the manifest.")]


class PredictionDocument(BaseModel):
    """The state of a job."""

    id: str
    state: JobState
    model: str
    source: str
    target: str
    output: PredictionOutput
    done: int
    total: int | None
    pictures_per_s: Annotated[float | None, Field(description=PACE)]
    eta_s: Annotated[float | None, Field(description=ETA)]
    error: str | None
    result: PredictionResultDocument | None


class PredictionListDocument(BaseModel):
    """All jobs, the newest first."""

    predictions: list[PredictionDocument]


class PredictionChoicesDocument(BaseModel):
    """What a job can name."""

    sources: list[str]
    targets: list[str]


def predictions_router(submission: PredictionSubmission, pool: Executor, lifecycle: Readiness) -> APIRouter:
    """Return the routes of the bulk predictions.

    Args:
        submission: submits and shows jobs; its functions block.
        pool: threads for these; the caller closes it.
        lifecycle: of the process; event streams end when it ends.
    """
    router = APIRouter(prefix=PREFIX, tags=["predictions"])
    routes = JobRoutes(
        PREFIX, "prediction", submission.jobs, pool=pool, lifecycle=lifecycle, describe=prediction_document
    )

    @router.post("", status_code=202, openapi_extra=body_of(PredictionSubmissionDocument))
    async def submit_prediction(request: Request, response: Response) -> PredictionDocument:
        """Queue a job.

        With the header `Idempotency-Key` the request may be repeated: the same body returns the same job,
        another body is a conflict.
        """
        wanted = await read_document(request, PredictionSubmissionDocument)
        submit = partial(submission.submit_prediction, **wanted.model_dump())
        return await routes.submit(request, response, lambda key: submit(key=key))

    @router.get(":choices")
    async def show_prediction_choices() -> PredictionChoicesDocument:
        """List what a job can name: sources and targets."""
        stores = submission.stores
        return PredictionChoicesDocument(sources=sorted(stores.sources), targets=sorted(stores.targets))

    @router.get("")
    async def list_predictions() -> PredictionListDocument:
        """List all jobs, the newest first."""
        return PredictionListDocument(predictions=await routes.list_all())

    @router.get("/{job_id}")
    async def show_prediction(job_id: str) -> PredictionDocument:
        """Show a job."""
        return await routes.show(job_id)

    @router.get("/{job_id}/events", response_class=StreamingResponse)
    async def stream_prediction_events(job_id: str) -> StreamingResponse:
        """Stream the changes of a job as server-sent events `prediction`, until it ends."""
        return await routes.events(job_id)

    @router.delete("/{job_id}", status_code=202)
    async def cancel_prediction(request: Request, job_id: str) -> PredictionDocument:
        """Cancel a job before its next step; masks that are written stay."""
        return await routes.cancel(request, job_id)

    return router


def prediction_document(job: PredictionJob) -> PredictionDocument:
    """Describe a job."""
    result = None
    if job.result is not None:
        result = PredictionResultDocument.model_validate(asdict(job.result))
    return PredictionDocument(
        id=job.id,
        state=job.state,
        model=str(job.request.version),
        source=job.request.source,
        target=job.request.target,
        output=job.request.output,
        done=job.done,
        total=job.total,
        pictures_per_s=job.pictures_per_s,
        eta_s=job.eta_s,
        error=job.error,
        result=result,
    )
