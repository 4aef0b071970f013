"""The composition root: puts the service together, runs it, takes it apart in reverse."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import structlog
import uvloop
from starlette.types import ASGIApp

from model.artifact import Artifact
from model.errors import ModelError
from model.image import ImageLimits
from service.core.engine import (
    EngineOptions,
    EngineUnavailableError,
    InferenceEngine,
    usable_cores,
)
from service.core.host import ModelHost, ServedModel
from service.core.memory import limit_heaps, release_free_memory
from service.core.segmenter import Segmenter, SegmenterLimits
from service.core.worker import InferenceWorker
from service.engines import engine_builder, resolve_device
from service.http_api.access import LOOPBACK_HOSTS, AccessPolicy, key_digests
from service.http_api.app import HttpOptions, create_app
from service.http_api.body import BodyLimits
from service.http_api.health import Lifecycle
from service.http_api.segment import SegmentOptions
from service.http_api.server import BindError, HttpServer, listen, url_of
from service.registry import open_registry
from service.settings import Settings
from service.telemetry import LogOptions, configure_logging

_log = structlog.get_logger()


class StartError(Exception):
    """The service cannot start; the message is one line that says why."""


@dataclass(frozen=True)
class Ready:
    """What is served, and where: the first model is the default one."""

    url: str
    models: tuple[ServedModel, ...]

    def __str__(self) -> str:
        """Return one line for people."""
        engines = ", ".join(f"{m.version} ({m.engine.engine} {m.engine.precision})" for m in self.models)
        return f"Ready: {self.url}/v1/segment serves {engines}; documentation: {self.url}/docs"


@dataclass(frozen=True, eq=False)
class Service:
    """Everything that lives as long as the process."""

    settings: Settings
    host: ModelHost
    lifecycle: Lifecycle
    app: ASGIApp

    def load_models(self) -> None:
        """Load what the settings name; the first start compiles, later ones find caches.

        Raises:
            ModelError: a model is not there, or must not be used.
            EngineUnavailableError: this machine cannot run the engine.
        """
        registry = open_registry(self.settings)
        versions = [registry.resolve(reference) for reference in self.settings.models.serve]
        for wanted in versions:
            self.host.expect(wanted)
        for wanted in versions:
            self.host.load(wanted, registry.open(wanted))


def run_service(settings: Settings, *, on_ready: Callable[[Ready], None]) -> int:
    """Serve until a signal asks to stop.

    Args:
        settings: the configuration.
        on_ready: called once, when the first request can be answered.

    Returns:
        The exit code: 0, or 1 when a second signal cut requests off.

    Raises:
        StartError: the port is taken, or a model cannot be served.
        SettingsError: the keys file cannot be used.
    """
    limit_heaps()
    configure_logging(LogOptions(settings.log.level, settings.log.format))
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(listen(settings.server.host, settings.server.http_port))
            service = stack.enter_context(open_service(settings))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_serve(service, listener, on_ready))
        except (BindError, ModelError, EngineUnavailableError) as error:
            raise StartError(str(error)) from error


@contextmanager
def open_service(settings: Settings) -> Iterator[Service]:
    """Build a service that has not loaded a model yet; closed, it has answered what it had accepted."""
    with ExitStack() as stack:
        host = ModelHost(
            _engine_builder(settings),
            EngineOptions(
                device=resolve_device(settings.models.device),
                precision=settings.models.precision,
                cache_folder=settings.models.cache_folder,
            ),
            InferenceWorker(max_waiting=settings.limits.max_waiting),
        )
        stack.callback(host.close)
        pool = stack.enter_context(ThreadPoolExecutor(usable_cores(), thread_name_prefix="pictures"))
        lifecycle = Lifecycle()
        segmenter = Segmenter(host, pool, _segmenter_limits(settings))
        yield Service(
            settings, host, lifecycle, create_app(segmenter, host, pool, lifecycle, _http_options(settings))
        )


async def _serve(service: Service, listener: socket.socket, on_ready: Callable[[Ready], None]) -> int:
    server = HttpServer(service.app, grace_s=service.settings.server.grace_s)
    url = url_of(listener)

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True
        service.lifecycle.draining = True

    async def load() -> None:
        try:
            await asyncio.to_thread(service.load_models)
            release_free_memory()  # of the compiler: 60 MB
        except BaseException:
            server.should_exit = True
            raise
        service.lifecycle.started = True
        if not server.should_exit:
            _log.info("ready", url=url, models=[str(m.version) for m in service.host.models])
            on_ready(Ready(url, service.host.models))

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop)
    _log.info("listening", url=url)
    loading = asyncio.create_task(load())
    await server.serve(sockets=[listener])
    await loading  # a compiler cannot be interrupted
    return int(server.force_exit)


def _engine_builder(settings: Settings) -> Callable[[Artifact, EngineOptions], InferenceEngine]:
    def build(artifact: Artifact, options: EngineOptions) -> InferenceEngine:
        # The engine's library is imported here, while the probes answer already.
        return engine_builder(settings.models.engine, options.device)(artifact, options)

    return build


def _segmenter_limits(settings: Settings) -> SegmenterLimits:
    limits = settings.limits
    return SegmenterLimits(
        image=ImageLimits(limits.max_pixels, limits.max_side),
        max_infer_pixels=limits.max_infer_pixels,
        max_pixels_in_flight=limits.max_pixels_in_flight,
    )


def _http_options(settings: Settings) -> HttpOptions:
    server, limits = settings.server, settings.limits
    own_names = LOOPBACK_HOSTS | {server.host.lower(), *(name.lower() for name in server.allowed_hosts)}
    return HttpOptions(
        access=AccessPolicy(
            key_digests=key_digests(settings.auth.read_keys()),
            hosts=own_names if server.is_loopback else None,
        ),
        segment=SegmentOptions(
            body=BodyLimits(limits.max_body_bytes, limits.receive_timeout_s),
            default_timeout_s=limits.default_timeout_s,
        ),
    )
