"""Runs batches in a worker process, and starts another one when it dies or hangs.

Pixels and labels stay in shared memory; messages of about a hundred bytes travel. One thread of the service,
the supervisor, receives messages and restarts the worker.

Axes: N images in a batch, K channels of the head, H height, W width, 3 = red green blue; h w = H/stride
W/stride.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import structlog

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.pictures.preprocess import ImageSize
from service.core.device.batch_job import (
    BatchJob,
    BatchOutput,
    BatchReport,
    LabelBatchJob,
    Outcome,
    RunnerListener,
)
from service.core.device.engine import DEFAULT_TUNING, EngineInfo, EngineTuning, EngineUnavailableError
from service.core.device.ipc import (
    LOAD_ERRORS,
    PROTOCOL,
    DoneMessage,
    HelloMessage,
    IpcError,
    IpcMessage,
    LoadMessage,
    ReplyMessage,
    UnloadMessage,
)
from service.core.device.restart_policy import RestartBackoff, RestartPolicy, Watchdog, WorkerTimeouts
from service.core.device.shared_memory import SharedMemory
from service.core.device.worker_connection import WorkerConnection
from service.core.errors import BusyError, NoWorkerError

_log = structlog.get_logger()

_TICK_S = 1.0
_EXIT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class _LoadedVersion:
    number: int
    folder: str
    tuning: EngineTuning


@dataclass(frozen=True, eq=False)
class _Request:
    reply: Future[ReplyMessage]
    hangs_at_s: float


class ProcessRunner:
    """A ``Runner`` with a worker process; the death of the worker costs only the batch that it had started.

    Args:
        start: starts a worker process.
        policy: delays between restarts; None = the defaults.
        timeouts: when a worker counts as hanging; None = the defaults.
        clock: seconds, as ``time.monotonic``, which the worker uses for deadlines.

    Attributes:
        canvas: returns shared memory for a prepared picture (``SharedMemory.canvas``).
    """

    depth = 2

    def __init__(
        self,
        start: Callable[[], WorkerConnection],
        *,
        policy: RestartPolicy | None = None,
        timeouts: WorkerTimeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._timeouts = timeouts or WorkerTimeouts()
        self._clock = clock
        self._backoff = RestartBackoff(policy)
        self._memory = SharedMemory(clock)
        self.canvas = self._memory.canvas
        self._numbers = itertools.count()
        self._changed = threading.Condition(threading.RLock())
        self._versions: dict[ModelVersion, _LoadedVersion] = {}
        self._worker: WorkerConnection | None = None
        self._is_ready = False
        self._outage_s = 0.0
        self._closing = False
        self._outputs: dict[int, Sequence[BatchOutput]] = {}  # by token of the batches in the worker
        self._requests: dict[int, _Request] = {}
        self._watchdog = Watchdog(self._timeouts)
        self._events: deque[Callable[[], None]] = deque()  # for the listener
        self._wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._listener: RunnerListener

    @property
    def pid(self) -> int | None:
        """Process id of the worker while it can be given work, else None."""
        with self._changed:
            return self._worker.pid if self._worker and self._is_ready else None

    def open(self, listener: RunnerListener) -> None:
        """Start the first worker."""
        self._listener = listener
        self._thread.start()

    def run_batch(self, token: int, batch: BatchJob) -> None:
        """Send a batch to the worker."""
        with self._changed:
            if self._worker is None or not self._is_ready:
                lost = partial(self._listener.on_worker_lost, [], [token], retry_after_s=self._outage_s)
                self._post(lost)
                return
            if batch.version not in self._versions:
                self._refuse(token, batch, Outcome.FAILED)
                return
            number = self._versions[batch.version].number
            try:
                outputs = self._memory.send_batch(self._worker, token, number, batch)
            except BusyError:
                self._refuse(token, batch, Outcome.NO_MEMORY)
                return
            self._outputs[token] = outputs
            self._watchdog.record_sent(token, expected_s=batch.expected_s, now_s=self._clock())

    def load(
        self,
        version: ModelVersion,
        artifact: Artifact,
        sizes: Sequence[ImageSize] = (),
        tuning: EngineTuning = DEFAULT_TUNING,
    ) -> EngineInfo:
        """Build an engine in the worker, and in each one that follows.

        Raises:
            EngineUnavailableError: the engine cannot run here.
            model.errors.ArtifactError: the artifact is broken, or the engine computes something else.
            NoWorkerError: there is no worker, or it died meanwhile.
        """
        loaded = _LoadedVersion(next(self._numbers), str(artifact.folder), tuning)
        with self._changed:
            worker = self._ready_worker()
            reply = self._request(partial(_load_message, version=version, loaded=loaded, sizes=sizes))
        engine = _engine_of(reply.result())
        assert engine is not None
        with self._changed:
            if worker is not self._worker:
                raise NoWorkerError("the worker died after it had loaded the model")
            self._versions[version] = loaded
        return engine

    def unload(self, version: ModelVersion) -> None:
        """Free an engine."""
        with self._changed:
            loaded = self._versions.pop(version, None)
            if self._worker is None or loaded is None:
                return
            reply = self._request(lambda request: UnloadMessage(request, loaded.number))
        with suppress(NoWorkerError):  # the engine is gone with the worker
            _engine_of(reply.result())

    def close(self) -> None:
        """End the worker."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._wake_supervisor()
        self._thread.join()
        self._wake.close()
        self._waker.close()
        self._memory.close()

    def _request(self, message_of: Callable[[int], IpcMessage]) -> Future[ReplyMessage]:
        assert self._worker is not None
        number = next(self._numbers)
        request = self._requests[number] = _Request(Future(), self._clock() + self._timeouts.load_s)
        self._worker.send(message_of(number))
        return request.reply

    def _ready_worker(self) -> WorkerConnection:
        self._changed.wait_for(lambda: self._is_ready or self._outage_s or self._closing)
        if self._worker is None or not self._is_ready:
            raise NoWorkerError("no worker could be started", retry_after_s=max(1.0, self._outage_s))
        return self._worker

    # --- events for the listener; sent by the supervisor, since a caller may hold the listener's lock

    def _post(self, event: Callable[[], None]) -> None:
        self._events.append(event)
        self._wake_supervisor()

    def _wake_supervisor(self) -> None:
        with suppress(BlockingIOError):  # it is being woken
            self._waker.send(b"!")

    def _refuse(self, token: int, batch: BatchJob, outcome: Outcome) -> None:
        count = len(batch.pictures) if isinstance(batch, LabelBatchJob) else 1
        nothing = np.empty((0, 0), np.uint8)
        report = BatchReport(self._clock(), 0.0, 0.0, (outcome,) * count)
        self._post(partial(self._listener.on_batch_done, token, report, [nothing] * count))

    def _send_events(self) -> None:
        while self._events:
            self._events.popleft()()

    # --- the supervisor

    def _supervise(self) -> None:
        delay_s = 0.0
        while not self._wait_for_start(delay_s):
            delay_s = self._run_worker()
        self._send_events()

    def _wait_for_start(self, delay_s: float) -> bool:
        """Wait until the next worker is to be started; True = none is."""
        until_s = self._clock() + delay_s
        with self._changed:
            while not self._closing and (left_s := until_s - self._clock()) > 0:
                self._send_events()
                self._changed.wait(min(left_s, _TICK_S))
            return self._closing

    def _run_worker(self) -> float:
        """Start a worker and serve it to its end; return the delay before the next start, in seconds."""
        try:
            worker = self._start()
        except OSError as error:
            _log.error("worker cannot be started", reason=error.strerror)
            return self._record_death(None)
        try:
            self._serve(worker)
        except EOFError:
            pass
        except IpcError as error:
            _log.error("worker sent an invalid message", pid=worker.pid, reason=str(error))
            worker.kill()
        except Exception:  # noqa: BLE001 - the edge of the thread: without it no batch would be answered
            _log.exception("supervision failed", pid=worker.pid)
            worker.kill()
        code = worker.wait(_EXIT_TIMEOUT_S)
        if self._closing and not self._outputs:
            return 0.0
        _log.error("worker died", pid=worker.pid, exit_code=code)
        return self._record_death(worker)

    def _settle_recorded_replies(self, worker: WorkerConnection) -> None:
        """Settle the batches that a dead worker had finished without sending its reply."""
        with self._changed:
            self._is_ready = False
            tokens = list(self._outputs)
        for token in tokens:
            try:
                if (reply := worker.recorded_reply(token)) is not None:
                    self._handle(reply)
            except IpcError as error:
                _log.error("worker recorded an invalid reply", pid=worker.pid, reason=str(error))

    def _record_death(self, worker: WorkerConnection | None) -> float:
        delay_s = self._backoff.record_death(self._clock())
        if worker is not None:
            self._settle_recorded_replies(worker)
        with self._changed:
            tokens = list(self._outputs)
            executing = [token for token in tokens if worker is not None and worker.has_started(token)]
            waiting = [token for token in tokens if token not in executing]
            requests = list(self._requests.values())
            self._worker, self._is_ready, self._outage_s = None, False, delay_s
            self._memory.retire_slots()
            self._outputs, self._requests, self._watchdog = {}, {}, Watchdog(self._timeouts)
            self._changed.notify_all()
        for request in requests:
            request.reply.set_exception(NoWorkerError("the worker died while it loaded the model"))
        self._listener.on_worker_lost(executing, waiting, retry_after_s=delay_s)
        self._send_events()  # of batches that came in before the listener knew
        return delay_s

    def _serve(self, worker: WorkerConnection) -> None:
        """Handle the messages of a worker until it is to be ended.

        Raises:
            EOFError: the worker has ended.
            IpcError: it sent bytes that are no message, or a message out of place.
        """
        hello_by_s = self._clock() + self._timeouts.start_s
        while (message := worker.receive(self._wake, hello_by_s - self._clock())) is None:
            if self._closing:
                worker.kill()  # it is still importing libraries
                return
            if self._clock() >= hello_by_s and not worker.is_killed:
                _log.error("worker does not start and is killed", pid=worker.pid)
                worker.kill()
        if message != HelloMessage(PROTOCOL):
            raise IpcError(f"expected a hello, got {message}")
        reloads = self._reload_versions(worker)
        while not (self._closing and not self._outputs):
            if not self._is_ready and all(reply.done() for reply in reloads.values()):
                self._become_ready(reloads)
            message = worker.receive(self._wake, self._until_hanging_s())
            if message is not None:
                self._handle(message)
            self._kill_if_hanging(worker)
            self._send_events()
            with self._changed:
                self._memory.release_idle_slots(worker)

    def _reload_versions(self, worker: WorkerConnection) -> dict[ModelVersion, Future[ReplyMessage]]:
        with self._changed:
            self._worker = worker
            return {
                version: self._request(partial(_load_message, version=version, loaded=loaded))
                for version, loaded in self._versions.items()
            }

    def _become_ready(self, reloads: Mapping[ModelVersion, Future[ReplyMessage]]) -> None:
        """Accept batches; raise EOFError if no model that was loaded before can be loaded again."""
        lost = [version for version, reply in reloads.items() if reply.result().error]
        for version in lost:
            reason = reloads[version].result().reason
            _log.error("model cannot be loaded again", model=str(version), reason=reason)
        if lost and len(lost) == len(reloads):
            raise EOFError
        with self._changed:
            for version in lost:
                self._versions.pop(version, None)
            self._is_ready, self._outage_s = True, 0.0
            self._changed.notify_all()
        self._backoff.record_ready(self._clock())
        self._listener.on_ready()

    def _handle(self, message: IpcMessage) -> None:
        if isinstance(message, DoneMessage):
            self._finish_batch(message)
        elif isinstance(message, ReplyMessage):
            with self._changed:
                request = self._requests.pop(message.request, None)
            if request is None:
                raise IpcError("a reply to no request")
            request.reply.set_result(message)
        else:
            raise IpcError(f"a worker does not send {message}")

    def _finish_batch(self, message: DoneMessage) -> None:
        token, report = message.token, message.report
        with self._changed:
            if len(self._outputs.get(token, ())) != len(report.outcomes):
                raise IpcError("the result of no batch")
            outputs = self._outputs.pop(token)
            self._watchdog.record_answered(token, self._clock())
        self._listener.on_batch_done(token, report, outputs)

    def _until_hanging_s(self) -> float:
        """Return how long to wait for the next message, in seconds; 0 = the worker hangs."""
        now_s = self._clock()
        with self._changed:
            times_s = [request.hangs_at_s for request in self._requests.values()]
            if (batch_s := self._watchdog.hangs_at_s()) is not None:
                times_s.append(batch_s)
        return max(0.0, min([_TICK_S, *(time_s - now_s for time_s in times_s)]))

    def _kill_if_hanging(self, worker: WorkerConnection) -> None:
        """Kill a hanging worker; messages that it sent before are still received, then its end."""
        if self._until_hanging_s() <= 0 and not worker.is_killed:
            _log.error("worker hangs and is killed", pid=worker.pid)
            worker.kill()


def _load_message(
    request: int, *, version: ModelVersion, loaded: _LoadedVersion, sizes: Sequence[ImageSize] = ()
) -> LoadMessage:
    return LoadMessage(request, loaded.number, str(version), loaded.folder, tuple(sizes), loaded.tuning)


def _engine_of(reply: ReplyMessage) -> EngineInfo | None:
    if reply.error:
        raise LOAD_ERRORS.get(reply.error, EngineUnavailableError)(reply.reason or reply.error)
    return reply.engine
