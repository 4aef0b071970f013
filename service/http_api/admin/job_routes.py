"""What the routes of every kind of jobs have in common: submit, show, watch and cancel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from service.core.deadline import within
from service.core.errors import BusyError, InvalidArgumentError
from service.core.jobs.job import Job, Jobs, RequestT, ResultT
from service.core.readiness import Readiness
from service.http_api.admin.audit import note_change

_DATABASE_TIMEOUT_S = 10.0
"""Longest wait for the jobs database, in seconds: another process can lock a file for half a minute."""

PACE = "Pictures a second since a worker last took the job up; null before the first one."
ETA = "Seconds that the rest of a running job takes at this pace; null where that is unknown."
"""Descriptions of fields that the documents of all jobs have."""

_LOOK_S = 0.5
_KEEP_ALIVE_S = 15.0

T = TypeVar("T")
DocumentT = TypeVar("DocumentT", bound=BaseModel)


class JobRoutes(Generic[RequestT, ResultT, DocumentT]):
    """Answers the requests of one kind of jobs; calls their blocking functions in threads.

    Args:
        prefix: of the paths.
        event: name of the events that tell a change.
        jobs: of the kind; its functions block.
        pool: threads for these; the caller closes it.
        lifecycle: of the process; event streams end when it ends.
        describe: returns the document of a job.
    """

    def __init__(
        self,
        prefix: str,
        event: str,
        jobs: Jobs[RequestT, ResultT],
        *,
        pool: Executor,
        lifecycle: Readiness,
        describe: Callable[[Job[RequestT, ResultT]], DocumentT],
    ) -> None:
        self._prefix = prefix
        self._event = event
        self._jobs = jobs
        self._pool = pool
        self._lifecycle = lifecycle
        self._describe = describe

    async def call(self, function: Callable[[], T]) -> T:
        """Return what a blocking function returns.

        Raises:
            BusyError: that takes too long.
        """
        async with within(_DATABASE_TIMEOUT_S, lambda: BusyError("the jobs database does not answer")):
            return await asyncio.wrap_future(self._pool.submit(function))

    async def submit(
        self, request: Request, response: Response, submit: Callable[[str | None], Job[RequestT, ResultT]]
    ) -> DocumentT:
        """Queue a job.

        Args:
            request: may have an ``Idempotency-Key``.
            response: gets the ``Location`` of the job.
            submit: queues the job under a key; blocks.
        """
        key = _idempotency_key(request)
        with _noted_if_unknown(request, before=None):
            earlier = None if key is None else await self.call(lambda: self._jobs.find_by_key(key))
            job = await self.call(lambda: submit(key))
        note_change(request, before=_noted(earlier), after=_noted(job))
        response.headers["Location"] = f"{self._prefix}/{job.id}"
        return self._describe(job)

    async def list_all(self) -> list[DocumentT]:
        """Describe all jobs, the newest first."""
        return [self._describe(job) for job in await self.call(self._jobs.list_jobs)]

    async def show(self, job_id: str) -> DocumentT:
        """Describe a job."""
        return self._describe(await self._get(job_id))

    async def events(self, job_id: str) -> StreamingResponse:
        """Stream the changes of a job until it ends."""
        first = await self._get(job_id)
        return StreamingResponse(
            self._changes(first), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def cancel(self, request: Request, job_id: str) -> DocumentT:
        """Cancel a job before its next step; a job that has ended does not change."""
        before = await self._get(job_id)
        with _noted_if_unknown(request, before=_noted(before)):
            after = await self.call(lambda: self._jobs.cancel_job(job_id))
        note_change(request, before=_noted(before), after=_noted(after))
        return self._describe(after)

    async def _get(self, job_id: str) -> Job[RequestT, ResultT]:
        return await self.call(lambda: self._jobs.get_job(job_id))

    async def _changes(self, job: Job[RequestT, ResultT]) -> AsyncIterator[str]:
        yield self._event_of(job)
        told_s = time.monotonic()
        while not (job.state.is_final or self._lifecycle.draining):
            await asyncio.sleep(_LOOK_S)
            seen = await self._look_again(job)
            if seen != job:
                yield self._event_of(seen)
                job, told_s = seen, time.monotonic()
            elif time.monotonic() - told_s > _KEEP_ALIVE_S:
                yield ":\n\n"  # a comment: proxies close silent connections
                told_s = time.monotonic()

    async def _look_again(self, job: Job[RequestT, ResultT]) -> Job[RequestT, ResultT]:
        try:
            return await self._get(job.id)
        except BusyError:
            return job

    def _event_of(self, job: Job[RequestT, ResultT]) -> str:
        return f"event: {self._event}\ndata: {self._describe(job).model_dump_json()}\n\n"


def _noted(job: Job[RequestT, ResultT] | None) -> dict[str, str] | None:
    """Return what the audit log says of a job."""
    return None if job is None else {"id": job.id, "state": job.state}


@contextmanager
def _noted_if_unknown(request: Request, *, before: dict[str, str] | None) -> Iterator[None]:
    """Say in the audit log that a change may come about although the answer is 503."""
    try:
        yield
    except BusyError:
        note_change(request, before=before, after={"state": "unknown"})
        raise


def body_of(document: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a request body for OpenAPI; the route reads the body itself."""
    schema = {"schema": document.model_json_schema()}
    return {"requestBody": {"required": True, "content": {"application/json": schema}}}


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1:
        raise InvalidArgumentError("there are two headers Idempotency-Key")
    return keys[0] if keys else None
