"""OpenTelemetry: the spans of requests, sent to a receiver over OTLP. Imported only if tracing is on.

A traced request leaves one tree: its root from the head to the last byte of the answer, below it a span for
each stage. A batch is a trace of its own, for it belongs to several requests; it links to their roots, and
the ``infer`` span of each of them links to it. Device workers are other processes and take no part: their
report of a batch carries its times, so nothing of a trace crosses to them.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.spans import Attribute, BatchRun, RequestSpan

_EXPORT_TIMEOUT_S = 2.0
_LAST_SPANS_S = 2.0
_MAX_QUEUED_SPANS = 4096
_EXPORTED_AT_ONCE = 512
_FLUSHED_EVERY_MS = 1000.0


@dataclass(frozen=True)
class TracingOptions:
    """Where spans go, and of how many requests.

    Args:
        endpoint: base URL of the receiver, without ``/v1/traces``.
        sampling: share of the requests that are traced unless their caller decided, 0..1.
        service_name: name under which the receiver shows this service.
    """

    endpoint: str
    sampling: float
    service_name: str = "bisenet"


class _Clock:
    """Turns the monotonic clock into times of day, all by one offset: stages lie inside their request."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def epoch_ns(self, monotonic_s: float) -> int:
        """Return a moment of the monotonic clock in nanoseconds since 1970."""
        return self._offset_ns + round(1e9 * monotonic_s)


class OpenTelemetry:
    """Traces requests.

    A thread of its own sends the spans. When the receiver does not take them, the oldest of 4,096 are
    dropped; requests never wait.

    Args:
        options: where spans go, and of how many requests.
    """

    def __init__(self, options: TracingOptions) -> None:
        self._sampling = options.sampling
        self._clock = _Clock()
        exporter = OTLPSpanExporter(f"{options.endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S)
        # Who is traced is decided below: what reaches the library is kept.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create(
                {SERVICE_NAME: options.service_name, SERVICE_VERSION: version("bisenet-service")}
            ),
            shutdown_on_exit=False,
        )
        processor = BatchSpanProcessor(
            exporter,
            max_queue_size=_MAX_QUEUED_SPANS,
            schedule_delay_millis=_FLUSHED_EVERY_MS,
            max_export_batch_size=_EXPORTED_AT_ONCE,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("bisenet")
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, headers: Mapping[str, str], began_s: float, cause: RequestSpan | None = None
    ) -> RequestSpan | None:
        """Begin the span of a request; None = it is not traced.

        A caller that sends ``traceparent`` has decided; of all others the configured share is traced.

        Args:
            headers: of the request, or its metadata.
            began_s: when its head was complete, or the frame had arrived (``time.monotonic``, seconds).
            cause: the span of the stream that a frame belongs to.
        """
        # Without a context of its own the library would take the span of whoever runs here at the moment.
        context = self._propagator.extract(headers, Context()) if "traceparent" in headers else Context()
        parent = trace.get_current_span(context).get_span_context()
        is_wanted = parent.trace_flags.sampled if parent.is_valid else random.random() < self._sampling  # noqa: S311
        if not is_wanted:
            return None
        links = [Link(cause.span.get_span_context())] if isinstance(cause, _OpenSpan) else []
        began_ns = self._clock.epoch_ns(began_s)
        span = self._tracer.start_span("request", context, SpanKind.SERVER, links=links, start_time=began_ns)
        return _OpenSpan(self._tracer, span, self._clock)

    def batch(self, run: BatchRun, queued: Sequence[tuple[RequestSpan, float]]) -> None:
        """Note a batch, and what it was for the traced pictures in it.

        Args:
            run: the batch.
            queued: the span of each traced picture, and when it was queued (``time.monotonic``, seconds).
        """
        pictures = [(span, queued_s) for span, queued_s in queued if isinstance(span, _OpenSpan)]
        labels_s = run.begun_s + run.infer_s
        batch = self._tracer.start_span(
            "batch",
            Context(),
            attributes={"bisenet.model": run.model, "bisenet.batch_size": run.size},
            links=[Link(span.span.get_span_context()) for span, _ in pictures],
            start_time=self._clock.epoch_ns(run.begun_s),
        )
        for span, queued_s in pictures:
            span.stage("queue", queued_s, max(queued_s, run.begun_s))
            span.linked_stage("infer", run.begun_s, labels_s, batch)
            if run.post_s:  # an engine may make the labels itself
                span.stage("post", labels_s, labels_s + run.post_s)
        batch.end(self._clock.epoch_ns(labels_s + run.post_s))

    def close(self) -> None:
        """Send what is left, for as long as the receiver takes it within two seconds."""
        # By itself the library waits up to 30 s; a receiver that is gone must not hold up the end.
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(_LAST_SPANS_S)


class _OpenSpan:
    def __init__(self, tracer: Tracer, span: Span, clock: _Clock) -> None:
        self.span = span
        self._clock = clock
        self._tracer = tracer
        self._context = trace.set_span_in_context(span, Context())

    @property
    def trace_id(self) -> str:
        return trace.format_trace_id(self.span.get_span_context().trace_id)

    def stage(self, name: str, began_s: float, ended_s: float) -> None:
        self._stage(name, began_s, ended_s, [])

    def linked_stage(self, name: str, began_s: float, ended_s: float, other: Span) -> None:
        self._stage(name, began_s, ended_s, [Link(other.get_span_context())])

    def _stage(self, name: str, began_s: float, ended_s: float, links: list[Link]) -> None:
        began_ns = self._clock.epoch_ns(began_s)
        span = self._tracer.start_span(name, self._context, links=links, start_time=began_ns)
        span.end(self._clock.epoch_ns(ended_s))

    def end(self, name: str, attributes: Mapping[str, Attribute], error: str | None = None) -> None:
        self.span.update_name(name)
        self.span.set_attributes(attributes)
        if error is not None:
            self.span.set_attribute("error.type", error)
            self.span.set_status(Status(StatusCode.ERROR, error))
        self.span.end(self._clock.epoch_ns(time.monotonic()))
