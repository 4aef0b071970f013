"""The outermost layer of every call: request id, API key, log line, metrics, the last ``except``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
from google.rpc.status_pb2 import Status

from service.core.errors import BusyError, InternalError, ServiceError, UnauthenticatedError
from service.core.keys import bearer_digest, bears_known_key
from service.grpc_api.status import DETAILS_KEY, STATUS_OF_CODE, status_of
from service.telemetry import Metrics, sane_request_id
from service.wire import segmentation_pb2 as wire

_log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME = wire.DESCRIPTOR.services_by_name["Segmentation"].full_name
REQUEST_ID_KEY = "x-request-id"

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
        source: client, for the scheduler: digest of its key, or its address where no key is needed.
        log_fields: further fields of the log line: numbers and closed sets only.
    """

    request_id: str
    started_s: float
    code: str = "ok"
    served: tuple[str, int] | None = None
    source: str | None = None
    log_fields: dict[str, Any] = field(default_factory=dict)


class GrpcEdge:
    """Wraps the methods of the service.

    Args:
        key_digests: of the API keys; empty = no key is needed.
        metrics: counts the calls.
        max_calls: open at the same time.
    """

    def __init__(self, key_digests: frozenset[bytes], metrics: Metrics, *, max_calls: int) -> None:
        self._key_digests = key_digests
        self._metrics = metrics
        self._max_calls = max_calls
        self._open_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_idle(self) -> bool:
        """Whether no call is open: gRPC has the last byte of every answer."""
        return self._idle.is_set()

    async def until_idle(self) -> None:
        """Wait until no call is open."""
        await self._idle.wait()

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
        with structlog.contextvars.bound_contextvars(request_id=call.request_id):
            try:
                self._check_key(metadata)
                self._check_capacity()
                call.source = self._source(context, metadata)
                yield call
            except ServiceError as error:
                status = _status(call, error)
            except asyncio.CancelledError:
                call.code = CLIENT_CLOSED_REQUEST
                raise
            except grpc.aio.InternalError:  # a message could not be sent: the client is gone
                call.code = CLIENT_CLOSED_REQUEST
            except Exception:  # noqa: BLE001 - the outermost edge of a call
                _log.exception("request failed")
                status = _status(call, InternalError("unexpected"))
            finally:
                self._log(call, method, service)
        if status is not None:
            await _abort(context, call, status)

    def _check_key(self, metadata: dict[str, str]) -> None:
        if self._key_digests and not bears_known_key(metadata.get("authorization", ""), self._key_digests):
            raise UnauthenticatedError("a valid API key is needed as metadata: authorization: Bearer KEY")

    def _source(self, context: Context, metadata: dict[str, str]) -> str:
        if self._key_digests:
            return bearer_digest(metadata["authorization"]).hex()
        return str(context.peer()).rpartition(":")[0]  # without the port

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
        )
        duration_ms = round(1e3 * duration_s, 2)
        _log.info("call", method=method, code=call.code, duration_ms=duration_ms, **call.log_fields)


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
