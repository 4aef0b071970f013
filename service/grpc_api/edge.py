"""The outermost layer of every call: request id, API key, log line, metrics, the last ``except``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import grpc
import structlog
from google.rpc.status_pb2 import Status

from service.core.errors import BusyError, DrainingError, InternalError, ServiceError
from service.core.keys.access_key import Scope
from service.core.keys.key_ring import Admission, KeyRing
from service.grpc_api.status import DETAILS_KEY, STATUS_OF_CODE, is_our_fault, status_of
from service.spans import NO_TRACING, RequestSpan, Tracing, end_request, working_on
from service.telemetry import Metrics, sane_request_id
from service.wire import segmentation_pb2 as wire

_log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME = wire.DESCRIPTOR.services_by_name["Segmentation"].full_name
REQUEST_ID_KEY = "x-request-id"

_SCOPES: Mapping[str, tuple[Scope, ...]] = MappingProxyType(
    {
        "SegmentStream": ("stream",),
        "ListModels": ("infer", "stream"),
        "ModelStreamInfer": ("infer", "stream"),
    }
)
"""Method -> scopes of which a key needs one; all other methods need ``infer``."""


CLIENT_CLOSED_REQUEST = "client_closed_request"
"""Code in log and metrics of a call whose client left, or whose deadline passed; it gets no answer."""


@dataclass
class Call:
    """One call, as its log line tells it.

    Attributes:
        request_id: the client's own if it is valid, else a new one.
        started_s: arrival (``time.monotonic``, seconds).
        code: ``ok``, or the code of the error with which it ended.
        served: name and number of the version that answers; None = unknown.
        span: of the call; None = it is not traced.
        source: client, for the scheduler: digest of its key, or its address where no key is needed.
        log_fields: further fields of the log line: numbers and closed sets only.
    """

    request_id: str
    started_s: float
    code: str = "ok"
    served: tuple[str, int] | None = None
    source: str | None = None
    log_fields: dict[str, Any] = field(default_factory=dict)
    span: RequestSpan | None = None


class GrpcEdge:
    """Wraps the methods of the service.

    Args:
        keys: of which one is needed; None = none is needed.
        metrics: counts the calls.
        max_calls: open at the same time.
        tracing: decides which calls are traced.
    """

    def __init__(
        self, keys: KeyRing | None, metrics: Metrics, *, max_calls: int, tracing: Tracing = NO_TRACING
    ) -> None:
        self._keys = keys
        self._metrics = metrics
        self._max_calls = max_calls
        self._tracing = tracing
        self._open_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_cut = False

    @property
    def is_idle(self) -> bool:
        """Whether no call is open: gRPC has the last byte of every answer."""
        return self._idle.is_set()

    async def until_idle(self) -> None:
        """Wait until no call is open."""
        await self._idle.wait()

    def cut(self) -> None:
        """Refuse all open calls with ``draining``: the service waits for them no longer."""
        self._is_cut = True
        for task in self._tasks:
            task.cancel()

    @asynccontextmanager
    async def call(self, context: Context, method: str, service: str = SERVICE_NAME) -> AsyncIterator[Call]:
        """Check a call, turn its exception into its status, and log one line about it.

        Args:
            context: of the call; its trailing metadata get the request id.
            method: its name, for log and metrics.
            service: full name of the service that has the method.

        Raises:
            grpc.aio.AbortError: the call failed, and its status is set.
        """
        metadata = _ascii_metadata(context)
        call = Call(sane_request_id(metadata.get(REQUEST_ID_KEY, "")), time.monotonic())
        self._count_open(context)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        status: Status | None = None
        call.span = self._tracing.begin(metadata, call.started_s)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with (
            structlog.contextvars.bound_contextvars(request_id=call.request_id),
            working_on(call.span),
        ):
            try:
                self._check_capacity()
                admission = self._admit(metadata, method)
                with ExitStack() as held:
                    if admission is not None:
                        held.callback(admission.leave)
                        call.log_fields["key"] = admission.key.name
                    call.source = _source(context, admission)
                    yield call
            except ServiceError as error:
                status = _status(call, error)
            except asyncio.CancelledError:
                if not self._is_cut:
                    call.code = CLIENT_CLOSED_REQUEST
                    raise
                status = _status(call, DrainingError("the service stopped before it could answer"))
            except grpc.aio.InternalError:  # a message could not be sent: the client is gone
                call.code = CLIENT_CLOSED_REQUEST
            except Exception:  # noqa: BLE001 - the outermost edge of a call
                _log.exception("request failed")
                status = _status(call, InternalError("unexpected"))
            finally:
                self._tasks.discard(task)
                self._log(call, method, service)
        if status is not None:
            await _abort(context, call, status)

    def _admit(self, metadata: dict[str, str], method: str) -> Admission | None:
        if self._keys is None:
            return None
        return self._keys.admit(
            metadata.get("authorization", ""),
            *_SCOPES.get(method, ("infer",)),
            needed="a valid API key is needed as metadata: authorization: Bearer KEY",
        )

    def _count_open(self, context: Context) -> None:
        """Count a call until its answer is sent, which is after the method returned."""
        self._open_calls += 1
        self._idle.clear()
        # The stubs have a class where a protocol is meant.
        context.add_done_callback(self._count_closed)  # type: ignore[arg-type]

    def _count_closed(self, _: Context) -> None:
        self._open_calls -= 1
        if not self._open_calls:
            self._idle.set()

    def _check_capacity(self) -> None:
        if self._open_calls > self._max_calls:
            raise BusyError(f"{self._max_calls} calls are open, and more may not: try again later")

    def _log(self, call: Call, method: str, service: str) -> None:
        duration_s = time.monotonic() - call.started_s
        self._metrics.request_done(
            protocol="grpc",
            route=f"/{service}/{method}",
            code=call.code,
            duration_s=duration_s,
            served=call.served,
            trace_id=None if call.span is None else call.span.trace_id,
        )
        if call.span is not None:
            _end_span(call.span, call, method, service)
        duration_ms = round(1e3 * duration_s, 2)
        _log.info("call", method=method, code=call.code, duration_ms=duration_ms, **call.log_fields)


def _source(context: Context, admission: Admission | None) -> str:
    """Return the digest of the key, or the address of the client where no key is needed."""
    if admission is not None:
        return admission.key.sha256
    return str(context.peer()).rpartition(":")[0]  # without the port


def _end_span(span: RequestSpan, call: Call, method: str, service: str) -> None:
    end_request(
        span,
        f"{service}/{method}",
        {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        request_id=call.request_id,
        code=call.code,
        served=call.served,
        is_our_fault=is_our_fault(call.code),
    )


def _ascii_metadata(context: Context) -> dict[str, str]:
    """Return the first text value of each key; ``-bin`` keys have bytes."""
    found: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            found.setdefault(key, value)
    return found


def _status(call: Call, error: ServiceError) -> Status:
    """Make the status where the error is caught: its traceback references pictures and must not be kept."""
    call.code = error.code
    return status_of(error, call.request_id)


async def _abort(context: Context, call: Call, status: Status) -> None:
    metadata = ((REQUEST_ID_KEY, call.request_id), (DETAILS_KEY, status.SerializeToString()))
    await context.abort(STATUS_OF_CODE[call.code], status.message, metadata)
