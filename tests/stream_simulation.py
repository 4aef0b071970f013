"""Cameras and their streams before one device, under a virtual clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from service.core.errors import UndecodableImageError
from service.core.streams.frame_permits import FramePermits
from service.core.streams.stream_session import (
    AnsweredFrame,
    DroppedFrames,
    FailedFrame,
    FramePolicy,
    StreamRules,
    StreamSession,
)

_DAMAGED = UndecodableImageError("damaged")


class Ledger:
    """What a client that counts has sent and got."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.answered: list[int] = []

    def take(self, answer: object) -> None:
        """Count an answer; a range stands for the frames that were sent with its numbers."""
        match answer:
            case AnsweredFrame(seq=seq) | FailedFrame(seq=seq):
                self.answered.append(seq)
            case DroppedFrames(first, last, number, _):
                covered = [seq for seq in self.sent if first <= seq <= last]
                assert len(covered) == number
                assert (covered[0], covered[-1]) == (first, last)
                self.answered += covered


@dataclass
class Camera:
    """One camera and its stream in a simulated service."""

    stream: StreamSession[str, str]
    period_s: float
    start: Callable[[], bool]
    ledger: Ledger = field(default_factory=Ledger)
    ages_s: list[float] = field(default_factory=list)
    frames_started: int = 0
    captured_s: dict[int, float] = field(default_factory=dict)


class Simulation:
    """Cameras, a thread pool that decodes, and a device that takes one frame at a time, on a virtual clock.

    Args:
        seed: decides phases, decode times, which frames are damaged, and when somebody does not read.
        cameras: how many.
        frame_s: time of one frame on the device.
        jitter: by how much of it a frame may take less or more.
        just_in_time: whether the next frame is not taken before it has to be.
    """

    def __init__(
        self, seed: int, *, cameras: int, frame_s: float, jitter: float = 0.0, just_in_time: bool = False
    ) -> None:
        self.random = random.Random(seed)
        self.permits = FramePermits(max_frames=2)
        self.frame_s = frame_s
        self.jitter = jitter
        self.just_in_time = just_in_time
        self.now_s = 0.0
        self.device_free_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        rules = StreamRules(FramePolicy.LATEST_WINS, max_in_flight=4, max_frame_age_s=1.0)
        self.cameras = [
            Camera(StreamSession(rules, version=1, on_answered=str), 1 / 30, partial(self._start, number))
            for number in range(cameras)
        ]
        self._until_s = 0.0

    def run(self, seconds: float) -> None:
        """Let all cameras send for this time, then end their streams and answer the remaining frames."""
        self._until_s = seconds
        for camera in self.cameras:
            self._at(self.random.uniform(0, camera.period_s), lambda c=camera: self._capture(c))
        while self._events:
            self.now_s, _, event = heapq.heappop(self._events)
            event()

    def _at(self, time_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._numbers), event))

    def _capture(self, camera: Camera) -> None:
        if self.now_s >= self._until_s:
            camera.stream.end_input()
            return
        seq = (camera.ledger.sent[-1] if camera.ledger.sent else 0) + self.random.choice([1, 1, 1, 2])
        camera.ledger.sent.append(seq)
        camera.captured_s[seq] = self.now_s
        camera.stream.add_frame(seq, "frame", now_s=self.now_s)
        self._pump(camera)
        self._at(self.now_s + camera.period_s, lambda: self._capture(camera))

    def _pump(self, camera: Camera) -> None:
        for answer in iter(camera.stream.next_answer, None):
            camera.ledger.take(answer)
            if isinstance(answer, AnsweredFrame) and self.now_s < self._until_s:  # then nothing fresher comes
                camera.ages_s.append(self.now_s - camera.captured_s[answer.seq])
        if camera.stream.can_start:
            self.permits.request(camera.start)

    def _start(self, number: int) -> bool:
        camera = self.cameras[number]
        started = camera.stream.start_frame(now_s=self.now_s)
        if started is None:
            return False
        camera.frames_started += 1
        lead_s = self.random.uniform(0.5, 1.5) * 0.1 * self.frame_s
        self._at(self.now_s + lead_s, lambda: self._decoded(camera, started.seq, lead_s))
        return True

    def _decoded(self, camera: Camera, seq: int, lead_s: float) -> None:
        if self.random.random() < 0.01:
            camera.stream.fail_frame(seq, _DAMAGED)
            self._pump(camera)
            self.permits.release()
            return
        share = self.random.uniform(-self.jitter, self.jitter) if self.jitter else 0.0
        busy_s = self.frame_s * (1 + share)
        self.device_free_s = max(self.now_s, self.device_free_s) + busy_s
        self._at(self.device_free_s, lambda: self._inferred(camera, seq, lead_s, busy_s))

    def _inferred(self, camera: Camera, seq: int, lead_s: float, busy_s: float) -> None:
        camera.stream.answer_frame(seq, "result", version=1)
        self._pump(camera)
        if not self.just_in_time:
            self.permits.release()
        elif delay_s := self.permits.frame_left_device(lead_s=lead_s, busy_s=busy_s):
            self._at(self.now_s + delay_s, self.permits.release_delayed)
