"""``/admin/v1/evaluations``: submit evaluation jobs, watch them, cancel them, read their reports."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from model.evaluation.protocols import PROTOCOLS
from service.core.jobs.evaluation_job import EvaluationJob
from service.core.jobs.job import JobState
from service.core.jobs.submission import EvaluationSubmission
from service.core.readiness import Readiness
from service.http_api.admin.job_routes import ETA, PACE, JobRoutes, body_of
from service.http_api.segment.body import read_document

PREFIX = "/admin/v1/evaluations"

# The report may load only its own content.
_REPORT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "X-Content-Type-Options": "nosniff",
}


class SubmissionDocument(BaseModel):
    """A request for an evaluation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    dataset: str
    split: str = "val"
    protocol: str = "ss"
    skip_broken: bool = False


class EvaluationResultDocument(BaseModel):
    """The result of an evaluation; IoU from 0 to 1, null for a class that does not occur."""

    miou: float | None
    per_class: dict[str, float | None]
    images: int
    skipped: list[str]
    digest: str
    report: str


class EvaluationDocument(BaseModel):
    """The state of a job."""

    id: str
    state: JobState
    model: str
    dataset: str
    split: str
    protocol: str
    done: int
    total: int | None
    pictures_per_s: Annotated[float | None, Field(description=PACE)]
    eta_s: Annotated[float | None, Field(description=ETA)]
    error: str | None
    result: EvaluationResultDocument | None


class EvaluationListDocument(BaseModel):
    """All jobs, the newest first."""

    evaluations: list[EvaluationDocument]


class ChoicesDocument(BaseModel):
    """What a job can name."""

    datasets: list[str]
    protocols: list[str]


def evaluations_router(submission: EvaluationSubmission, pool: Executor, lifecycle: Readiness) -> APIRouter:
    """Return the routes of the evaluation jobs.

    Args:
        submission: submits and shows jobs; its functions block.
        pool: threads for these; the caller closes it.
        lifecycle: of the process; event streams end when it ends.
    """
    router = APIRouter(prefix=PREFIX, tags=["evaluations"])
    routes = JobRoutes(
        PREFIX, "evaluation", submission.jobs, pool=pool, lifecycle=lifecycle, describe=evaluation_document
    )

    @router.post("", status_code=202, openapi_extra=body_of(SubmissionDocument))
    async def submit(request: Request, response: Response) -> EvaluationDocument:
        """Queue a job.

        With the header `Idempotency-Key` the request may be repeated: the same body returns the same job,
        another body is a conflict.
        """
        wanted = await read_document(request, SubmissionDocument)
        submit = partial(submission.submit_evaluation, **wanted.model_dump())
        return await routes.submit(request, response, lambda key: submit(key=key))

    @router.get(":choices")
    async def choices() -> ChoicesDocument:
        """List what a job can name: data sets and protocols."""
        return ChoicesDocument(datasets=list(submission.datasets), protocols=list(PROTOCOLS))

    @router.get("")
    async def list_evaluations() -> EvaluationListDocument:
        """List all jobs, the newest first."""
        return EvaluationListDocument(evaluations=await routes.list_all())

    @router.get("/{job_id}")
    async def show(job_id: str) -> EvaluationDocument:
        """Show a job."""
        return await routes.show(job_id)

    @router.get("/{job_id}/events", response_class=StreamingResponse)
    async def events(job_id: str) -> StreamingResponse:
        """Stream the changes of a job as server-sent events `evaluation`, until it ends."""
        return await routes.events(job_id)

    @router.get("/{job_id}/report", response_class=Response)
    async def report(job_id: str) -> Response:
        """Return the report as one HTML page."""
        page = await routes.call(lambda: submission.report_page(job_id))
        return Response(page, media_type="text/html", headers=_REPORT_HEADERS)

    @router.get("/{job_id}/scores", response_class=Response)
    async def scores(job_id: str) -> Response:
        """Return the report as JSON: classes with intervals, confusion matrix, score of each picture."""
        document = await routes.call(lambda: submission.report_document(job_id))
        return Response(document, media_type="application/json")

    @router.delete("/{job_id}", status_code=202)
    async def cancel(request: Request, job_id: str) -> EvaluationDocument:
        """Cancel a job before its next step; a job that has ended does not change."""
        return await routes.cancel(request, job_id)

    return router


def evaluation_document(job: EvaluationJob) -> EvaluationDocument:
    """Describe a job."""
    result = None
    if job.result is not None:
        result = EvaluationResultDocument.model_validate(
            asdict(job.result) | {"report": f"{PREFIX}/{job.id}/report"}
        )
    return EvaluationDocument(
        id=job.id,
        state=job.state,
        model=str(job.request.version),
        dataset=job.request.dataset,
        split=job.request.split,
        protocol=job.request.protocol,
        done=job.done,
        total=job.total,
        pictures_per_s=job.pictures_per_s,
        eta_s=job.eta_s,
        error=job.error,
        result=result,
    )
