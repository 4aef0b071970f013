"""One request and its answer, as the edge sees them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from service.http_api.segment.routes import is_open_inference
from service.telemetry import Stage, sane_request_id

_STATE_KEY = "exchange"


@dataclass
class Exchange:
    """What the one log line of a request says.

    Attributes:
        request_id: the client's own if it is sane, else a new one.
        started_s: when the head was complete, on the clock of ``time.monotonic``.
        has_plain_errors: errors are ``{"error": text}``, as the Open Inference Protocol wants them.
        code: ``ok``, or the code of the error that was answered.
        route: the pattern of its path where no route was looked for; None = ask the scope.
        source: the client that asks, as the queue tells clients apart; None = unknown.
        served: name and number of the version that answers; None = none does.
        received_s: from the head to the end of the body, in seconds; 0 = the body is not here.
        stages_s: where the time of its answer went; empty when it has none.
        notes: what the handler wants to have logged besides: numbers and closed sets, never names of files.
        held: what is given back when the answer was sent, or nobody was left to take it.
    """

    request_id: str
    started_s: float
    has_plain_errors: bool = False
    code: str = "ok"
    route: str | None = None
    source: str | None = None
    served: tuple[str, int] | None = None
    received_s: float = 0.0
    stages_s: Mapping[Stage, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    held: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def begin(cls, scope: Scope, *, now_s: float) -> Exchange:
        """Attach a new exchange to a request."""
        request_id = sane_request_id(Headers(scope=scope).get("x-request-id", ""))
        exchange = cls(request_id, now_s, is_open_inference(scope["path"]))
        scope.setdefault("state", {})[_STATE_KEY] = exchange
        return exchange

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        """Return the exchange that ``begin`` attached."""
        exchange = scope["state"][_STATE_KEY]
        assert isinstance(exchange, Exchange)
        return exchange
