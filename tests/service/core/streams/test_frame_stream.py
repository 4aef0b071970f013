"""Streams: every frame has one answer, answers come in order, and streams share the device evenly."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count, pairwise
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import InvalidArgumentError, UndecodableImageError
from service.core.streams.frame_stream import (
    AnsweredFrame,
    DroppedFrames,
    DropReason,
    FailedFrame,
    FramePolicy,
    FrameTiming,
    ModelSwitch,
    StreamRules,
    StreamSession,
    StreamTurns,
)

LIVE = StreamRules(FramePolicy.LATEST_WINS, max_in_flight=2, max_frame_age_s=1.0)
FILM = StreamRules(FramePolicy.BLOCK, max_in_flight=2, max_frame_age_s=1.0)
NARROW = StreamRules(FramePolicy.LATEST_WINS, max_in_flight=1, max_frame_age_s=1.0)
DAMAGED = UndecodableImageError("damaged")

Session = StreamSession[str, str]


def session(rules: StreamRules = LIVE, forget: Callable[[str], None] = str) -> Session:
    return Session(rules, version=1, forget=forget)


def offered(stream: Session, *seqs: int, start: int = 0) -> Session:
    """Offer frames at time 0 and start the first ``start`` of them as they come."""
    for number, seq in enumerate(seqs):
        stream.offer(seq, f"frame {seq}", now_s=0.0)
        if number < start:
            assert stream.start(now_s=0.0)
    return stream


def answers(stream: Session) -> list[object]:
    return list(iter(stream.next_answer, None))


def test_a_newer_frame_takes_the_place_of_the_one_that_waits() -> None:
    stream = offered(session(), 1, 2, 3, 5, start=2)
    stream.answer(1, "one", version=1)
    stream.answer(2, "two", version=1)
    assert [a.seq for a in answers(stream) if isinstance(a, AnsweredFrame)] == [1, 2]
    assert (started := stream.start(now_s=0.1)) is not None
    assert (started.seq, started.frame) == (5, "frame 5")


def test_frames_dropped_one_after_the_other_are_one_range() -> None:
    stream = offered(session(), 1, 2, 4, 8, 9, start=1)
    stream.answer(1, "one", version=1)
    _, dropped = answers(stream)
    assert dropped == DroppedFrames(2, 8, 3, DropReason.SUPERSEDED)


def test_a_result_waits_for_the_frames_before_it() -> None:
    stream = offered(session(), 1, 2, start=2)
    stream.answer(2, "two", version=1)
    assert not answers(stream)
    stream.fail(1, DAMAGED)
    failed, answered = answers(stream)
    assert failed == FailedFrame(1, "undecodable_image")
    assert isinstance(answered, AnsweredFrame)


def test_a_frame_that_is_refused_leaves_those_before_it_alone() -> None:
    stream = offered(session(), 1, 2, start=1)
    stream.refuse(3, DAMAGED)
    started = stream.start(now_s=0.1)
    assert started is not None
    for seq in (1, started.seq):
        stream.answer(seq, "mask", version=1)
    assert [a.seq for a in answers(stream) if isinstance(a, (AnsweredFrame, FailedFrame))] == [1, 2, 3]


def test_each_frame_is_forgotten_once_as_soon_as_it_has_its_answer() -> None:
    forgotten: list[str] = []
    stream = offered(session(forget=forgotten.append), 1, 2, 3, start=2)
    assert not forgotten
    offered(stream, 4)
    assert forgotten == ["frame 3"]
    stream.refuse(5, DAMAGED)
    stream.answer(2, "two", version=1)
    assert forgotten == ["frame 3", "frame 2"]
    stream.fail(1, DAMAGED)
    stream.drain()
    offered(stream, 6)
    assert forgotten == ["frame 3", "frame 2", "frame 1", "frame 6"]
    stream.abandon()
    answers(stream)
    assert forgotten == ["frame 3", "frame 2", "frame 1", "frame 6", "frame 4"]


def test_a_frame_that_is_too_old_when_its_turn_comes_is_forgotten() -> None:
    forgotten: list[str] = []
    stream = offered(session(forget=forgotten.append), 1)
    assert stream.start(now_s=1.0) is None
    assert forgotten == ["frame 1"]


@pytest.mark.parametrize("rules", [LIVE, FILM, NARROW])
def test_of_a_client_that_never_reads_no_frame_is_refused_without_end(rules: StreamRules) -> None:
    stream = session(rules)
    for seq in range(100):
        if stream.wants_frame:
            stream.refuse(seq, DAMAGED)
    assert len(stream._book) <= 2 * rules.max_in_flight + 2


@pytest.mark.parametrize("seq", [0, 6, 7])
def test_a_seq_that_does_not_increase_is_refused(seq: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"seq {seq} follows 7"):
        offered(session(), 7, seq)


def test_any_first_seq_will_do() -> None:
    assert offered(session(), 0).can_start
    assert offered(session(), 2**64 - 1).can_start


def test_with_block_no_frame_is_wanted_while_one_waits() -> None:
    stream = offered(session(FILM), 1, 2, start=2)
    assert stream.wants_frame
    offered(stream, 3)
    assert not stream.wants_frame
    stream.answer(1, "one", version=1)
    assert stream.next_answer()
    assert stream.start(now_s=0.1)
    assert stream.wants_frame


def test_a_result_that_is_not_sent_keeps_its_place_in_flight() -> None:
    stream = offered(session(), 1, 2, 3, start=2)
    stream.answer(1, "one", version=1)
    stream.answer(2, "two", version=1)
    assert not stream.can_start
    assert stream.next_answer()
    assert stream.can_start


def test_a_frame_that_waited_too_long_is_not_started() -> None:
    stream = offered(session(), 1)
    assert stream.start(now_s=1.0) is None
    assert answers(stream) == [DroppedFrames(1, 1, 1, DropReason.TOO_OLD)]


def test_a_frame_may_be_given_up_while_it_is_worked_on() -> None:
    stream = offered(session(), 1, 2, start=2)
    stream.drop(1, DropReason.TOO_OLD)
    stream.drop(2, DropReason.TOO_OLD)
    assert answers(stream) == [DroppedFrames(1, 2, 2, DropReason.TOO_OLD)]


def test_neighbours_dropped_for_different_reasons_are_two_ranges() -> None:
    stream = offered(session(), 1, 2, start=1)
    offered(stream, 3)
    stream.drop(1, DropReason.TOO_OLD)
    reasons = [a.reason for a in answers(stream) if isinstance(a, DroppedFrames)]
    assert reasons == [DropReason.TOO_OLD, DropReason.SUPERSEDED]


def test_a_new_version_is_announced_before_its_first_result() -> None:
    stream = offered(session(), 1, 2, start=2)
    stream.answer(1, "old", version=1)
    stream.answer(2, "new", version=4)
    old, notice, new = answers(stream)
    assert notice == ModelSwitch(4)
    assert isinstance(old, AnsweredFrame)
    assert isinstance(new, AnsweredFrame)


def test_what_was_accepted_before_the_drain_is_answered_and_what_comes_later_is_dropped() -> None:
    stream = offered(session(), 1, 2, start=1)
    stream.drain()
    offered(stream, 3, 4)
    assert stream.start(now_s=0.1)
    stream.answer(1, "one", version=1)
    stream.answer(2, "two", version=1)
    one, two, dropped = answers(stream)
    assert isinstance(one, AnsweredFrame)
    assert isinstance(two, AnsweredFrame)
    assert dropped == DroppedFrames(3, 4, 2, DropReason.DRAINING)
    assert stream.is_finished


def test_the_end_of_the_input_is_not_the_end_of_the_answers() -> None:
    stream = offered(session(), 1, start=1)
    stream.end_input()
    assert not stream.is_finished
    stream.answer(1, "one", version=1)
    assert not stream.is_finished
    assert stream.next_answer()
    assert stream.is_finished


def test_the_book_of_a_client_that_never_reads_stays_short() -> None:
    stream = session()
    for seq in range(1000):
        stream.offer(seq, "frame", now_s=float(seq))
        if seq % 3 == 0:
            stream.start(now_s=seq + 5.0)  # too old
        elif stream.can_start and (started := stream.start(now_s=float(seq))):
            stream.answer(started.seq, "result", version=1)
    assert len(stream._book) <= 2 * LIVE.max_in_flight + 3


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


@given(data=st.data(), rules=st.sampled_from([LIVE, FILM, NARROW]))
def test_each_frame_is_answered_once_and_in_order_whatever_happens(
    data: st.DataObject, rules: StreamRules
) -> None:
    stream, ledger = session(rules), Ledger()
    working: list[int] = []
    now_s = 0.0
    for _ in range(data.draw(st.integers(0, 60))):
        now_s += data.draw(st.sampled_from([0.0, 0.1, 0.7]))
        step(stream, ledger, working, data, now_s)
        assert len(working) <= rules.max_in_flight
    stream.end_input()
    while not stream.is_finished:
        assert stream.can_start or working or stream._book[0].answer, "nothing can go on"
        if started := stream.start(now_s=now_s):
            working.append(started.seq)
        while working:
            settle(stream, working.pop(), data)
        for answer in answers(stream):
            ledger.take(answer)
    assert ledger.answered == ledger.sent


def step(stream: Session, ledger: Ledger, working: list[int], data: st.DataObject, now_s: float) -> None:
    """Do one thing that may happen to a stream now."""
    match data.draw(st.sampled_from(["offer", "offer", "start", "start", "settle", "read", "drain"])):
        case "offer" if stream.wants_frame:
            seq = (ledger.sent[-1] if ledger.sent else 0) + data.draw(st.integers(1, 3))
            ledger.sent.append(seq)
            if data.draw(st.booleans()):
                stream.offer(seq, "frame", now_s=now_s)
            else:
                stream.refuse(seq, DAMAGED)
        case "start" if started := stream.start(now_s=now_s):
            working.append(started.seq)
        case "settle" if working:
            settle(stream, working.pop(data.draw(st.integers(0, len(working) - 1))), data)
        case "read" if answer := stream.next_answer():
            ledger.take(answer)
        case "drain" if data.draw(st.integers(0, 9)) == 0:
            stream.drain()


def settle(stream: Session, seq: int, data: st.DataObject) -> None:
    match data.draw(st.sampled_from(["answer", "fail", "drop"])):
        case "answer":
            stream.answer(seq, "result", version=data.draw(st.integers(1, 2)))
        case "fail":
            stream.fail(seq, DAMAGED)
        case "drop":
            stream.drop(seq, DropReason.TOO_OLD)


def test_turns_go_round() -> None:
    turns = StreamTurns(at_once=1)
    order: list[str] = []

    def taker(name: str) -> Callable[[], bool]:
        def take() -> bool:
            order.append(name)
            return True

        return take

    takers = [taker(name) for name in "abc"]
    for _ in range(3):
        for take in takers:
            turns.ask(take)
        for take in takers:
            turns.done()
            turns.ask(take)
    assert all(first != second for first, second in pairwise(order))
    assert max(Counter(order).values()) - min(Counter(order).values()) <= 1


def test_a_turn_that_is_not_used_goes_to_the_next() -> None:
    turns = StreamTurns(at_once=1)
    taken: list[str] = []
    turns.ask(lambda: False)
    turns.ask(lambda: not taken.append("used"))
    turns.ask(lambda: not taken.append("too many"))
    assert taken == ["used"]


def test_films_have_more_turns_while_no_live_stream_is_there() -> None:
    turns = StreamTurns(at_once=1, films_at_once=3)
    taken: Counter[str] = Counter()

    def film() -> bool:
        taken["film"] += 1
        return True

    def live() -> bool:
        taken["live"] += 1
        return True

    for _ in range(4):
        turns.ask(film, is_live=False)
    assert taken == {"film": 3}
    turns.ask(live)
    turns.done()
    turns.done()
    assert taken == {"film": 3}
    turns.done()
    assert taken.total() == 4  # one of the two that wait
    turns.leave(live)
    turns.ask(film, is_live=False)
    assert taken["film"] >= 4


def test_who_left_the_line_gets_no_turn() -> None:
    turns = StreamTurns(at_once=1)
    taken: list[str] = []
    turns.ask(lambda: not taken.append("first"))

    def late() -> bool:
        return not taken.append("gone")

    turns.ask(late)
    turns.leave(late)
    turns.done()
    assert taken == ["first"]


@dataclass
class Camera:
    """One camera and its stream in a simulated service."""

    stream: Session
    period_s: float
    take: Callable[[], bool]
    ledger: Ledger = field(default_factory=Ledger)
    ages_s: list[float] = field(default_factory=list)
    turns: int = 0
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
        self.turns = StreamTurns(at_once=2)
        self.frame_s = frame_s
        self.jitter = jitter
        self.just_in_time = just_in_time
        self.now_s = 0.0
        self.device_free_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        rules = StreamRules(FramePolicy.LATEST_WINS, max_in_flight=4, max_frame_age_s=1.0)
        self.cameras = [
            Camera(session(rules), 1 / 30, partial(self._take, number)) for number in range(cameras)
        ]
        self._until_s = 0.0

    def run(self, seconds: float) -> None:
        """Let all cameras send for so long, then end their streams and answer what is left."""
        self._until_s = seconds
        for camera in self.cameras:
            self._at(self.random.uniform(0, camera.period_s), lambda c=camera: self._capture(c))
        while self._events:
            self.now_s, _, event = heapq.heappop(self._events)
            event()

    def _at(self, time_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), event))

    def _capture(self, camera: Camera) -> None:
        if self.now_s >= self._until_s:
            camera.stream.end_input()
            return
        seq = (camera.ledger.sent[-1] if camera.ledger.sent else 0) + self.random.choice([1, 1, 1, 2])
        camera.ledger.sent.append(seq)
        camera.captured_s[seq] = self.now_s
        camera.stream.offer(seq, "frame", now_s=self.now_s)
        self._pump(camera)
        self._at(self.now_s + camera.period_s, lambda: self._capture(camera))

    def _pump(self, camera: Camera) -> None:
        for answer in iter(camera.stream.next_answer, None):
            camera.ledger.take(answer)
            if isinstance(answer, AnsweredFrame) and self.now_s < self._until_s:  # then nothing fresher comes
                camera.ages_s.append(self.now_s - camera.captured_s[answer.seq])
        if camera.stream.can_start:
            self.turns.ask(camera.take)

    def _take(self, number: int) -> bool:
        camera = self.cameras[number]
        started = camera.stream.start(now_s=self.now_s)
        if started is None:
            return False
        camera.turns += 1
        lead_s = self.random.uniform(0.5, 1.5) * 0.1 * self.frame_s
        self._at(self.now_s + lead_s, lambda: self._decoded(camera, started.seq, lead_s))
        return True

    def _decoded(self, camera: Camera, seq: int, lead_s: float) -> None:
        if self.random.random() < 0.01:
            camera.stream.fail(seq, DAMAGED)
            self._pump(camera)
            self.turns.done()
            return
        share = self.random.uniform(-self.jitter, self.jitter) if self.jitter else 0.0
        busy_s = self.frame_s * (1 + share)
        self.device_free_s = max(self.now_s, self.device_free_s) + busy_s
        self._at(self.device_free_s, lambda: self._inferred(camera, seq, lead_s, busy_s))

    def _inferred(self, camera: Camera, seq: int, lead_s: float, busy_s: float) -> None:
        camera.stream.answer(seq, "result", version=1)
        self._pump(camera)
        if not self.just_in_time:
            self.turns.done()
        elif delay_s := self.turns.left_device(lead_s=lead_s, busy_s=busy_s):
            self._at(self.now_s + delay_s, self.turns.done_resting)


@pytest.mark.parametrize("seed", range(20))
def test_eight_cameras_get_equal_shares_of_fresh_results(seed: int) -> None:
    simulation = Simulation(seed, cameras=8, frame_s=0.012)
    simulation.run(seconds=10)
    for camera in simulation.cameras:
        assert camera.ledger.answered == camera.ledger.sent
        assert max(camera.ages_s) <= camera.period_s + 2 * 0.012 + 0.005
    shares = [camera.turns for camera in simulation.cameras]
    assert max(shares) - min(shares) <= 1
    assert 0.012 * sum(shares) >= 0.98 * 10  # the device is never idle


@pytest.mark.parametrize("jitter", [0.0, 0.1, 0.3])
def test_frames_taken_just_in_time_are_younger_and_the_device_is_as_busy(jitter: float) -> None:
    ages_s: list[float] = []
    served: list[int] = []
    for just_in_time in (False, True):
        simulation = Simulation(3, cameras=8, frame_s=0.02, jitter=jitter, just_in_time=just_in_time)
        simulation.run(seconds=30)
        ages_s.append(mean(age_s for camera in simulation.cameras for age_s in camera.ages_s))
        shares = [camera.turns for camera in simulation.cameras]
        assert max(shares) - min(shares) <= 2
        assert all(camera.ledger.answered == camera.ledger.sent for camera in simulation.cameras)
        served.append(sum(shares))
    assert ages_s[1] <= ages_s[0] - 0.02 * (0.7 - 1.2 * jitter)
    assert served[1] >= 0.99 * served[0]


def test_nothing_is_awaited_before_anything_is_known() -> None:
    pace = FrameTiming()
    pace.learn(lead_s=0.05, busy_s=1.0)  # the first of a size
    for _ in range(14):
        pace.learn(lead_s=0.001, busy_s=0.02)
        assert pace.delay_s == 0
    pace.learn(lead_s=0.001, busy_s=0.02)
    assert pace.delay_s == pytest.approx(0.02 - 0.001 - 0.001)


def test_a_pause_of_the_machine_does_not_make_frames_older() -> None:
    pace = FrameTiming()
    for _ in range(50):
        pace.learn(lead_s=0.001, busy_s=0.02)
    before_s = pace.delay_s
    for _ in range(3):
        pace.learn(lead_s=0.05, busy_s=0.01)
        assert pace.delay_s == before_s
    pace.learn(lead_s=0.05, busy_s=0.01)
    assert pace.delay_s < before_s


def test_a_frame_that_takes_longer_than_the_device_is_never_awaited() -> None:
    pace = FrameTiming()
    for _ in range(50):
        pace.learn(lead_s=0.03, busy_s=0.02)
    assert pace.delay_s == 0


def experienced(turns: StreamTurns) -> StreamTurns:
    """Let the turns know that a frame takes 20 ms in the device, and 1 ms before."""
    for _ in range(32):
        turns.ask(yes)
        turns.left_device(lead_s=0.001, busy_s=0.02)
    turns.leave(yes)
    return turns


def yes() -> bool:
    return True


def test_a_turn_rests_only_while_the_device_has_another_frame_and_a_live_stream_is_there() -> None:
    turns = experienced(StreamTurns(at_once=2))

    def film() -> bool:
        return True

    turns.ask(yes)
    turns.ask(film, is_live=False)
    assert turns.left_device(lead_s=0.001, busy_s=0.02) == pytest.approx(0.018)
    assert turns.left_device(lead_s=0.001, busy_s=0.02) == 0  # the device has no other
    turns.done_resting()
    turns.ask(yes)
    turns.ask(film, is_live=False)
    turns.leave(yes)
    assert turns.left_device(lead_s=0.001, busy_s=0.02) == 0  # films want many frames, not young ones


def test_a_turn_that_rests_is_nobodys_until_it_is_given_back() -> None:
    turns = experienced(StreamTurns(at_once=2))
    taken: list[str] = []
    for name in "abc":
        turns.ask(lambda name=name: not taken.append(name))  # type: ignore[misc]
    assert taken == ["a", "b"]
    assert turns.left_device(lead_s=0.001, busy_s=0.02)
    assert taken == ["a", "b"]
    turns.done_resting()
    assert taken == ["a", "b", "c"]


def test_one_camera_that_the_device_can_follow_loses_no_frame() -> None:
    simulation = Simulation(1, cameras=1, frame_s=0.012)
    simulation.run(seconds=10)
    (camera,) = simulation.cameras
    assert camera.turns == len(camera.ledger.sent)
    assert max(camera.ages_s) <= 2 * 0.012
