"""Checks the request of a client and queues its job."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import model.errors as model_errors
from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from model.evaluation.protocols import find_protocol
from service.core.device.engine import Precision
from service.core.errors import (
    ConflictError,
    InternalError,
    InvalidArgumentError,
    ModelNotFoundError,
    NotFoundError,
    VersionNotFoundError,
)
from service.core.jobs.evaluation_job import EvaluationJob, EvaluationJobs, EvaluationRequest
from service.core.jobs.job import Job, Jobs, JobState, RequestT, ResultT
from service.core.jobs.picture_stores import PictureStores
from service.core.jobs.prediction_job import (
    PredictionJob,
    PredictionJobs,
    PredictionOutput,
    PredictionRequest,
)

_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_MAX_KEY = 255

Choose = Callable[[str], tuple[ModelVersion, Precision | None]]
"""Returns the version that a model reference means, and its precision."""


class EvaluationSubmission:
    """Queues evaluation jobs. Calls block; any thread may call.

    Args:
        jobs: of the service.
        registry: models and reports.
        datasets: names of the configured data sets.
        check_split: refuses a data set and split that no job could use, by a ``DatasetError``.
        choose: returns the version that a reference means here, and the precision in which it runs; raises
            errors of the registry. None = the version that the registry says.
    """

    def __init__(
        self,
        jobs: EvaluationJobs,
        registry: ModelRegistry,
        datasets: Collection[str],
        *,
        check_split: Callable[[str, str], None] = lambda dataset, split: None,  # noqa: ARG005 - refuses nothing
        choose: Choose | None = None,
    ) -> None:
        self.jobs = jobs
        self._registry = registry
        self._datasets = datasets
        self._check_split = check_split
        self._choose = choose or (lambda reference: (registry.resolve(reference), None))

    def submit_evaluation(
        self,
        *,
        model: str,
        dataset: str,
        split: str,
        protocol: str,
        skip_broken: bool = False,
        key: str | None = None,
    ) -> EvaluationJob:
        """Queue a job for the version that a reference means now, in the precision in which it runs now.

        Args:
            model: ``NAME``, ``NAME:ALIAS`` or ``NAME@VERSION``.
            dataset: a configured name.
            split: of the data set.
            protocol: name of a protocol in ``model.evaluation.protocols``.
            skip_broken: leave out broken pairs instead of failing.
            key: of the client; a second call with the same key returns the job of the first one, even if the
                model or the data set is gone.

        Raises:
            InvalidArgumentError: there is no such protocol or split, a name is malformed, or the data
                set is broken.
            NotFoundError: there is no such data set.
            ModelNotFoundError: there is no such model.
            VersionNotFoundError: there is no such version or alias.
            ConflictError: the key was used for another request.
            BusyError: the jobs database does not answer.
            StorageFullError: there is no space for the job.
        """
        job = _job_of_key(self.jobs, key, (model, dataset, split, protocol, skip_broken))
        if job is not None:
            return job
        if dataset not in self._datasets:
            raise NotFoundError(f"no data set {dataset!r} is configured")
        if not _SPLIT.fullmatch(split):
            raise InvalidArgumentError(f"not a split: {split!r}")
        _check_protocol(protocol)
        try:
            self._check_split(dataset, split)
        except model_errors.DatasetError as error:
            raise InvalidArgumentError(str(error)) from error
        version, precision = _resolve(self._choose, model)
        request = EvaluationRequest(version, dataset, split, protocol, skip_broken, model, precision)
        return self.jobs.enqueue_job(request, key=key)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of the configured data sets, sorted."""
        return tuple(sorted(self._datasets))

    def report_document(self, job_id: str) -> bytes:
        """Return the report of a job as JSON.

        Raises:
            NotFoundError: there is no such job, or no report of it yet.
            BusyError: the jobs database does not answer.
        """
        return self._report(job_id, self._registry.evaluations.document)

    def report_page(self, job_id: str) -> bytes:
        """Return the report of a job as HTML.

        Raises:
            NotFoundError: there is no such job, or it has no report yet.
            BusyError: the jobs database does not answer.
        """
        return self._report(job_id, self._registry.evaluations.page)

    def _report(self, job_id: str, read: Callable[[str, str], bytes | None]) -> bytes:
        job = self.jobs.get_job(job_id)
        report = None
        if job.state is JobState.SUCCEEDED:
            report = read(job.request.version.name, job_id)
        if report is None:
            raise NotFoundError(f"there is no report: the job is {job.state}")
        return report


class PredictionSubmission:
    """Queues bulk predictions. Calls block; any thread may call.

    Args:
        jobs: of the service.
        stores: sources and targets.
        choose: returns the version that a reference means here, and the precision in which it runs; raises
            errors of the registry.
    """

    def __init__(self, jobs: PredictionJobs, stores: PictureStores, choose: Choose) -> None:
        self.jobs = jobs
        self._stores = stores
        self._choose = choose

    def submit_prediction(
        self, *, model: str, source: str, target: str, output: PredictionOutput, key: str | None = None
    ) -> PredictionJob:
        """Queue a job for the version that a reference means now, in the precision in which it runs now.

        Args:
            model: ``NAME``, ``NAME:ALIAS`` or ``NAME@VERSION``.
            source: a configured name.
            target: a configured name.
            output: content of the masks.
            key: of the client; a second call with the same key returns the job of the first one.

        Raises:
            InvalidArgumentError: a name is malformed, or source and target lie in one another.
            NotFoundError: there is no such source or target.
            ModelNotFoundError: there is no such model.
            VersionNotFoundError: there is no such version or alias.
            ConflictError: the key was used for another request.
            BusyError: the jobs database does not answer.
            StorageFullError: there is no space for the job.
        """
        job = _job_of_key(self.jobs, key, (model, source, target, output))
        if job is not None:
            return job
        self._stores.check(source, target)
        version, precision = _resolve(self._choose, model)
        request = PredictionRequest(version, source, target, output, model, precision)
        return self.jobs.enqueue_job(request, key=key)

    @property
    def stores(self) -> PictureStores:
        """The configured sources and targets."""
        return self._stores


def _job_of_key(
    jobs: Jobs[RequestT, ResultT], key: str | None, client_fields: tuple[object, ...]
) -> Job[RequestT, ResultT] | None:
    """Return the job of an earlier call with the same key; None if there is no key or no such job."""
    if key is None:
        return None
    if not _is_key(key):
        raise InvalidArgumentError(f"an Idempotency-Key is printable ASCII, 1 to {_MAX_KEY} characters")
    job = jobs.find_by_key(key)
    if job is not None and job.request.client_fields != client_fields:
        raise ConflictError("this Idempotency-Key was used for another request")
    return job


def _resolve(choose: Choose, reference: str) -> tuple[ModelVersion, Precision | None]:
    try:
        return choose(reference)
    except model_errors.InvalidReferenceError as error:
        raise InvalidArgumentError(str(error)) from error
    except model_errors.ModelNotFoundError as error:
        raise ModelNotFoundError(str(error)) from error
    except model_errors.VersionNotFoundError as error:
        raise VersionNotFoundError(str(error)) from error
    except model_errors.StorageError as error:
        raise InternalError(str(error)) from error


def _check_protocol(name: str) -> None:
    try:
        find_protocol(name)
    except model_errors.ProtocolError as error:
        raise InvalidArgumentError(str(error)) from error


def _is_key(key: str) -> bool:
    return 0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()
