"""The composition root: assembles the service, runs it, and closes it in reverse order."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvloop
from fastapi import APIRouter
from starlette.types import ASGIApp

from model.artifacts.manifest import ModelReference, ModelVersion
from model.artifacts.registry import ModelRegistry
from model.errors import ModelError, RegistryUrlError
from service.assembly import engine_options, open_core, worker_process
from service.core.device.engine import EngineOptions, EngineUnavailableError
from service.core.errors import NoWorkerError
from service.core.keys import key_digests
from service.core.memory import frozen_objects, limit_heaps
from service.core.models.live_versions import LiveVersions
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost
from service.core.models.scoreboard import Scoreboard
from service.core.readiness import Readiness
from service.durable_jobs.errors import JobsUnavailableError
from service.engine_choice import EngineChooser
from service.engines.choice import RACE_BUDGET_S
from service.frontends import Frontends
from service.grpc_api.limits import PeerLimits
from service.grpc_api.open_inference import OpenInferenceServicer
from service.grpc_api.server import GrpcBindError, GrpcServer
from service.grpc_api.servicer import Servicer, ServicerOptions
from service.grpc_api.streams import StreamLimits
from service.http_api.access import LOOPBACK_HOSTS, AccessPolicy
from service.http_api.admin.access import AdminPolicy
from service.http_api.admin.app import create_admin_app
from service.http_api.admin.drain import drain_router
from service.http_api.admin.evaluations import evaluations_router
from service.http_api.admin.metrics import metrics_router
from service.http_api.admin.tokens import TokenFileError, obtain_token
from service.http_api.admin.versions import versions_router
from service.http_api.app import HttpOptions, create_app
from service.http_api.connection.connection_limits import ConnectionLimits
from service.http_api.connection.server import BindError, HttpServer, affordable_connections, listen, url_of
from service.http_api.open_inference.repository import repository_admin_router
from service.http_api.segment.body import BodyLimits
from service.http_api.segment.segment import SegmentOptions
from service.jobs import JobsService, open_jobs
from service.log_stream import UnblockedStream
from service.open_inference.inference import Inference
from service.open_inference.statistics import InferenceStatistics
from service.registry import open_registry
from service.settings import Settings, SettingsError, is_loopback
from service.telemetry import LogOptions, Metrics, configure_logging

_log = structlog.get_logger()

_RETRY_S = 1.0


class StartError(Exception):
    """The service cannot start; the message is one line that says why."""


@dataclass(frozen=True)
class Ready:
    """Addresses and models of a service that is ready; the first model is the default one."""

    url: str
    grpc_address: str
    admin_url: str
    admin_token_file: Path
    models: tuple[LoadedModel, ...]

    def __str__(self) -> str:
        """Return one line for people."""
        engines = ", ".join(f"{m.version} ({m.engine.engine} {m.engine.precision})" for m in self.models)
        return (
            f"Ready: {self.url}/v1/segment serves {engines}; documentation: {self.url}/docs; "
            f"gRPC: {self.grpc_address}; administration: {self.admin_url}, token in {self.admin_token_file}"
        )


@dataclass(frozen=True, eq=False)
class Service:
    """The objects that live as long as the process."""

    settings: Settings
    registry: ModelRegistry
    chooser: EngineChooser
    host: ModelHost
    lifecycle: Readiness
    metrics: Metrics
    scoreboard: Scoreboard
    jobs: JobsService | None
    app: ASGIApp
    admin_app: ASGIApp
    servicer: Servicer
    open_inference: OpenInferenceServicer

    def load_models(self) -> None:
        """Load the models of the settings. The first start compiles and times engines; later ones use caches.

        Raises:
            ModelError: a model is missing, or must not be used.
            EngineUnavailableError: this machine cannot run the engine.
        """
        references = self.settings.models.serve
        budget_s = RACE_BUDGET_S / len(references)
        versions = [self.chooser.version(reference, budget_s=budget_s) for reference in references]
        for wanted in versions:
            self.host.expect(wanted)
        for wanted in versions:
            self._load(wanted)
        self.scoreboard.refresh(wanted.name for wanted in versions)

    def _load(self, version: ModelVersion) -> None:
        """Load a version; if worker processes die of it, try again until the service ends."""
        artifact = self.registry.open(version)
        while not self.lifecycle.draining:
            try:
                self.host.load(version, artifact)
            except NoWorkerError as error:
                time.sleep(min(error.retry_after_s, _RETRY_S))
            else:
                return

    def start_jobs(self) -> None:
        """Start evaluation jobs, after the models are loaded.

        Raises:
            JobsUnavailableError: the jobs database cannot be used, or another worker has this worker's name.
        """
        if self.jobs is not None:
            self.jobs.start(self.host, self.chooser, self.registry, self.scoreboard, self.metrics)


@dataclass(frozen=True, eq=False)
class Listeners:
    """The open sockets of the frontends."""

    http: socket.socket
    admin: socket.socket


def run_service(settings: Settings, *, on_ready: Callable[[Ready], None]) -> int:
    """Serve until a signal stops the service.

    Args:
        settings: the configuration.
        on_ready: called once, when the first request can be answered.

    Returns:
        The exit code: 0, or 1 if requests were cut off or a model was still being loaded.

    Raises:
        StartError: a port is in use, or a model cannot be served.
        SettingsError: the keys file cannot be used.
    """
    limit_heaps()
    with ExitStack() as stack:
        stream = stack.enter_context(closing(UnblockedStream(sys.stderr.fileno())))
        configure_logging(LogOptions(settings.log.level, settings.log.format), stream)
        try:
            listeners = _listen(settings, stack)
            service = stack.enter_context(open_service(settings))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                code = runner.run(_serve(service, listeners, on_ready))
                if code:
                    # A thread cannot be interrupted: closing would wait for the requests that were cut off.
                    _log.warning("stopped before everything was answered")
                    stream.close()
                    os._exit(code)
                return code
        except (BindError, GrpcBindError, JobsUnavailableError, ModelError, EngineUnavailableError) as error:
            raise StartError(str(error)) from error


def _listen(settings: Settings, stack: ExitStack) -> Listeners:
    server = settings.server
    return Listeners(
        http=stack.enter_context(listen(server.host, server.http_port)),
        admin=stack.enter_context(listen(server.admin_host, server.admin_port)),
    )


@contextmanager
def open_service(settings: Settings) -> Iterator[Service]:
    """Open a service without models. At the end of the context, all accepted requests are answered."""
    registry = _open_registry(settings)
    with ExitStack() as stack:
        metrics = Metrics()
        chooser = EngineChooser(settings, registry)
        core = stack.enter_context(open_core(settings, worker_process(settings), chooser.tuning, metrics))
        lifecycle = Readiness()
        scoreboard = Scoreboard(registry)
        statistics = InferenceStatistics()
        jobs = stack.enter_context(open_jobs(settings, registry, chooser))
        app = create_app(
            core.segmenter,
            core.host,
            lifecycle=lifecycle,
            metrics=metrics,
            options=_http_options(settings),
            scoreboard=scoreboard,
            statistics=statistics,
        )
        references = [ModelReference.parse(reference) for reference in settings.models.serve]
        versions = LiveVersions(registry, core.host, references)
        admin_app = create_admin_app(
            [
                metrics_router(metrics),
                drain_router(lifecycle),
                versions_router(versions),
                repository_admin_router(versions),
                *_job_routers(jobs, lifecycle),
            ],
            policy=_admin_policy(settings),
            lifecycle=lifecycle,
            metrics=metrics,
        )
        servicer = Servicer(core.segmenter, core.host, metrics, _servicer_options(settings))
        open_inference = OpenInferenceServicer(
            servicer.calls,
            Inference(core.segmenter, at_once=_pictures_at_once(settings)),
            core.host,
            metrics=metrics,
            statistics=statistics,
            is_ready=lambda: core.host.ready and not lifecycle.draining,
        )
        yield Service(
            settings,
            registry,
            chooser,
            core.host,
            lifecycle,
            metrics,
            scoreboard,
            jobs,
            app,
            admin_app,
            servicer,
            open_inference,
        )


def _job_routers(jobs: JobsService | None, lifecycle: Readiness) -> list[APIRouter]:
    return [] if jobs is None else [evaluations_router(jobs.submission, jobs.pool, lifecycle)]


async def _serve(service: Service, listeners: Listeners, on_ready: Callable[[Ready], None]) -> int:
    lifecycle, server = service.lifecycle, service.settings.server
    grpc_server = _grpc_server(service)
    grpc_address = grpc_server.bind(server.host, server.grpc_port)
    frontends = Frontends(
        [_http_server(service, service.app, listeners.http), grpc_server],
        _http_server(service, service.admin_app, listeners.admin),
        lifecycle,
        lame_duck_s=server.lame_duck_s,
        grace_s=server.grace_s,
    )

    async def load() -> None:
        try:
            await asyncio.to_thread(service.load_models)
            await asyncio.to_thread(service.start_jobs)
        except BaseException:
            frontends.end()
            raise
        frozen.enter_context(frozen_objects())
        lifecycle.started = True
        if not frontends.ending:
            _log.info("ready", url=url, models=[str(m.version) for m in service.host.models])
            on_ready(Ready(url, grpc_address, admin_url, token_file, service.host.models))

    url, admin_url = url_of(listeners.http), url_of(listeners.admin)
    auth = service.settings.auth
    token_file = auth.admin_token_file
    _log.info(
        "listening",
        url=url,
        grpc_address=grpc_address,
        admin_url=admin_url,
        token=str(token_file),
        scrape_token=str(auth.scrape_token_file),
    )
    with ExitStack() as frozen:
        loading = asyncio.create_task(load())
        code = await frontends.run(loading)
        if not code:
            await loading  # has ended, but may have failed
    return code


def _http_server(service: Service, app: ASGIApp, listener: socket.socket) -> HttpServer:
    server, limits = service.settings.server, service.settings.limits
    return HttpServer(
        app,
        listener,
        grace_s=server.grace_s - server.lame_duck_s,
        limits=ConnectionLimits(
            max_connections=affordable_connections(limits.max_connections),
            head_timeout_s=limits.head_timeout_s,
            idle_timeout_s=limits.idle_timeout_s,
        ),
        metrics=service.metrics,
    )


def _grpc_server(service: Service) -> GrpcServer:
    server, limits = service.settings.server, service.settings.limits
    host, lifecycle = service.host, service.lifecycle
    return GrpcServer(
        service.servicer,
        service.open_inference,
        lambda: host.ready and not lifecycle.draining,
        PeerLimits(limits.max_body_bytes, limits.max_streams, limits.max_calls),
        grace_s=server.grace_s - server.lame_duck_s,
    )


def _servicer_options(settings: Settings) -> ServicerOptions:
    limits = settings.limits
    return ServicerOptions(
        key_digests=key_digests(settings.auth.read_keys()),
        default_timeout_s=limits.default_timeout_s,
        receive_timeout_s=limits.receive_timeout_s,
        max_image_bytes=limits.max_body_bytes,
        max_image_bytes_in_flight=limits.max_body_bytes_in_flight,
        max_calls=limits.max_calls,
        streams=StreamLimits(max_frame_age_s=limits.default_timeout_s, max_frame_bytes=limits.max_body_bytes),
        max_started_frames=_frames_at_once(engine_options(settings)),
        max_started_film_frames=2 * engine_options(settings).max_batch,
    )


def _frames_at_once(options: EngineOptions) -> int:
    """Return the number of started frames of all live streams: those on the device, and the next ones.

    On a CPU one and one: two side by side give a few percent more frames, each twice as old.
    """
    return 2 if options.device == "cpu" else 2 * options.max_batch


def _http_options(settings: Settings) -> HttpOptions:
    server, limits = settings.server, settings.limits
    is_listed = server.is_loopback or bool(server.allowed_hosts)
    return HttpOptions(
        access=AccessPolicy(
            key_digests=key_digests(settings.auth.read_keys()),
            hosts=_own_names(server.host, server.allowed_hosts) if is_listed else None,
        ),
        segment=SegmentOptions(
            body=BodyLimits(limits.max_body_bytes, limits.receive_timeout_s),
            max_body_bytes_in_flight=limits.max_body_bytes_in_flight,
            max_answer_bytes_in_flight=limits.max_answer_bytes_in_flight,
            default_timeout_s=limits.default_timeout_s,
        ),
        cors_origins=server.cors_origins,
        root_path=server.root_path,
        page=server.page == "on" or (server.page == "auto" and server.is_loopback),
        pictures_at_once=_pictures_at_once(settings),
    )


def _pictures_at_once(settings: Settings) -> int:
    """Say how many pictures of one request are queued at the same time: those on the device, and the next."""
    return 2 * engine_options(settings).max_batch


def _admin_policy(settings: Settings) -> AdminPolicy:
    host, auth = settings.server.admin_host, settings.auth
    return AdminPolicy(
        _token("admin_token_file", auth.admin_token_file),
        _token("scrape_token_file", auth.scrape_token_file),
        _own_names(host, settings.server.allowed_hosts) if is_loopback(host) else None,
    )


def _token(key: str, path: Path) -> str:
    try:
        return obtain_token(path)
    except TokenFileError as error:
        raise SettingsError(f"auth.{key}: {error}") from error


def _own_names(host: str, allowed: Sequence[str]) -> frozenset[str]:
    return LOOPBACK_HOSTS | {host.lower(), *(name.lower() for name in allowed)}


def _open_registry(settings: Settings) -> ModelRegistry:
    try:
        return open_registry(settings)
    except RegistryUrlError as error:
        raise SettingsError(f"registry.url: {error}") from error
