"""The models of jobs: opened when there are jobs, one version at a time, the same for every kind of jobs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import structlog

from model.artifacts.manifest import WEIGHTS_FILE, ModelVersion
from model.artifacts.registry import ModelRegistry
from model.errors import ModelError, StorageError
from service.core.device.engine import EngineUnavailableError, Precision
from service.core.errors import (
    DeadlineExceededError,
    DrainingError,
    ModelOutputInvalidError,
    OverloadError,
    StorageFullError,
)
from service.core.jobs.job import JobError, JobHeldUpError, JobInterruptedError, JobPlan, JsonObject
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost

STEP_PIXELS = 16 << 20
"""Pixels of the network's input in one step; 2 to 5 seconds on the processors tried."""

_log = structlog.get_logger()


class JobModels:
    """Lends the models of a host to the steps of jobs.

    The host is opened for the first job and closed when no job runs any more. A version that it does not
    serve is borrowed until then, or until another one is needed. One step runs at a time.

    Args:
        open_host: opens the models.
        registry: holds the versions.
        environment: plain JSON with ``processor``, ``versions`` of libraries, and all else that the outcome
            of a step depends on.
    """

    def __init__(
        self,
        open_host: Callable[[], AbstractContextManager[ModelHost]],
        registry: ModelRegistry,
        *,
        environment: JsonObject,
    ) -> None:
        self._open_host = open_host
        self._registry = registry
        self._environment = environment
        self._stopping = threading.Event()
        self._call_lock = threading.Lock()
        self._opened = ExitStack()
        self._host: ModelHost | None = None
        self._borrowed: tuple[ModelVersion, Precision | None] | None = None

    def release_idle(self) -> None:
        """Give back the borrowed version and close the host."""
        with self._call_lock:
            self._close_host()

    def close(self, *, timeout_s: float = 1.0) -> None:
        """Close the host, unless a call runs for longer than ``timeout_s``; for the end of the process."""
        if self._call_lock.acquire(timeout=timeout_s):
            self._close_host()
            self._call_lock.release()

    def stop(self) -> None:
        """Let ``check_not_stopping`` raise from now on."""
        self._stopping.set()

    def check_not_stopping(self) -> None:
        """Give the step up if this process is about to stop.

        Raises:
            JobInterruptedError: it is.
        """
        if self._stopping.is_set():
            raise JobInterruptedError

    @contextmanager
    def loaded(self, version: ModelVersion, precision: Precision | None) -> Iterator[LoadedModel]:
        """Yield a version, loaded in a precision; it stays loaded for the next call.

        Raises:
            JobError: the host serves the version in another precision.
        """
        with self._call_lock:
            if self._host is None:
                self._host = self._opened.enter_context(self._open_host())
            if self._borrowed is not None and self._borrowed != (version, precision):
                self._give_back()
            if not self._host.has(version):
                self._host.borrow(version, self._registry.open(version), precision=precision)
                self._borrowed = version, precision
            with self._host.hold_loaded(version) as served:
                if precision not in (None, served.engine.precision):
                    raise JobError(
                        f"the job needs {version} in {precision}, and this worker serves it in "
                        f"{served.engine.precision}: submit it again"
                    )
                yield served

    def pins(self, served: LoadedModel) -> JsonObject:
        """Return what the outcome of a step depends on, beside the pictures."""
        engine = served.engine
        return {
            "engine": engine.engine,
            "device": engine.device.partition(":")[0],  # GPUs of one machine count as equal
            "precision": engine.precision,
            "weights": served.manifest.files[WEIGHTS_FILE],
            "environment": self._environment,
        }

    def _give_back(self) -> None:
        if self._borrowed is not None and self._host is not None:
            self._host.give_back(self._borrowed[0])
        self._borrowed = None

    def _close_host(self) -> None:
        self._give_back()
        self._host = None
        self._opened.close()


def check_pins(plan: JobPlan, here: JsonObject) -> None:
    """Refuse a step on a worker that is not like the first one of its job.

    Args:
        plan: of the job.
        here: the pins that this worker would give the job.

    Raises:
        JobError: one of them is another one.
    """
    for key, value in here.items():
        if value != plan.pins.get(key):
            _log.warning("worker does not match the job", pin=key, job=plan.pins.get(key), here=value)
            raise JobError(f"the job began with another {key} than this worker has: submit it again")


@contextmanager
def job_errors() -> Iterator[None]:
    """Turn errors into ``JobError``, or into ``JobHeldUpError`` if a later try may succeed."""
    try:
        yield
    except DrainingError:
        raise JobInterruptedError from None
    except StorageError as error:
        raise JobHeldUpError("the registry does not answer, or has no space") from error
    except (OverloadError, DeadlineExceededError, StorageFullError) as error:
        raise JobHeldUpError(str(error)) from error
    except (ModelError, ModelOutputInvalidError, EngineUnavailableError) as error:
        raise JobError(str(error)) from error
