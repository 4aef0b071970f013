"""What the code says of a traced request; knows no tracing library.

``service.tracing`` makes spans of it. Without tracing, ``NO_TRACING`` stands there, and no request is traced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import structlog

Attribute = str | int | float | bool
"""The value of a span's attribute."""


class RequestSpan(Protocol):
    """A traced request, or a traced frame of a stream; its methods may be called from any thread.

    Attributes:
        trace_id: 32 hexadecimal digits, for log lines and exemplars.
    """

    @property
    def trace_id(self) -> str:
        """Its trace."""
        ...

    def stage(self, name: str, began_s: float, ended_s: float) -> None:
        """Note a stage of the request.

        Args:
            name: of the stage.
            began_s: when it began (``time.monotonic``, seconds).
            ended_s: when it ended.
        """
        ...

    def end(self, name: str, attributes: Mapping[str, Attribute], error: str | None = None) -> None:
        """End the span.

        Args:
            name: method and route, or frame.
            attributes: numbers and values of closed sets.
            error: code of the error that was answered, if the service is to blame for it; None = none was.
        """
        ...


@dataclass(frozen=True)
class BatchRun:
    """What the device did for one batch.

    Attributes:
        model: name and number of the version.
        size: pictures in it, the untraced ones too.
        begun_s: when the engine began (``time.monotonic``, seconds).
        infer_s: time in the engine, in seconds.
        post_s: time from raw output to labels, in seconds.
    """

    model: str
    size: int
    begun_s: float
    infer_s: float
    post_s: float


class Tracing(Protocol):
    """Decides which requests are traced, and keeps their spans."""

    def begin(
        self, headers: Mapping[str, str], began_s: float, cause: RequestSpan | None = None
    ) -> RequestSpan | None:
        """Begin the span of a request; None = it is not traced.

        Args:
            headers: of the request, or its metadata; ``traceparent`` continues the trace of the caller.
            began_s: when its head was complete, or the frame had arrived (``time.monotonic``, seconds).
            cause: the span of the stream that a frame belongs to.
        """
        ...

    def batch(self, run: BatchRun, queued: Sequence[tuple[RequestSpan, float]]) -> None:
        """Note a batch, and what it was for the traced pictures in it.

        Args:
            run: the batch.
            queued: the span of each traced picture, and when it was queued (``time.monotonic``, seconds).
        """
        ...


class _NoTracing:
    def begin(self, *_: object, **__: object) -> None:
        return None

    def batch(self, *_: object) -> None:
        pass


NO_TRACING: Tracing = _NoTracing()
"""Traces nothing."""


def end_request(
    span: RequestSpan,
    name: str,
    attributes: Mapping[str, Attribute],
    *,
    request_id: str,
    code: str,
    served: tuple[str, int] | None,
    is_our_fault: bool,
) -> None:
    """End the span of a request, over any protocol.

    Args:
        span: of the request.
        name: method and route.
        attributes: those of the protocol.
        request_id: as in the log line.
        code: ``ok``, or the code of the error.
        served: name and number of the version that answered; None = unknown.
        is_our_fault: whether the service is to blame for the code.
    """
    told: dict[str, Attribute] = {**attributes, "bisenet.request_id": request_id, "bisenet.code": code}
    if served is not None:
        told["bisenet.model"], told["bisenet.version"] = served
    span.end(name, told, code if is_our_fault else None)


_current: ContextVar[RequestSpan | None] = ContextVar("request_span", default=None)


def current_span() -> RequestSpan | None:
    """Return the span of the request that this thread or task works on; None = it is not traced."""
    return _current.get()


@contextmanager
def working_on(span: RequestSpan | None) -> Iterator[None]:
    """Make a span the current one, and put its trace into log lines; with None nothing is the current one."""
    token = _current.set(span)
    try:
        if span is None:
            yield
        else:
            with structlog.contextvars.bound_contextvars(trace_id=span.trace_id):
                yield
    finally:
        _current.reset(token)


def stage_done(name: str, began_s: float, ended_s: float) -> None:
    """Note a stage of the current request, if that is traced.

    Args:
        name: of the stage.
        began_s: when it began (``time.monotonic``, seconds).
        ended_s: when it ended.
    """
    if (span := _current.get()) is not None:
        span.stage(name, began_s, ended_s)
