"""The record of one request and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from service.core.keys.access_key import AccessKey
from service.core.keys.key_ring import Admission
from service.http_api.segment.routes import is_open_inference
from service.spans import RequestSpan
from service.telemetry import Stage, sane_request_id

_STATE_KEY = "exchange"


@dataclass
class Exchange:
    """The content of the log line of a request, and the resources that it holds.

    Attributes:
        request_id: the client's own if it is fit for a log line, else a new one.
        started_s: time at which the head was complete (``time.monotonic``, seconds).
        path: of the request.
        has_plain_errors: errors are ``{"error": text}``, as in the Open Inference Protocol.
        code: ``ok``, or the error code of the answer.
        route: pattern of the path if no route was looked up; None = the scope has it.
        key: API key of the request; None = no key was needed, or the request was refused.
        source: identity of the client in the queue; None = unknown.
        served: name and number of the version that answers; None = there is none.
        received_s: from the head to the end of the body, in seconds; 0 = the body is not complete.
        stages_s: duration of each stage of the answer, in seconds; empty without an answer.
        notes: further content of the log line: numbers and closed sets, never names of files.
        span: of the request; None = it is not traced.
        held: resources to release when the answer was sent or the client left.
    """

    request_id: str
    started_s: float
    path: str = ""
    has_plain_errors: bool = False
    code: str = "ok"
    route: str | None = None
    key: AccessKey | None = None
    source: str | None = None
    served: tuple[str, int] | None = None
    received_s: float = 0.0
    stages_s: Mapping[Stage, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    span: RequestSpan | None = None
    held: ExitStack = field(default_factory=ExitStack)

    def admitted(self, admission: Admission) -> None:
        """Note the key of the request until it is answered; the log line tells its name."""
        self.key = admission.key
        self.notes["key"] = admission.key.name
        self.held.callback(admission.leave)

    @classmethod
    def begin(cls, scope: Scope, *, now_s: float) -> Exchange:
        """Attach a new exchange to a request."""
        request_id = sane_request_id(Headers(scope=scope).get("x-request-id", ""))
        path = scope["path"]
        exchange = cls(request_id, now_s, path, is_open_inference(path))
        scope.setdefault("state", {})[_STATE_KEY] = exchange
        return exchange

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        """Return the exchange that ``begin`` attached."""
        exchange = scope["state"][_STATE_KEY]
        assert isinstance(exchange, Exchange)
        return exchange
