"""What the endpoints of all protocols share before a picture arrives: client, model, and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.requests import Request

from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost
from service.core.scheduling.memory_budget import MemoryBudget
from service.http_api.access import AccessPolicy
from service.http_api.exchange import Exchange
from service.http_api.problems import MethodNotAllowedError
from service.http_api.segment.body import BodyLimits
from service.http_api.segment.body_budget import (
    DEFAULT_MAX_ANSWER_BYTES_IN_FLIGHT,
    DEFAULT_MAX_BODY_BYTES_IN_FLIGHT,
    BodyBudget,
)
from service.http_api.segment.routes import SegmentTarget


@dataclass(frozen=True)
class SegmentOptions:
    """Limits of segmentation requests.

    Args:
        body: limits of one body.
        max_body_bytes_in_flight: bytes of all bodies together.
        max_answer_bytes_in_flight: bytes of all unsent answers larger than 256 KiB.
        default_timeout_s: time-out of a request that names none, in seconds.
    """

    body: BodyLimits = field(default_factory=BodyLimits)
    max_body_bytes_in_flight: int = DEFAULT_MAX_BODY_BYTES_IN_FLIGHT
    max_answer_bytes_in_flight: int = DEFAULT_MAX_ANSWER_BYTES_IN_FLIGHT
    default_timeout_s: float = 30.0


class Intake:
    """Admits requests for pictures to the HTTP port.

    Args:
        models: the served models.
        access: gives the identity of a client.
        options: limits of a request.

    Attributes:
        options: limits of a request.
        bodies: memory of the bodies that arrive or wait.
    """

    def __init__(self, models: ModelHost, *, access: AccessPolicy, options: SegmentOptions) -> None:
        self.options = options
        self.bodies = BodyBudget(options.max_body_bytes_in_flight, options.body)
        self._unsent = MemoryBudget(options.max_answer_bytes_in_flight)
        self._models = models
        self._access = access

    @contextmanager
    def model(self, request: Request, exchange: Exchange, target: SegmentTarget) -> Iterator[LoadedModel]:
        """Hold the model that a request names, and note it and the client in the exchange.

        Raises:
            MethodNotAllowedError: the method is not POST.
            ServiceError: the model is not served.
        """
        if request.method != "POST":
            raise MethodNotAllowedError(request.method, "POST")
        exchange.source = self._access.source(request.scope)
        with self._models.hold(target.model, target.version_number) as model:
            exchange.served = model.version.name, model.version.number
            yield model

    async def keep(self, num_bytes: int, exchange: Exchange, *, deadline_s: float) -> None:
        """Wait for the memory of an answer, and hold it until the exchange is over.

        Raises:
            BusyError: there was none before the deadline.
        """
        place = await self._unsent.acquire(num_bytes, timeout_s=deadline_s - time.monotonic())
        exchange.held.callback(self._unsent.release, place)
