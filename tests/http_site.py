"""The HTTP application around a fake engine, for tests: everything else is the real thing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import numpy as np
from fakes import FAKE_MANIFEST, FakeEngine
from PIL import Image
from starlette.types import ASGIApp

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.evaluation import network_passes
from model.labels import UInt8Array
from service.core.device.device import Device
from service.core.device.engine import EngineOptions
from service.core.device.in_process import InProcessRunner
from service.core.models.model_host import ModelHost
from service.core.pictures.segmenter import Segmenter, SegmenterLimits
from service.core.readiness import Readiness
from service.core.scheduling.dispatcher import Dispatcher
from service.http_api.app import HttpOptions, create_app
from service.spans import NO_TRACING, Tracing
from service.telemetry import Metrics

FAKE_VERSIONS = (ModelVersion("fake", 3), ModelVersion("other", 1))
_ARTIFACT = Artifact(Path("nowhere"), FAKE_MANIFEST)


@dataclass(frozen=True)
class Site:
    """An application in this process and a client that talks to it."""

    app: ASGIApp
    client: httpx2.AsyncClient
    host: ModelHost
    engine: FakeEngine
    lifecycle: Readiness
    metrics: Metrics

    def load(self, version: ModelVersion) -> None:
        """Let the host serve one more version."""
        self.host.load(version, _ARTIFACT)


@asynccontextmanager
async def open_site(
    engine: FakeEngine | None = None,
    *,
    options: HttpOptions | None = None,
    limits: SegmenterLimits | None = None,
    max_waiting: int = 256,
    versions: Sequence[ModelVersion] = FAKE_VERSIONS,
    tracing: Tracing = NO_TRACING,
) -> AsyncIterator[Site]:
    """Serve a fake model; closed, everything that was accepted has been answered."""
    engine = engine or FakeEngine()
    lifecycle = Readiness()
    network_passes.warm_up()  # finds compiled kernels; the test's own folder would be empty each time
    with ExitStack() as stack:
        cache_folder = Path(stack.enter_context(TemporaryDirectory()))
        engine_options = EngineOptions(device="cpu", precision="f32", cache_folder=cache_folder)
        device = Device(lambda _artifact, _options: engine, engine_options, decode_threads=1)
        host = ModelHost(Dispatcher(InProcessRunner(device), max_waiting=max_waiting, tracing=tracing))
        stack.callback(host.close)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        metrics = Metrics()
        segmenter = Segmenter(pool, limits, metrics)
        app = create_app(
            segmenter,
            host,
            lifecycle=lifecycle,
            metrics=metrics,
            options=options or HttpOptions(),
            tracing=tracing,
        )
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            site = Site(app, client, host, engine, lifecycle, metrics)
            for version in versions:
                site.load(version)
            lifecycle.started = bool(versions)
            yield site


def picture_of(ids_HW: UInt8Array) -> UInt8Array:
    """Return a picture that the fake model labels like this, if each 8x8 cell has one id."""
    return np.repeat(85 * ids_HW[:, :, np.newaxis], 3, axis=2)


def encoded(image_HW3: UInt8Array, image_format: str = "PNG", **options: object) -> bytes:
    """Return the bytes of a picture file."""
    buffer = BytesIO()
    Image.fromarray(image_HW3).save(buffer, image_format, **options)
    return buffer.getvalue()
