"""One request and its answer, as the edge sees them."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_STATE_KEY = "exchange"


@dataclass
class Exchange:
    """What the one log line of a request says.

    Attributes:
        request_id: the client's own if it is sane, else a new one.
        started_s: when the head was complete, on the clock of ``time.monotonic``.
        code: ``ok``, or the code of the error that was answered.
        notes: what the handler wants to have logged besides: numbers and closed sets, never names of files.
    """

    request_id: str
    started_s: float
    code: str = "ok"
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(cls, scope: Scope, *, now_s: float) -> Exchange:
        """Attach a new exchange to a request."""
        asked_id = Headers(scope=scope).get("x-request-id", "")
        request_id = asked_id if _SANE_REQUEST_ID.fullmatch(asked_id) else uuid.uuid4().hex
        exchange = cls(request_id, now_s)
        scope.setdefault("state", {})[_STATE_KEY] = exchange
        return exchange

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        """Return the exchange that ``begin`` attached."""
        exchange = scope["state"][_STATE_KEY]
        assert isinstance(exchange, Exchange)
        return exchange
