"""``GET /admin/v1/history``: the numbers of the last 15 minutes, for the page."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from service.telemetry import Metrics

INTERVAL_S = 5.0
WINDOW_S = 900.0


class SampleDocument(BaseModel):
    """What the metrics said at one time; counters count from the start of the process.

    `latency` maps upper bounds in seconds to pictures over HTTP or gRPC that were answered within them.
    """

    time_s: float
    pictures: float = 0
    batches: float = 0
    queue: float = 0
    busy: float = 0
    streams: float = 0
    frames: dict[str, float] = {}
    rejected: dict[str, float] = {}
    latency: dict[str, float] = {}


class HistoryDocument(BaseModel):
    """Samples, the oldest first; `now_s` is the clock that they were taken by."""

    now_s: float
    samples: list[SampleDocument]


class MetricsHistory:
    """Keeps what the metrics said in the last 15 minutes; belongs to one event loop.

    Args:
        metrics: read every five seconds.
        now_s: clock of the samples, seconds since 1970.
    """

    def __init__(self, metrics: Metrics, now_s: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._now_s = now_s
        self._samples: deque[SampleDocument] = deque(maxlen=round(WINDOW_S / INTERVAL_S) + 1)

    async def keep(self) -> None:
        """Take samples until this is cancelled."""
        while True:
            self.take()
            await asyncio.sleep(INTERVAL_S)

    def take(self) -> None:
        """Take one sample."""
        self._samples.append(_sample(self._metrics, self._now_s()))

    def since(self, time_s: float) -> HistoryDocument:
        """Return the samples after a time, in seconds since 1970."""
        return HistoryDocument(
            now_s=self._now_s(), samples=[one for one in self._samples if one.time_s > time_s]
        )


_NUMBERS = {
    "bisenet_batch_size_sum": "pictures",
    "bisenet_batch_size_count": "batches",
    "bisenet_queue_depth": "queue",
    "bisenet_worker_busy_ratio": "busy",
    "bisenet_stream_active": "streams",
}


def _sample(metrics: Metrics, time_s: float) -> SampleDocument:
    sample = SampleDocument(time_s=time_s, frames={}, rejected={}, latency={})
    for name, labels, value in metrics.samples():
        if field := _NUMBERS.get(name):
            setattr(sample, field, value)
        elif name == "bisenet_stream_frames_total":
            sample.frames[labels["outcome"]] = value
        elif name == "bisenet_rejected_total":
            sample.rejected[labels["reason"]] = value
        elif name == "bisenet_request_duration_seconds_bucket" and _is_picture(labels["route"]):
            sample.latency[labels["le"]] = sample.latency.get(labels["le"], 0.0) + value
    return sample


def _is_picture(route: str) -> bool:
    return route.endswith(("segment", "/Segment"))


def history_router(history: MetricsHistory) -> APIRouter:
    """Return the route of the history.

    Args:
        history: of the metrics.
    """
    router = APIRouter(tags=["metrics"])

    @router.get("/admin/v1/history")
    async def show_history(after: Annotated[float, Query(allow_inf_nan=False)] = 0.0) -> HistoryDocument:
        """Show what the metrics said every five seconds, up to 15 minutes ago, after a time."""
        return history.since(after)

    return router
