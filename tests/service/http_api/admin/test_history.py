"""The last 15 minutes of the metrics."""

from __future__ import annotations

import httpx2
from fastapi import FastAPI

from service.http_api.admin.history import INTERVAL_S, WINDOW_S, MetricsHistory, history_router
from service.telemetry import Metrics


class Clock:
    def __init__(self) -> None:
        self.time_s = 1000.0

    def __call__(self) -> float:
        return self.time_s


def test_a_sample_holds_what_the_metrics_say() -> None:
    metrics, clock = Metrics(), Clock()
    metrics.batch_done(size=2, padding_ratio=0.0)
    metrics.batch_done(size=1, padding_ratio=0.0)
    metrics.watch(queue_depth=lambda: 5.0, busy_ratio=lambda: 0.25)
    metrics.rejected("queue_full")
    metrics.frame_done("superseded", count=3)
    for route, duration_s in (
        ("/v1/segment", 0.02),
        ("/segmentation.v1.Segmentation/Segment", 0.2),
        ("/livez", 9),
    ):
        metrics.request_done(protocol="http", route=route, code="ok", duration_s=duration_s)
    history = MetricsHistory(metrics, clock)
    history.take()
    (sample,) = history.since(0.0).samples
    assert (sample.time_s, sample.pictures, sample.batches) == (1000.0, 3, 2)
    assert (sample.queue, sample.busy, sample.streams) == (5, 0.25, 0)
    assert sample.rejected["queue_full"] == 1
    assert sample.frames["superseded"] == 3
    assert (sample.latency["0.02"], sample.latency["0.25"], sample.latency["+Inf"]) == (1, 2, 2)


def test_fifteen_minutes_are_kept_and_no_more() -> None:
    clock = Clock()
    history = MetricsHistory(Metrics(), clock)
    for _ in range(1000):
        history.take()
        clock.time_s += INTERVAL_S
    samples = history.since(0.0).samples
    assert samples[-1].time_s - samples[0].time_s == WINDOW_S


async def test_a_page_asks_for_what_is_new() -> None:
    clock = Clock()
    history = MetricsHistory(Metrics(), clock)
    app = FastAPI()
    app.include_router(history_router(history))
    for _ in range(3):
        history.take()
        clock.time_s += INTERVAL_S
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://admin") as client:
        answer = (await client.get("/admin/v1/history", params={"after": 1005})).json()
    assert [sample["time_s"] for sample in answer["samples"]] == [1010]
    assert answer["now_s"] == 1015
