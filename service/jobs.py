"""Evaluation jobs, put together as the settings say: where they are kept, who runs them, who reports."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial

import structlog

from model.artifacts.registry import ModelRegistry
from model.errors import DatasetError
from service.assembly import engine_options, open_core, worker_process
from service.core.device.restart_policy import WorkerTimeouts
from service.core.errors import ServiceError
from service.core.jobs.evaluation_job import EvaluationJobs, JsonObject
from service.core.jobs.evaluation_steps import Datasets, HostedEvaluation
from service.core.jobs.submission import EvaluationSubmission
from service.core.memory import limit_heaps
from service.core.models.model_host import ModelHost
from service.core.models.scoreboard import Scoreboard
from service.core.niceness import yield_to_others
from service.durable_jobs.client import DurableJobs, open_client
from service.durable_jobs.database import JobsDatabase
from service.durable_jobs.worker import WorkerOptions, run_jobs
from service.engine_choice import EngineChooser
from service.engines import resolve_device
from service.machine import this_machine
from service.registry import open_registry
from service.settings import Settings, SettingsError
from service.telemetry import LogOptions, Metrics, configure_logging

_DESK_THREADS = 4
_COUNTING_THREADS = 2
_GRACE_S = 10.0
_JOBS_NICENESS = 19
_STARVED_S = 600.0
"""How long a batch of a job may take beside requests that leave it hardly any of the processor."""

_REPORT_INTERVAL_S = 5.0

_log = structlog.get_logger()


class JobsService:
    """The jobs of a service; see ``open_jobs``.

    Args:
        settings: of the service.
        database: prepared, and owned by this process where it is to run jobs.
        desk: takes jobs in.
        pool: threads for the desk.
        stack: what is started is closed with it.
    """

    def __init__(
        self,
        settings: Settings,
        database: JobsDatabase,
        desk: EvaluationSubmission,
        pool: Executor,
        stack: ExitStack,
    ) -> None:
        self.desk = desk
        self.pool = pool
        self._settings = settings
        self._database = database
        self._stack = stack

    def start(
        self,
        host: ModelHost,
        chooser: EngineChooser,
        registry: ModelRegistry,
        scoreboard: Scoreboard,
        metrics: Metrics,
    ) -> None:
        """Begin to run jobs, unless workers do it, and to report about them; once the models are loaded.

        Raises:
            JobsUnavailableError: the database cannot be used, or another worker has this one's name.
        """
        if self._settings.jobs.mode == "embedded":
            open_host = partial(_host_of_jobs, self._settings, chooser, host)
            self._stack.enter_context(working(self._settings, self._database, open_host, registry))
        reporter = JobsReporter(self.desk.jobs, scoreboard, metrics)
        reporter.start()
        self._stack.callback(reporter.close)


@contextmanager
def open_jobs(
    settings: Settings, registry: ModelRegistry, chooser: EngineChooser
) -> Iterator[JobsService | None]:
    """Open the jobs database; None where there are no jobs.

    Raises:
        SettingsError: a configured data-set file is broken.
        JobsUnavailableError: the database cannot be used, or another process runs the jobs of its file.
    """
    if settings.jobs.mode == "off":
        yield None
        return
    datasets = _usable_datasets(settings, may_be_elsewhere=settings.jobs.mode == "external")
    database = jobs_database(settings)
    with ExitStack() as stack:
        if settings.jobs.mode == "embedded":
            stack.enter_context(database.owned())
        database.prepare()
        client = stack.enter_context(open_client(database))
        pool = stack.enter_context(ThreadPoolExecutor(_DESK_THREADS, thread_name_prefix="desk"))
        desk = EvaluationSubmission(
            DurableJobs(client),
            registry,
            settings.datasets.keys(),
            check_split=datasets.check_split,
            choose=chooser.known,
        )
        yield JobsService(settings, database, desk, pool, stack)


def run_worker(settings: Settings, *, on_ready: Callable[[str], None]) -> None:
    """Run jobs until SIGTERM or Ctrl-C, without frontends.

    Args:
        settings: the configuration.
        on_ready: told the name of this worker, once, when it takes jobs.

    Raises:
        SettingsError: a configured data-set file is broken.
        JobsUnavailableError: the jobs database cannot be used, or another process has it or this name.
        RegistryUrlError: the registry's URL names no store.
    """
    limit_heaps()
    configure_logging(LogOptions(settings.log.level, settings.log.format))
    _usable_datasets(settings, may_be_elsewhere=False)
    stopped = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopped.set())
    database, registry = jobs_database(settings), open_registry(settings)
    with ExitStack() as stack:
        stack.enter_context(database.owned())
        database.prepare()
        chooser = EngineChooser(settings, registry)
        core = stack.enter_context(open_core(settings, worker_process(settings), chooser.tuning))
        stack.enter_context(working(settings, database, lambda: nullcontext(core.host), registry))
        on_ready(worker_id(settings))
        stopped.wait()


@contextmanager
def working(
    settings: Settings,
    database: JobsDatabase,
    open_host: Callable[[], AbstractContextManager[ModelHost]],
    registry: ModelRegistry,
) -> Iterator[None]:
    """Run jobs of a prepared database as long as the context lasts.

    Args:
        settings: data sets, the engine, and the name of this worker.
        database: prepared, and owned by this process where it is a file.
        open_host: opens what runs the networks, when there are jobs.
        registry: has the models, and keeps the reports.

    Raises:
        JobsUnavailableError: the database cannot be used, or another worker has this one's name.
    """
    environment = worker_environment(settings)
    with ThreadPoolExecutor(
        _COUNTING_THREADS, thread_name_prefix="counting", initializer=yield_to_others
    ) as pool:
        datasets = Datasets(settings.datasets)
        work = HostedEvaluation(open_host, registry, datasets, pool, environment=environment)
        options = WorkerOptions(worker_id(settings), environment, grace_s=_GRACE_S)
        try:
            with run_jobs(database, work, options):
                yield
        finally:
            work.close()


def _usable_datasets(settings: Settings, *, may_be_elsewhere: bool) -> Datasets:
    """Return the configured data sets.

    Args:
        settings: name them.
        may_be_elsewhere: a file that is not on this machine is no error: workers have it.

    Raises:
        SettingsError: a file is broken.
    """
    datasets = Datasets(settings.datasets)
    try:
        datasets.check_files(may_be_elsewhere=may_be_elsewhere)
    except DatasetError as error:
        raise SettingsError(str(error)) from error
    return datasets


@contextmanager
def _host_of_jobs(settings: Settings, chooser: EngineChooser, served: ModelHost) -> Iterator[ModelHost]:
    """Open what runs the networks of embedded jobs.

    A batch that has begun cannot be interrupted, and on a CPU one of a job takes longer than most requests:
    there jobs have a process of their own, which the system interrupts whenever another one has work to do.
    """
    if engine_options(settings).device != "cpu":
        yield served
        return
    runner = worker_process(settings, niceness=_JOBS_NICENESS, patience=WorkerTimeouts(job_s=_STARVED_S))
    with open_core(settings, runner, chooser.tuning) as core:
        yield core.host


def jobs_database(settings: Settings) -> JobsDatabase:
    """Return the database that the settings name."""
    url = settings.jobs.database
    return JobsDatabase.at(None if url is None else url.get_secret_value(), settings.jobs.state_folder)


def worker_id(settings: Settings) -> str:
    """Return the name of this worker: one for each device of a machine, if none is configured."""
    return (
        settings.jobs.worker_id
        or f"{socket.gethostname()}-{resolve_device(settings.models.device, settings.models.engine)}"
    )


def worker_environment(settings: Settings) -> JsonObject:
    """Return what results depend on: workers share a job only when theirs are equal.

    Which of several GPUs a worker has is left out, and the precision: a job says which one it needs.
    """
    models = settings.models
    chosen = {
        "engine": models.engine.partition(":")[0],  # without the arguments of a plug-in
        "device": resolve_device(models.device, models.engine).partition(":")[0],
    }
    plain: JsonObject = json.loads(json.dumps(asdict(this_machine())))  # as it comes back from the database
    return plain | chosen


class JobsReporter:
    """Tells the metrics and the scoreboard what became of the jobs, every few seconds, in its own thread.

    Args:
        jobs: all of them.
        scoreboard: told of models with new results.
        metrics: told of all.
    """

    def __init__(self, jobs: EvaluationJobs, scoreboard: Scoreboard, metrics: Metrics) -> None:
        self._jobs = jobs
        self._scoreboard = scoreboard
        self._metrics = metrics
        self._told: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs-reporter", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stopping.set()
        self._thread.join()

    def report(self) -> None:
        """Look at all jobs once.

        Raises:
            ServiceError: the database does not answer.
        """
        jobs = self._jobs.list()
        self._metrics.eval_jobs(Counter(job.state.value for job in jobs))
        new = [job for job in reversed(jobs) if job.result is not None and job.id not in self._told]
        for job in new:
            assert job.result is not None
            if job.result.miou is not None:
                version = job.request.version
                self._metrics.eval_scored(
                    model=version.name,
                    version=version.number,
                    dataset=job.request.dataset,
                    protocol=job.request.protocol,
                    miou=job.result.miou,
                )
        self._scoreboard.refresh(job.request.version.name for job in new)
        self._told.update(job.id for job in new)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.report()
            except ServiceError as error:
                _log.warning("jobs cannot be read", reason=str(error))
            except Exception:  # noqa: BLE001 - the outermost edge of the thread: the next report must come
                _log.exception("reporting about jobs failed")
            self._stopping.wait(_REPORT_INTERVAL_S)
