"""Runs jobs in a worker process, and starts another one when that dies or hangs.

Pixels and labels stay where they are, in memory that both processes see; only frames of some hundred bytes
travel. A thread of the service, the supervisor, hears what the worker says and looks after it.

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
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize
from service.core.device.batch_job import BatchJob, BatchOutput, BatchReport, LabelBatchJob, Listener, Outcome
from service.core.device.engine import (
    DEFAULT_TUNING,
    EngineInfo,
    EngineTuning,
    EngineUnavailableError,
)
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
_FAREWELL_S = 5.0


@dataclass(frozen=True)
class _Version:
    key: int
    folder: str
    tuning: EngineTuning


@dataclass(frozen=True, eq=False)
class _Request:
    reply: Future[ReplyMessage]
    due_s: float


class ProcessRunner:
    """A runner whose worker may die without harm to anybody but those whose job it had begun.

    Args:
        start: starts a worker process.
        policy: when to start the next one.
        patience: when a worker counts as hanging.
        clock: seconds, as ``time.monotonic``; jobs carry deadlines on it to the worker.
    """

    depth = 2

    def __init__(
        self,
        start: Callable[[], WorkerConnection],
        *,
        policy: RestartPolicy | None = None,
        patience: WorkerTimeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._patience = patience or WorkerTimeouts()
        self._clock = clock
        self._backoff = RestartBackoff(policy)
        self._memory = SharedMemory(clock)
        self._numbers = itertools.count()
        self._changed = threading.Condition(threading.RLock())
        self._versions: dict[ModelVersion, _Version] = {}
        self._life: WorkerConnection | None = None
        self._is_ready = False
        self._outage_s = 0.0
        self._closing = False
        self._jobs: dict[int, Sequence[BatchOutput]] = {}
        self._requests: dict[int, _Request] = {}
        self._watchdog = Watchdog(self._patience)
        self._news: deque[Callable[[], None]] = deque()  # for the listener, from threads of its own
        self._wake, self._alarm = socket.socketpair()
        self._alarm.setblocking(False)
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._listener: Listener

    @property
    def pid(self) -> int | None:
        """Of the worker that can be given work; None while there is none."""
        with self._changed:
            return self._life.pid if self._life and self._is_ready else None

    def open(self, listener: Listener) -> None:
        """Start the first worker."""
        self._listener = listener
        self._thread.start()

    def canvas(self, padded: ImageSize, original: ImageSize, *, confidence: bool = False) -> UInt8Array:
        """Return shared memory for a prepared picture, with room for its labels behind it.

        Raises:
            BusyError: the system has none.
        """
        return self._memory.canvas(padded, original, confidence=confidence)

    def run(self, token: int, job: BatchJob) -> None:
        """Send a job to the worker."""
        with self._changed:
            if self._life is None or not self._is_ready:
                self._tell(partial(self._listener.lost, [], [token], retry_after_s=self._outage_s))
                return
            if job.version not in self._versions:
                self._refuse(token, job, Outcome.FAILED)
                return
            try:
                outputs = self._memory.send(self._life, token, self._versions[job.version].key, job)
            except BusyError:
                self._refuse(token, job, Outcome.NO_MEMORY)
                return
            self._jobs[token] = outputs
            self._watchdog.sent(token, expected_s=job.expected_s, now_s=self._clock())

    def load(
        self,
        version: ModelVersion,
        artifact: Artifact,
        sizes: Sequence[ImageSize] = (),
        tuning: EngineTuning = DEFAULT_TUNING,
    ) -> EngineInfo:
        """Have an engine built in the worker, and in each that follows.

        Raises:
            EngineUnavailableError: the engine cannot be run here.
            model.errors.ArtifactError: the artifact must not be used, or the engine computes something else.
            NoWorkerError: there is no worker, or it died of it.
        """
        known = _Version(next(self._numbers), str(artifact.folder), tuning)
        with self._changed:
            life = self._ready_life()
            reply = self._request(partial(_load_frame, version=version, known=known, sizes=sizes))
        engine = _engine_of(reply.result())
        assert engine is not None
        with self._changed:
            if life is not self._life:
                raise NoWorkerError("the worker died after it had loaded the model")
            self._versions[version] = known
        return engine

    def unload(self, version: ModelVersion) -> None:
        """Free an engine."""
        with self._changed:
            known = self._versions.pop(version, None)
            if self._life is None or known is None:
                return
            reply = self._request(lambda request: UnloadMessage(request, known.key))
        with suppress(NoWorkerError):  # gone with the worker
            _engine_of(reply.result())

    def close(self) -> None:
        """Let the worker go."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._ring()
        self._thread.join()
        self._wake.close()
        self._alarm.close()
        self._memory.close()

    def _request(self, frame_of: Callable[[int], IpcMessage]) -> Future[ReplyMessage]:
        assert self._life is not None
        request = next(self._numbers)
        sent = self._requests[request] = _Request(Future(), self._clock() + self._patience.load_s)
        self._life.send(frame_of(request))
        return sent.reply

    def _ready_life(self) -> WorkerConnection:
        self._changed.wait_for(lambda: self._is_ready or self._outage_s or self._closing)
        if self._life is None or not self._is_ready:
            raise NoWorkerError("no worker could be started", retry_after_s=max(1.0, self._outage_s))
        return self._life

    # --- what the listener is told; by the supervisor only, for a caller may hold the listener's lock

    def _tell(self, news: Callable[[], None]) -> None:
        self._news.append(news)
        self._ring()

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it rings already
            self._alarm.send(b"!")

    def _refuse(self, token: int, job: BatchJob, outcome: Outcome) -> None:
        count = len(job.pictures) if isinstance(job, LabelBatchJob) else 1
        nothing = np.empty((0, 0), np.uint8)
        report = BatchReport(self._clock(), 0.0, 0.0, (outcome,) * count)
        self._tell(partial(self._listener.done, token, report, [nothing] * count))

    # --- the supervisor

    def _supervise(self) -> None:
        delay_s = 0.0
        while not self._rested(delay_s):
            delay_s = self._look_after_one()
        self._tell_news()

    def _rested(self, delay_s: float) -> bool:
        """Wait for the next start; True = there is none."""
        until_s = self._clock() + delay_s
        with self._changed:
            while not self._closing and (left_s := until_s - self._clock()) > 0:
                self._tell_news()
                self._changed.wait(min(left_s, _TICK_S))
            return self._closing

    def _look_after_one(self) -> float:
        """Start a worker and stay with it to its end; returns when to start the next one, in seconds."""
        try:
            life = self._start()
        except OSError as error:
            _log.error("worker cannot be started", reason=error.strerror)
            return self._note_death(None)
        try:
            self._accompany(life)
        except EOFError:
            pass
        except IpcError as error:
            _log.error("worker sent garbage", pid=life.pid, reason=str(error))
            life.kill()
        except Exception:  # noqa: BLE001 - the edge of the thread: without it nobody would be answered
            _log.exception("supervision failed", pid=life.pid)
            life.kill()
        code = life.bury(_FAREWELL_S)
        if self._closing and not self._jobs:
            return 0.0
        _log.error("worker died", pid=life.pid, exit_code=code)
        return self._note_death(life)

    def _hear_last_words(self, life: WorkerConnection) -> None:
        """Settle what a worker that died had done and had no time to tell."""
        with self._changed:
            self._is_ready = False
            tokens = list(self._jobs)
        for token in tokens:
            try:
                if (frame := life.last_words(token)) is not None:
                    self._hear(frame)
            except IpcError as error:
                _log.error("worker left garbage", pid=life.pid, reason=str(error))

    def _note_death(self, life: WorkerConnection | None) -> float:
        delay_s = self._backoff.died(self._clock())
        if life is not None:
            self._hear_last_words(life)
        with self._changed:
            tokens = list(self._jobs)
            executing = [token for token in tokens if life is not None and life.has_begun(token)]
            waiting = [token for token in tokens if token not in executing]
            requests = list(self._requests.values())
            self._life, self._is_ready, self._outage_s = None, False, delay_s
            self._memory.retire()
            self._jobs, self._requests, self._watchdog = {}, {}, Watchdog(self._patience)
            self._changed.notify_all()
        for request in requests:
            request.reply.set_exception(NoWorkerError("the worker died while it loaded the model"))
        self._listener.lost(executing, waiting, retry_after_s=delay_s)
        self._tell_news()  # of jobs that came in before the listener knew
        return delay_s

    def _accompany(self, life: WorkerConnection) -> None:
        """Stay with a worker until it is to be let go.

        Raises:
            EOFError: it is gone.
            FrameError: it sent something else than frames.
        """
        hello_by_s = self._clock() + self._patience.start_s
        while (frame := life.receive(self._wake, hello_by_s - self._clock())) is None:
            if self._closing:
                life.kill()  # it is still importing libraries
                return
            if self._clock() >= hello_by_s and not life.is_killed:
                _log.error("worker does not speak and is killed", pid=life.pid)
                life.kill()
        if frame != HelloMessage(PROTOCOL):
            raise IpcError(f"expected a greeting, got {frame}")
        reloads = self._reload(life)
        while not (self._closing and not self._jobs):
            if not self._is_ready and all(reply.done() for reply in reloads.values()):
                self._become_ready(reloads)
            frame = life.receive(self._wake, self._until_due_s())
            if frame is not None:
                self._hear(frame)
            self._kill_if_it_hangs(life)
            self._tell_news()
            with self._changed:
                self._memory.tidy(life)

    def _reload(self, life: WorkerConnection) -> dict[ModelVersion, Future[ReplyMessage]]:
        with self._changed:
            self._life = life
            return {
                version: self._request(partial(_load_frame, version=version, known=known))
                for version, known in self._versions.items()
            }

    def _become_ready(self, reloads: Mapping[ModelVersion, Future[ReplyMessage]]) -> None:
        """Take up work, unless no model is left of those that were there before."""
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
        self._backoff.became_ready(self._clock())
        self._listener.ready()

    def _hear(self, frame: IpcMessage) -> None:
        if isinstance(frame, DoneMessage):
            self._finish(frame)
        elif isinstance(frame, ReplyMessage):
            with self._changed:
                request = self._requests.pop(frame.request, None)
            if request is None:
                raise IpcError("a reply to no request")
            request.reply.set_result(frame)
        else:
            raise IpcError(f"a worker does not say {frame}")

    def _finish(self, frame: DoneMessage) -> None:
        with self._changed:
            if len(self._jobs.get(frame.token, ())) != len(frame.report.outcomes):
                raise IpcError("an answer to no job")
            outputs = self._jobs.pop(frame.token)
            self._watchdog.answered(frame.token, self._clock())
        self._listener.done(frame.token, frame.report, outputs)

    def _until_due_s(self) -> float:
        now_s = self._clock()
        with self._changed:
            due_s = [request.due_s for request in self._requests.values()]
            if (job_due_s := self._watchdog.due_s()) is not None:
                due_s.append(job_due_s)
        return max(0.0, min([_TICK_S, *(due - now_s for due in due_s)]))

    def _kill_if_it_hangs(self, life: WorkerConnection) -> None:
        """Kill it; what it said before is still heard, then its end."""
        if self._until_due_s() <= 0 and not life.is_killed:
            _log.error("worker hangs and is killed", pid=life.pid)
            life.kill()

    def _tell_news(self) -> None:
        while self._news:
            self._news.popleft()()


def _load_frame(
    request: int, *, version: ModelVersion, known: _Version, sizes: Sequence[ImageSize] = ()
) -> LoadMessage:
    return LoadMessage(request, known.key, str(version), known.folder, tuple(sizes), known.tuning)


def _engine_of(reply: ReplyMessage) -> EngineInfo | None:
    if reply.error:
        raise LOAD_ERRORS.get(reply.error, EngineUnavailableError)(reply.reason or reply.error)
    return reply.engine
