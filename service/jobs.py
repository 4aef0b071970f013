"""Assembles jobs from the settings: their database, what runs them, and what reports them."""

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
from model.decoding.kernels import keep_kernels_in
from model.errors import DatasetError, RegistryUrlError
from service.assembly import engine_options, open_core, segmenter_limits, worker_process
from service.core.device.engine import private_folder
from service.core.device.restart_policy import WorkerTimeouts
from service.core.errors import ServiceError
from service.core.jobs.evaluated_pictures import EvaluatedPictures
from service.core.jobs.evaluation_job import EVALUATIONS, EvaluationJobs
from service.core.jobs.evaluation_steps import Datasets, EvaluationSteps
from service.core.jobs.job import JsonObject
from service.core.jobs.job_models import JobModels
from service.core.jobs.picture_stores import PictureStores
from service.core.jobs.prediction_job import PREDICTIONS, PredictionJobs
from service.core.jobs.prediction_steps import PredictionSteps
from service.core.jobs.submission import EvaluationSubmission, PredictionSubmission
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

_SUBMISSION_THREADS = 4
_COUNTING_THREADS = 2
_GRACE_S = 10.0
_JOBS_NICENESS = 19
_BATCH_TIMEOUT_S = 600.0
"""Time for a batch of a job while requests leave it hardly any processor time."""

_REPORT_INTERVAL_S = 5.0

_log = structlog.get_logger()


class JobsService:
    """The jobs of a service; made by ``open_jobs``.

    Args:
        settings: of the service.
        database: prepared, and owned by this process if it runs jobs.
        submission: queues evaluation jobs.
        predictions: queues bulk predictions.
        pool: threads that call these.
        datasets: on this machine.
        picture_pool: one thread, which shows pictures of evaluations.
        stack: closes what ``start`` has started.
    """

    def __init__(
        self,
        settings: Settings,
        database: JobsDatabase,
        submission: EvaluationSubmission,
        predictions: PredictionSubmission,
        *,
        pool: Executor,
        datasets: Datasets,
        picture_pool: Executor,
        stack: ExitStack,
    ) -> None:
        self.submission = submission
        self.predictions = predictions
        self.pool = pool
        self.picture_pool = picture_pool
        self._datasets = datasets
        self._settings = settings
        self._database = database
        self._stack = stack

    def pictures(self, host: ModelHost) -> EvaluatedPictures:
        """Return what shows the pictures of evaluations on the models of a host."""
        return EvaluatedPictures(self.submission, self._datasets, host)

    def start(
        self,
        host: ModelHost,
        chooser: EngineChooser,
        registry: ModelRegistry,
        scoreboard: Scoreboard,
        metrics: Metrics,
    ) -> None:
        """Run jobs, if they are embedded, and report them; called when the models are loaded.

        Raises:
            JobsUnavailableError: the database cannot be used, or another worker has this worker's name.
        """
        if self._settings.jobs.mode == "embedded":
            open_host = partial(_host_of_jobs, self._settings, chooser, host)
            self._stack.enter_context(running_jobs(self._settings, self._database, open_host, registry))
        reporter = JobsReporter(self.submission.jobs, self.predictions.jobs, scoreboard, metrics)
        reporter.start()
        self._stack.callback(reporter.close)


@contextmanager
def open_jobs(
    settings: Settings, registry: ModelRegistry, chooser: EngineChooser
) -> Iterator[JobsService | None]:
    """Open the jobs database; yields None if jobs are off.

    Raises:
        SettingsError: a configured data-set file is broken, or the URL of a source or target.
        JobsUnavailableError: the database cannot be used, or another process runs the jobs of its file.
    """
    if settings.jobs.mode == "off":
        yield None
        return
    datasets = _usable_datasets(settings, may_be_elsewhere=settings.jobs.mode == "external")
    stores = _usable_stores(settings)
    database = jobs_database(settings)
    with ExitStack() as stack:
        if settings.jobs.mode == "embedded":
            stack.enter_context(database.owned())
        database.prepare()
        client = stack.enter_context(open_client(database))
        pool = stack.enter_context(ThreadPoolExecutor(_SUBMISSION_THREADS, thread_name_prefix="submission"))
        picture_pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="evaluation-pictures"))
        submission = EvaluationSubmission(
            DurableJobs(client, EVALUATIONS),
            registry,
            settings.datasets.keys(),
            check_split=datasets.check_split,
            choose=chooser.known,
        )
        predictions = PredictionSubmission(DurableJobs(client, PREDICTIONS), stores, chooser.known)
        yield JobsService(
            settings,
            database,
            submission,
            predictions,
            pool=pool,
            datasets=datasets,
            picture_pool=picture_pool,
            stack=stack,
        )


def run_jobs_worker(settings: Settings, *, on_ready: Callable[[str], None]) -> None:
    """Run jobs until SIGTERM or Ctrl-C, without frontends.

    Args:
        settings: the configuration.
        on_ready: called with the name of this worker when it takes jobs.

    Raises:
        SettingsError: a configured data-set file is broken, or the URL of a source or target.
        JobsUnavailableError: the jobs database cannot be used, or another process has it or this name.
        RegistryUrlError: the registry's URL names no store.
    """
    limit_heaps()
    configure_logging(LogOptions(settings.log.level, settings.log.format))
    _usable_datasets(settings, may_be_elsewhere=False)
    _usable_stores(settings)
    stopped = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopped.set())
    database, registry = jobs_database(settings), open_registry(settings)
    with ExitStack() as stack:
        stack.enter_context(database.owned())
        database.prepare()
        chooser = EngineChooser(settings, registry)
        core = stack.enter_context(open_core(settings, worker_process(settings), chooser.tuning))

        def open_host() -> AbstractContextManager[ModelHost]:
            _keep_kernels(settings)
            return nullcontext(core.host)

        stack.enter_context(running_jobs(settings, database, open_host, registry))
        on_ready(worker_id(settings))
        stopped.wait()


@contextmanager
def running_jobs(
    settings: Settings,
    database: JobsDatabase,
    open_host: Callable[[], AbstractContextManager[ModelHost]],
    registry: ModelRegistry,
) -> Iterator[None]:
    """Run jobs of a prepared database as long as the context lasts.

    Args:
        settings: data sets, sources, targets, engine, and name of this worker.
        database: prepared, and owned by this process if it is a file.
        open_host: opens the models when there are jobs.
        registry: models and reports.

    Raises:
        JobsUnavailableError: the database cannot be used, or another worker has this worker's name.
    """
    environment = worker_environment(settings)
    with ThreadPoolExecutor(
        _COUNTING_THREADS, thread_name_prefix="counting", initializer=yield_to_others
    ) as pool:
        datasets = Datasets(settings.datasets)
        models = JobModels(open_host, registry, environment=environment)
        evaluations = EvaluationSteps(models, registry, datasets, pool)
        predictions = PredictionSteps(models, _usable_stores(settings), pool, segmenter_limits(settings))
        options = WorkerOptions(worker_id(settings), environment, grace_s=_GRACE_S)
        try:
            with run_jobs(database, [evaluations, predictions], options):
                yield
        finally:
            models.close()


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


def _usable_stores(settings: Settings) -> PictureStores:
    """Return the configured sources and targets.

    Raises:
        SettingsError: a URL names no folder or bucket.
    """
    stores = PictureStores(settings.sources, settings.targets)
    try:
        stores.check_urls()
    except RegistryUrlError as error:
        raise SettingsError(str(error)) from error
    return stores


@contextmanager
def _host_of_jobs(settings: Settings, chooser: EngineChooser, served: ModelHost) -> Iterator[ModelHost]:
    """Open the models of embedded jobs: on a GPU the served ones, on a CPU those of a process for jobs.

    A batch cannot be interrupted, and on a CPU a batch of a job takes longer than most requests. A process
    with low priority is interrupted by the system instead.
    """
    _keep_kernels(settings)
    if engine_options(settings).device != "cpu":
        yield served
        return
    timeouts = WorkerTimeouts(batch_s=_BATCH_TIMEOUT_S)
    runner = worker_process(settings, niceness=_JOBS_NICENESS, timeouts=timeouts)
    with open_core(settings, runner, chooser.tuning) as core:
        yield core.host


def _keep_kernels(settings: Settings) -> None:
    """Keep the kernels that count pictures in the cache folder: an installation may be read-only."""
    keep_kernels_in(private_folder(settings.models.cache_folder / "numba"))


def jobs_database(settings: Settings) -> JobsDatabase:
    """Return the database of the settings."""
    url = settings.jobs.database
    return JobsDatabase.at(None if url is None else url.get_secret_value(), settings.jobs.state_folder)


def worker_id(settings: Settings) -> str:
    """Return the name of this worker; the default names machine and device."""
    return (
        settings.jobs.worker_id
        or f"{socket.gethostname()}-{resolve_device(settings.models.device, settings.models.engine)}"
    )


def worker_environment(settings: Settings) -> JsonObject:
    """Return what counts depend on; workers with equal environments share a job.

    The number of the GPU is left out, and the precision, which each job has.
    """
    models = settings.models
    chosen = {
        "engine": models.engine.partition(":")[0],  # without the arguments of a plug-in
        "device": resolve_device(models.device, models.engine).partition(":")[0],
    }
    plain: JsonObject = json.loads(json.dumps(asdict(this_machine())))  # as the database returns it
    return plain | chosen


class JobsReporter:
    """Updates metrics and scoreboard with the states and results of all jobs, every few seconds, in a thread.

    Args:
        jobs: evaluations of the service.
        predictions: bulk predictions of the service.
        scoreboard: refreshed for models with new results.
        metrics: gets states and scores.
    """

    def __init__(
        self, jobs: EvaluationJobs, predictions: PredictionJobs, scoreboard: Scoreboard, metrics: Metrics
    ) -> None:
        self._jobs = jobs
        self._predictions = predictions
        self._scoreboard = scoreboard
        self._metrics = metrics
        self._reported: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs-reporter", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        self._stopping.set()
        self._thread.join()

    def report_once(self) -> None:
        """Read all jobs and update metrics and scoreboard.

        Raises:
            ServiceError: the database does not answer.
        """
        jobs = self._jobs.list_jobs()
        self._metrics.eval_jobs(Counter(job.state.value for job in jobs))
        self._metrics.predict_jobs(Counter(job.state.value for job in self._predictions.list_jobs()))
        new = [job for job in reversed(jobs) if job.result is not None and job.id not in self._reported]
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
        self._reported.update(job.id for job in new)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.report_once()
            except ServiceError as error:
                _log.warning("jobs cannot be read", reason=str(error))
            except Exception:  # noqa: BLE001 - the outermost edge of the thread: the next report must come
                _log.exception("reporting jobs failed")
            self._stopping.wait(_REPORT_INTERVAL_S)
