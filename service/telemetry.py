"""Structured log lines on stderr, and metrics for Prometheus."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TextIO, cast, get_args

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from structlog.typing import Processor

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LEVELS: dict[LogLevel, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class LogStream(Protocol):
    """Takes log lines."""

    def write(self, text: str) -> object:
        """Write a line, its end included."""
        ...

    def flush(self) -> None:
        """Pass buffered lines on."""
        ...


@dataclass(frozen=True)
class LogOptions:
    """Level and format of the log.

    Args:
        level: lines below it are dropped.
        format: ``auto`` writes JSON unless stderr is a terminal.
    """

    level: LogLevel = "info"
    format: LogFormat = "auto"


def configure_logging(options: LogOptions, stream: LogStream | None = None) -> None:
    """Send every log line, those of libraries too, to one stream, as lines of JSON or as coloured text.

    Args:
        options: level and format.
        stream: None = stderr; then a thread that logs waits until its line is written.
    """
    as_json = options.format == "json" or (options.format == "auto" and not sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_json_lines() if as_json else _coloured_lines()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[options.level]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", stream or sys.stderr)),
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Forwarder()], force=True)
    # A line for each malformed form would let a client fill the disk; the request has its own line.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


# Both would print the local variables of a traceback: pictures and keys.


def _json_lines() -> tuple[Processor, ...]:
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()


def _coloured_lines() -> tuple[Processor, ...]:
    return (structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),)


_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def sane_request_id(asked_id: str) -> str:
    """Return the request id of a client if it is fit for a log line, else a new id."""
    return asked_id if _SANE_REQUEST_ID.fullmatch(asked_id) else uuid.uuid4().hex


class _Forwarder(logging.Handler):
    """Turns the records of libraries into structured lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record at its own level, under its own name."""
        logger = structlog.get_logger().bind(library=record.name)
        logger.log(record.levelno, record.getMessage(), exc_info=record.exc_info)


Frontend = Literal["http", "grpc"]
Stage = Literal["receive", "decode", "preprocess", "queue", "infer", "post", "encode"]
RejectReason = Literal[
    "queue_full", "rate_limited", "loading", "draining", "no_worker", "busy", "too_many_connections"
]
CpuStage = Literal["decode", "encode"]
FrameOutcome = Literal["answered", "superseded", "too_old", "draining", "failed"]
JobStateName = Literal["queued", "running", "succeeded", "failed", "cancelled"]

UNKNOWN = "unknown"
"""Label of values outside a closed set: text of clients never becomes a label."""

PICTURE_CPU = "bisenet_picture_cpu_seconds_total"
"""Name of the sample of ``Metrics.working``."""

_DURATION_BUCKETS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1),
    *(0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_FRAME_AGE_BUCKETS_S = (0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_LOAD_BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_RATIO_BUCKETS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class ModelLabels:
    """Labels of a served version and of its engine."""

    model: str
    version: int
    engine: str
    device: str
    precision: str


@dataclass(frozen=True, order=True)
class MetricDescription:
    """Documentation of a metric.

    Attributes:
        name: in Prometheus; counters end in ``_total``.
        kind: ``counter``, ``gauge`` or ``histogram``.
        labels: names of its labels.
        meaning: its help text.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


class Metrics:
    """Every instrument of the service; thread-safe.

    All labels are from closed sets: a version without ``model_loaded`` counts as ``unknown``. Each object has
    its own registry, so that several services in one process stay apart.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._versions: set[tuple[str, int]] = set()
        self._descriptions: list[MetricDescription] = []
        self._create_request_instruments()
        self._create_device_instruments()
        self._create_stream_instruments()
        self._create_job_instruments()
        ProcessCollector(registry=self._registry)

    # --- requests

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request as being answered as long as the context lasts."""
        with self._inflight.track_inprogress():
            yield

    def request_done(
        self,
        *,
        protocol: Frontend,
        route: str,
        code: str,
        duration_s: float,
        served: tuple[str, int] | None = None,
        trace_id: str | None = None,
    ) -> None:
        """Count an answered request.

        Args:
            protocol: of the frontend.
            route: template of the path, or full method of gRPC; ``unmatched`` if there is none.
            code: ``ok`` or the error code of the answer; never text of a client.
            duration_s: from the end of the head to the answer, in seconds.
            served: name and number of the version that answered; None = none did.
            trace_id: of a traced request: the exemplar of its duration, in OpenMetrics.
        """
        self._requests.labels(protocol, route, *self._version_labels(served), code).inc()
        exemplar = None if trace_id is None else {"trace_id": trace_id}
        self._request_duration.labels(protocol, route).observe(max(0.0, duration_s), exemplar)
        if code in get_args(RejectReason):
            self._rejected.labels(code).inc()

    def stages_done(self, stages_s: Mapping[Stage, float]) -> None:
        """Observe the duration of each stage of one answer, in seconds."""
        for stage, seconds in stages_s.items():
            self._stage_durations[stage].observe(max(0.0, seconds))

    @contextmanager
    def working(self, stage: CpuStage) -> Iterator[None]:
        """Count the processor time of this thread on a picture, also if that fails.

        Args:
            stage: ``decode`` is everything from the file to the input of the network.
        """
        began_s = time.thread_time()
        try:
            yield
        finally:
            self._picture_cpu[stage].inc(time.thread_time() - began_s)

    def rejected(self, reason: RejectReason) -> None:
        """Count a refusal before there is a request; ``request_done`` counts refused requests."""
        self._rejected.labels(reason).inc()

    def expired(self, stage: Stage) -> None:
        """Count a request whose deadline passed in a stage."""
        self._expired.labels(stage).inc()

    def cancelled(self, stage: Stage) -> None:
        """Count a request whose client left in a stage."""
        self._cancelled.labels(stage).inc()

    # --- the device

    def batch_done(self, *, size: int, padding_ratio: float) -> None:
        """Observe a batch that the device answered.

        Args:
            size: its items.
            padding_ratio: share of its pixels that belong to no picture, 0..1.
        """
        self._batch_size.observe(size)
        self._batch_padding.observe(padding_ratio)

    def worker_restarted(self) -> None:
        """Count a worker process that was started again."""
        self._worker_restarts.inc()

    def watch(self, *, queue_depth: Callable[[], float], busy_ratio: Callable[[], float]) -> None:
        """Read these functions at each request for the metrics.

        Args:
            queue_depth: returns the pictures that wait.
            busy_ratio: returns the share of the last seconds in which the device was busy, 0..1.
        """
        self._queue_depth.set_function(queue_depth)
        self._busy_ratio.set_function(busy_ratio)

    def model_loaded(self, labels: ModelLabels, *, seconds: float) -> None:
        """Add a version that is served."""
        self._versions.add((labels.model, labels.version))
        self._model_info.labels(*_info_labels(labels)).set(1)
        self._model_load.observe(max(0.0, seconds))

    def model_unloaded(self, labels: ModelLabels) -> None:
        """Remove a version that is no longer served; its counts stay."""
        self._model_info.remove(*_info_labels(labels))

    # --- streams

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count a stream as active as long as the context lasts."""
        with self._stream_active.track_inprogress():
            yield

    def frame_done(self, outcome: FrameOutcome, *, count: int = 1, age_s: float | None = None) -> None:
        """Count frames of a stream.

        Args:
            outcome: of the frames.
            count: number of frames.
            age_s: from capture to answer, in seconds; None = unknown, or without an answer.
        """
        self._stream_frames[outcome].inc(count)
        if age_s is not None:
            self._stream_age.observe(max(0.0, age_s))

    # --- jobs

    def eval_jobs(self, counts: Mapping[JobStateName, int]) -> None:
        """Set the number of evaluation jobs in each state; states that are not named have none."""
        for state in get_args(JobStateName):
            self._eval_jobs.labels(state).set(counts.get(state, 0))

    def predict_jobs(self, counts: Mapping[JobStateName, int]) -> None:
        """Set the number of bulk predictions in each state; states that are not named have none."""
        for state in get_args(JobStateName):
            self._predict_jobs.labels(state).set(counts.get(state, 0))

    def eval_scored(self, *, model: str, version: int, dataset: str, protocol: str, miou: float) -> None:
        """Set the newest score of a version; all names come from the registry and the configuration.

        Args:
            model: name of the model.
            version: its number.
            dataset: name of the data set.
            protocol: of the evaluation.
            miou: 0..1.
        """
        self._eval_miou.labels(model, str(version), dataset, protocol).set(miou)

    # --- for Prometheus

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics and their media type, in the form that the header ``Accept`` asks for."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Yield name, labels and value of each sample."""
        for metric in self._registry.collect():
            for sample in metric.samples:
                yield sample.name, sample.labels, sample.value

    def descriptions(self) -> tuple[MetricDescription, ...]:
        """Return the description of every instrument of the service, sorted by name."""
        return tuple(sorted(self._descriptions))

    def _version_labels(self, served: tuple[str, int] | None) -> tuple[str, str]:
        if served is None:
            return "", ""
        return (served[0], str(served[1])) if served in self._versions else (UNKNOWN, UNKNOWN)

    def _create_request_instruments(self) -> None:
        self._requests = self._counter(
            "requests", "Requests answered.", "protocol", "route", "model", "version", "code"
        )
        self._request_duration = self._histogram(
            "request_duration_seconds", "From head to answer.", _DURATION_BUCKETS_S, "protocol", "route"
        )
        stage_duration = self._histogram(
            "stage_duration_seconds", "Duration of each stage of an answer.", _DURATION_BUCKETS_S, "stage"
        )
        self._stage_durations = {stage: stage_duration.labels(stage) for stage in get_args(Stage)}
        picture_cpu = self._counter("picture_cpu_seconds", "Processor time of decoding, encoding.", "stage")
        self._picture_cpu = {stage: picture_cpu.labels(stage) for stage in get_args(CpuStage)}
        self._inflight = self._gauge("inflight", "Requests being answered.")
        self._rejected = self._counter("rejected", "Requests refused for lack of room.", "reason")
        self._expired = self._counter("expired", "Requests whose deadline passed.", "stage")
        self._cancelled = self._counter("cancelled", "Requests whose client left.", "stage")
        _begin_at_zero(self._rejected, RejectReason)
        _begin_at_zero(self._expired, Stage)
        _begin_at_zero(self._cancelled, Stage)

    def _create_device_instruments(self) -> None:
        self._batch_size = self._histogram("batch_size", "Pictures in a batch.", _BATCH_BUCKETS)
        self._batch_padding = self._histogram(
            "batch_padding_ratio", "Share of a batch that is padding.", _RATIO_BUCKETS
        )
        self._queue_depth = self._gauge("queue_depth", "Pictures that wait for the device.")
        self._busy_ratio = self._gauge("worker_busy_ratio", "Share of time in which the device is busy.")
        self._worker_restarts = self._counter("worker_restarts", "Worker processes started again.")
        self._model_info = self._gauge(
            "model_info", "1 for each served version.", "model", "version", "engine", "device", "precision"
        )
        self._model_load = self._histogram(
            "model_load_seconds", "From artifact to proved engine.", _LOAD_BUCKETS_S
        )

    def _create_stream_instruments(self) -> None:
        self._stream_active = self._gauge("stream_active", "Open streams.")
        stream_frames = self._counter("stream_frames", "Frames of streams.", "outcome")
        self._stream_frames = {outcome: stream_frames.labels(outcome) for outcome in get_args(FrameOutcome)}
        self._stream_age = self._histogram(
            "stream_frame_age_seconds", "From capture to answer.", _FRAME_AGE_BUCKETS_S
        )

    def _create_job_instruments(self) -> None:
        self._eval_jobs = self._gauge("eval_jobs", "Evaluation jobs.", "state")
        self._eval_miou = self._gauge(
            "eval_miou", "Newest mIoU, 0..1.", "model", "version", "dataset", "protocol"
        )
        self._predict_jobs = self._gauge("predict_jobs", "Bulk predictions.", "state")
        for jobs in (self._eval_jobs, self._predict_jobs):
            _begin_at_zero(jobs, JobStateName)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        full_name = self._describe(f"{name}_total", "counter", labels, meaning)
        return Counter(full_name, meaning, labels, registry=self._registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        full_name = self._describe(name, "gauge", labels, meaning)
        return Gauge(full_name, meaning, labels, registry=self._registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        full_name = self._describe(name, "histogram", labels, meaning)
        return Histogram(full_name, meaning, labels, buckets=buckets, registry=self._registry)

    def _describe(self, name: str, kind: str, labels: tuple[str, ...], meaning: str) -> str:
        full_name = f"bisenet_{name}"
        self._descriptions.append(MetricDescription(full_name, kind, labels, meaning))
        return full_name


def _begin_at_zero(instrument: Counter | Gauge | Histogram, values: object) -> None:
    """Create all series of a closed set at the start: a rate needs a first point."""
    for value in get_args(values):
        instrument.labels(value)


def _info_labels(labels: ModelLabels) -> tuple[str, ...]:
    return labels.model, str(labels.version), labels.engine, labels.device, labels.precision
