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
from typing import TYPE_CHECKING

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
from service.core.keys.access_key import AccessKey
from service.core.keys.key_file import KeyFileError
from service.core.keys.key_ring import KeyRing
from service.core.memory import frozen_objects, limit_heaps
from service.core.models.alias_follower import AliasFollower
from service.core.models.live_versions import LiveVersions
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost
from service.core.models.scoreboard import Scoreboard
from service.core.readiness import Readiness
from service.core.tls import CertificateFollower, TlsError
from service.durable_jobs.errors import JobsUnavailableError
from service.engine_choice import EngineChooser
from service.engines import tell_missing_gpu
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
from service.http_api.admin.audit import AuditLog
from service.http_api.admin.drain import drain_router
from service.http_api.admin.evaluation_pictures import evaluation_pictures_router
from service.http_api.admin.evaluations import evaluations_router
from service.http_api.admin.history import MetricsHistory, history_router
from service.http_api.admin.metrics import metrics_router
from service.http_api.admin.predictions import predictions_router
from service.http_api.admin.tokens import TokenFileError, obtain_token
from service.http_api.admin.versions import versions_router
from service.http_api.app import HttpOptions, create_app
from service.http_api.connection.connection_limits import ConnectionLimits
from service.http_api.connection.server import BindError, HttpServer, affordable_connections, listen, url_of
from service.http_api.open_inference.repository import repository_admin_router
from service.http_api.segment.body import BodyLimits
from service.http_api.segment.intake import SegmentOptions
from service.jobs import JobsService, open_jobs
from service.log_stream import UnblockedStream
from service.open_inference.inference import Inference
from service.open_inference.statistics import InferenceStatistics
from service.registry import open_registry
from service.settings import Settings, SettingsError, TracingSettings, is_loopback
from service.spans import NO_TRACING, Tracing
from service.telemetry import LogOptions, Metrics, configure_logging

if TYPE_CHECKING:
    from service.http_api.page import Page

_log = structlog.get_logger()

_RETRY_S = 1.0

_FRAME_HEAD_BYTES = 1024
"""Of a WebSocket's message, beside its picture."""


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
    follower: AliasFollower
    app: ASGIApp
    admin_app: ASGIApp
    servicer: Servicer
    open_inference: OpenInferenceServicer
    history: MetricsHistory | None

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
        """Start jobs, after the models are loaded.

        Raises:
            JobsUnavailableError: the jobs database cannot be used, or another worker has this worker's name.
        """
        if self.jobs is not None:
            self.jobs.start(self.host, self.chooser, self.registry, self.scoreboard, self.metrics)

    def follow_aliases(self) -> None:
        """Begin to follow the aliases of the served models, after these are loaded."""
        if not self.lifecycle.draining:
            self.follower.start()


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
        SettingsError: the keys file or a certificate cannot be used.
    """
    limit_heaps()
    with ExitStack() as stack:
        stream = stack.enter_context(closing(UnblockedStream(sys.stderr.fileno())))
        configure_logging(LogOptions(settings.log.level, settings.log.format), stream)
        tell_missing_gpu(settings.models.device)
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
        except TlsError as error:
            raise SettingsError(f"server.tls: {error}") from error
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
    keys = _open_keys(settings)
    with ExitStack() as stack:
        metrics = Metrics()
        tracing = stack.enter_context(_open_tracing(settings.tracing))
        chooser = EngineChooser(settings, registry)
        core = stack.enter_context(
            open_core(settings, worker_process(settings), chooser.tuning, metrics, tracing)
        )
        lifecycle = Readiness()
        scoreboard = Scoreboard(registry)
        statistics = InferenceStatistics()
        jobs = stack.enter_context(open_jobs(settings, registry, chooser))
        servicer = Servicer(core.segmenter, core.host, metrics, _servicer_options(settings, keys), tracing)
        app = create_app(
            core.segmenter,
            core.host,
            lifecycle=lifecycle,
            metrics=metrics,
            options=_http_options(settings, keys),
            scoreboard=scoreboard,
            statistics=statistics,
            tracing=tracing,
            frames=servicer.answer_messages,
        )
        references = [ModelReference.parse(reference) for reference in settings.models.serve]
        versions = LiveVersions(registry, core.host, references)
        follower = stack.enter_context(AliasFollower(versions, settings.registry.follow_s))
        admin_page, history = _admin_page(settings), MetricsHistory(metrics)
        admin_app = create_admin_app(
            [
                metrics_router(metrics),
                drain_router(lifecycle),
                versions_router(versions),
                repository_admin_router(versions),
                *_job_routers(jobs, core.host, lifecycle),
                *_page_routers(admin_page, history),
            ],
            policy=_admin_policy(settings, keys, frozenset() if admin_page is None else admin_page.paths),
            lifecycle=lifecycle,
            metrics=metrics,
            audit=AuditLog(settings.log.audit_file),
        )
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
            follower,
            app,
            admin_app,
            servicer,
            open_inference,
            None if admin_page is None else history,
        )


@contextmanager
def _open_tracing(settings: TracingSettings) -> Iterator[Tracing]:
    """Trace requests if the settings name a receiver; closed, what is left has been sent."""
    if settings.endpoint is None:
        yield NO_TRACING
        return
    try:
        from service.tracing import OpenTelemetry, TracingOptions  # noqa: PLC0415  # an extra
    except ImportError:
        raise SettingsError(
            "tracing.endpoint: traces need the extra tracing: pip install 'bisenet-service[tracing]'"
        ) from None
    options = TracingOptions(settings.endpoint, settings.sampling, settings.service_name)
    with closing(OpenTelemetry(options)) as tracing:
        yield tracing


def _admin_page(settings: Settings) -> Page | None:
    if not _has_page(settings, settings.server.admin_host):
        return None
    from service.http_api.page import ADMIN_FOLDERS, Page  # noqa: PLC0415  # loaded only where it is served

    return Page(ADMIN_FOLDERS, "admin/index.html")


def _page_routers(page: Page | None, history: MetricsHistory) -> list[APIRouter]:
    return [] if page is None else [page.router(), history_router(history)]


def _job_routers(jobs: JobsService | None, host: ModelHost, lifecycle: Readiness) -> list[APIRouter]:
    if jobs is None:
        return []
    return [
        evaluations_router(jobs.submission, jobs.pool, lifecycle),
        evaluation_pictures_router(jobs.pictures(host), jobs.picture_pool),
        predictions_router(jobs.predictions, jobs.pool, lifecycle),
    ]


async def _serve(service: Service, listeners: Listeners, on_ready: Callable[[Ready], None]) -> int:
    lifecycle, server = service.lifecycle, service.settings.server
    grpc_server = _grpc_server(service)
    tls = None if server.tls.files is None else CertificateFollower(server.tls.files)
    grpc_address = grpc_server.bind(server.host, server.grpc_port, tls)
    frontends = Frontends(
        [
            _http_server(service, service.app, listeners.http, tls, _websocket_paths(service.settings)),
            grpc_server,
        ],
        _http_server(service, service.admin_app, listeners.admin, tls),
        lifecycle,
        lame_duck_s=server.lame_duck_s,
        grace_s=server.grace_s,
    )

    async def load() -> None:
        try:
            await asyncio.to_thread(service.load_models)
            await asyncio.to_thread(service.start_jobs)
            service.follow_aliases()
        except BaseException:
            frontends.end()
            raise
        frozen.enter_context(frozen_objects())
        lifecycle.started = True
        if not frontends.ending:
            _log.info("ready", url=url, models=[str(m.version) for m in service.host.models])
            on_ready(Ready(url, grpc_address, admin_url, token_file, service.host.models))

    url, admin_url = (url_of(socket_, server.tls.scheme) for socket_ in (listeners.http, listeners.admin))
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
        keeping = None if service.history is None else asyncio.create_task(service.history.keep())
        code = await frontends.run(loading)
        if keeping is not None:
            keeping.cancel()
        if not code:
            await loading  # has ended, but may have failed
    return code


def _http_server(
    service: Service,
    app: ASGIApp,
    listener: socket.socket,
    tls: CertificateFollower | None,
    websocket_paths: frozenset[str] = frozenset(),
) -> HttpServer:
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
        tls=None if tls is None else tls.http_context(),
        websocket_paths=websocket_paths,
        max_message_bytes=limits.max_body_bytes + _FRAME_HEAD_BYTES,
    )


def _websocket_paths(settings: Settings) -> frozenset[str]:
    if not _has_page(settings, settings.server.host):
        return frozenset()
    from service.http_api.camera import CAMERA_PATH  # noqa: PLC0415  # loaded with the page only

    return frozenset({CAMERA_PATH, settings.server.root_path + CAMERA_PATH})


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


def _servicer_options(settings: Settings, keys: KeyRing) -> ServicerOptions:
    limits = settings.limits
    return ServicerOptions(
        keys=keys if settings.auth.needs_key else None,
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


def _http_options(settings: Settings, keys: KeyRing) -> HttpOptions:
    server, limits = settings.server, settings.limits
    is_listed = server.is_loopback or bool(server.allowed_hosts)
    return HttpOptions(
        access=AccessPolicy(
            keys=keys if settings.auth.needs_key else None,
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
        page=_has_page(settings, server.host),
        max_streams=limits.max_calls,
        pictures_at_once=_pictures_at_once(settings),
    )


def _pictures_at_once(settings: Settings) -> int:
    """Say how many pictures of one request are queued at the same time: those on the device, and the next."""
    return 2 * engine_options(settings).max_batch


def _has_page(settings: Settings, host: str) -> bool:
    return settings.server.page == "on" or (settings.server.page == "auto" and is_loopback(host))


def _admin_policy(settings: Settings, keys: KeyRing, open_paths: frozenset[str]) -> AdminPolicy:
    host = settings.server.admin_host
    hosts = _own_names(host, settings.server.allowed_hosts) if is_loopback(host) else None
    return AdminPolicy(keys, hosts, open_paths)


def _open_keys(settings: Settings) -> KeyRing:
    auth = settings.auth
    scrape_token = _token("scrape_token_file", auth.scrape_token_file)
    admin_token = _token("admin_token_file", auth.admin_token_file)
    keys = [
        *(AccessKey.of_secret(key.get_secret_value()) for key in auth.keys),
        AccessKey.of_secret(scrape_token, ("metrics",), "scrape-token"),
        AccessKey.of_secret(admin_token, ("admin",), "admin-token"),
    ]
    try:
        return KeyRing(keys, auth.keys_file)
    except KeyFileError as error:
        raise SettingsError(f"auth.keys_file: {error}") from error


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
