"""``/admin/v1/evaluations``: submit evaluation jobs, watch them, cancel them, read their reports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict
from typing import TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict

from model.evaluation.protocols import PROTOCOLS
from service.core.deadline import within
from service.core.errors import BusyError, InvalidArgumentError
from service.core.jobs.evaluation_job import EvaluationJob, JobState, JsonObject
from service.core.jobs.submission import EvaluationSubmission
from service.core.readiness import Readiness
from service.http_api.admin.audit import note_change
from service.http_api.segment.body import read_document

PREFIX = "/admin/v1/evaluations"

_DATABASE_TIMEOUT_S = 10.0
"""Longest wait for the jobs database, in seconds: another process can lock a file for half a minute."""

_LOOK_S = 0.5
_KEEP_ALIVE_S = 15.0
# The report may load only its own content.
_REPORT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "X-Content-Type-Options": "nosniff",
}

T = TypeVar("T")


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
    error: str | None
    result: EvaluationResultDocument | None


class EvaluationListDocument(BaseModel):
    """All jobs, the newest first."""

    evaluations: list[EvaluationDocument]


class ChoicesDocument(BaseModel):
    """What a job can name."""

    datasets: list[str]
    protocols: list[str]


class _EvaluationHandlers:
    """Calls the blocking functions of the jobs in threads."""

    def __init__(self, submission: EvaluationSubmission, pool: Executor) -> None:
        self.submission = submission
        self._pool = pool

    async def call(self, function: Callable[[], T]) -> T:
        async with within(_DATABASE_TIMEOUT_S, lambda: BusyError("the jobs database does not answer")):
            return await asyncio.wrap_future(self._pool.submit(function))

    async def get(self, job_id: str) -> EvaluationJob:
        return await self.call(lambda: self.submission.jobs.get_job(job_id))


def evaluations_router(submission: EvaluationSubmission, pool: Executor, lifecycle: Readiness) -> APIRouter:
    """Return the routes of the evaluation jobs.

    Args:
        submission: submits and shows jobs; its functions block.
        pool: threads for these; the caller closes it.
        lifecycle: of the process; event streams end when it ends.
    """
    router = APIRouter(prefix=PREFIX, tags=["evaluations"])
    handlers = _EvaluationHandlers(submission, pool)

    @router.post(
        "",
        status_code=202,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": SubmissionDocument.model_json_schema()}},
            }
        },
    )
    async def submit(request: Request, response: Response) -> EvaluationDocument:
        """Queue a job.

        With the header `Idempotency-Key` the request may be repeated: the same body returns the same job,
        another body is a conflict.
        """
        wanted = await read_document(request, SubmissionDocument)
        key = _idempotency_key(request)
        with _noted_if_unknown(request, before=None):
            earlier = await handlers.call(lambda: submission.find_submitted(key))
            job = await handlers.call(lambda: submission.submit_evaluation(**wanted.model_dump(), key=key))
        note_change(request, before=_noted(earlier), after=_noted(job))
        response.headers["Location"] = f"{PREFIX}/{job.id}"
        return evaluation_document(job)

    @router.get(":choices")
    async def choices() -> ChoicesDocument:
        """List what a job can name: data sets and protocols."""
        return ChoicesDocument(datasets=list(submission.datasets), protocols=list(PROTOCOLS))

    @router.get("")
    async def list_evaluations() -> EvaluationListDocument:
        """List all jobs, the newest first."""
        jobs = await handlers.call(submission.jobs.list_jobs)
        return EvaluationListDocument(evaluations=[evaluation_document(job) for job in jobs])

    @router.get("/{job_id}")
    async def show(job_id: str) -> EvaluationDocument:
        """Show a job."""
        return evaluation_document(await handlers.get(job_id))

    @router.get("/{job_id}/events", response_class=StreamingResponse)
    async def events(job_id: str) -> StreamingResponse:
        """Stream the changes of a job as server-sent events `evaluation`, until it ends."""
        first = await handlers.get(job_id)
        return StreamingResponse(
            _events(handlers, first, lifecycle),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    @router.get("/{job_id}/report", response_class=Response)
    async def report(job_id: str) -> Response:
        """Return the report as one HTML page."""
        page = await handlers.call(lambda: submission.report_page(job_id))
        return Response(page, media_type="text/html", headers=_REPORT_HEADERS)

    @router.get("/{job_id}/scores", response_class=Response)
    async def scores(job_id: str) -> Response:
        """Return the report as JSON: classes with intervals, confusion matrix, score of each picture."""
        document = await handlers.call(lambda: submission.report_document(job_id))
        return Response(document, media_type="application/json")

    @router.delete("/{job_id}", status_code=202)
    async def cancel(request: Request, job_id: str) -> EvaluationDocument:
        """Cancel a job before its next step; a job that has ended does not change."""
        before = await handlers.get(job_id)
        with _noted_if_unknown(request, before=_noted(before)):
            after = await handlers.call(lambda: submission.jobs.cancel_job(job_id))
        note_change(request, before=_noted(before), after=_noted(after))
        return evaluation_document(after)

    return router


def _noted(job: EvaluationJob | None) -> JsonObject | None:
    """Return what the audit log says of a job."""
    return None if job is None else {"id": job.id, "state": job.state}


@contextmanager
def _noted_if_unknown(request: Request, *, before: JsonObject | None) -> Iterator[None]:
    """Say in the audit log that a change may come about although the answer is 503."""
    try:
        yield
    except BusyError:
        note_change(request, before=before, after={"state": "unknown"})
        raise


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
        error=job.error,
        result=result,
    )


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1:
        raise InvalidArgumentError("there are two headers Idempotency-Key")
    return keys[0] if keys else None


async def _events(
    handlers: _EvaluationHandlers, job: EvaluationJob, lifecycle: Readiness
) -> AsyncIterator[str]:
    yield _event(job)
    told_s = time.monotonic()
    while not (job.state.is_final or lifecycle.draining):
        await asyncio.sleep(_LOOK_S)
        seen = await _look_again(handlers, job)
        if seen != job:
            yield _event(seen)
            job, told_s = seen, time.monotonic()
        elif time.monotonic() - told_s > _KEEP_ALIVE_S:
            yield ":\n\n"  # a comment: proxies close silent connections
            told_s = time.monotonic()


async def _look_again(handlers: _EvaluationHandlers, job: EvaluationJob) -> EvaluationJob:
    try:
        return await handlers.get(job.id)
    except BusyError:
        return job


def _event(job: EvaluationJob) -> str:
    return f"event: evaluation\ndata: {evaluation_document(job).model_dump_json()}\n\n"
