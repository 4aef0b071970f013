"""Every frame of a stream has one answer, and answers come in the order of the frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_simulation import Ledger

from service.core.errors import InvalidArgumentError, UndecodableImageError
from service.core.streams.stream_session import (
    AnsweredFrame,
    DroppedFrames,
    DropReason,
    FailedFrame,
    FramePolicy,
    ModelSwitch,
    StreamRules,
    StreamSession,
)

LIVE = StreamRules(FramePolicy.LATEST_WINS, max_in_flight=2, max_frame_age_s=1.0)
FILM = StreamRules(FramePolicy.BLOCK, max_in_flight=2, max_frame_age_s=1.0)
NARROW = StreamRules(FramePolicy.LATEST_WINS, max_in_flight=1, max_frame_age_s=1.0)
DAMAGED = UndecodableImageError("damaged")

Session = StreamSession[str, str]


def session(rules: StreamRules = LIVE, on_answered: Callable[[str], None] = str) -> Session:
    return Session(rules, version=1, on_answered=on_answered)


def offered(stream: Session, *seqs: int, start: int = 0) -> Session:
    """Offer frames at time 0 and start the first ``start`` of them as they come."""
    for number, seq in enumerate(seqs):
        stream.add_frame(seq, f"frame {seq}", now_s=0.0)
        if number < start:
            assert stream.start_frame(now_s=0.0)
    return stream


def answers(stream: Session) -> list[object]:
    return list(iter(stream.next_answer, None))


def test_a_newer_frame_takes_the_place_of_the_one_that_waits() -> None:
    stream = offered(session(), 1, 2, 3, 5, start=2)
    stream.answer_frame(1, "one", version=1)
    stream.answer_frame(2, "two", version=1)
    assert [a.seq for a in answers(stream) if isinstance(a, AnsweredFrame)] == [1, 2]
    assert (started := stream.start_frame(now_s=0.1)) is not None
    assert (started.seq, started.frame) == (5, "frame 5")


def test_frames_dropped_one_after_the_other_are_one_range() -> None:
    stream = offered(session(), 1, 2, 4, 8, 9, start=1)
    stream.answer_frame(1, "one", version=1)
    _, dropped = answers(stream)
    assert dropped == DroppedFrames(2, 8, 3, DropReason.SUPERSEDED)


def test_a_result_waits_for_the_frames_before_it() -> None:
    stream = offered(session(), 1, 2, start=2)
    stream.answer_frame(2, "two", version=1)
    assert not answers(stream)
    stream.fail_frame(1, DAMAGED)
    failed, answered = answers(stream)
    assert failed == FailedFrame(1, "undecodable_image")
    assert isinstance(answered, AnsweredFrame)


def test_a_frame_that_is_refused_leaves_those_before_it_alone() -> None:
    stream = offered(session(), 1, 2, start=1)
    stream.refuse_frame(3, DAMAGED)
    started = stream.start_frame(now_s=0.1)
    assert started is not None
    for seq in (1, started.seq):
        stream.answer_frame(seq, "mask", version=1)
    assert [a.seq for a in answers(stream) if isinstance(a, (AnsweredFrame, FailedFrame))] == [1, 2, 3]


def test_each_frame_is_forgotten_once_as_soon_as_it_has_its_answer() -> None:
    forgotten: list[str] = []
    stream = offered(session(on_answered=forgotten.append), 1, 2, 3, start=2)
    assert not forgotten
    offered(stream, 4)
    assert forgotten == ["frame 3"]
    stream.refuse_frame(5, DAMAGED)
    stream.answer_frame(2, "two", version=1)
    assert forgotten == ["frame 3", "frame 2"]
    stream.fail_frame(1, DAMAGED)
    stream.drain()
    offered(stream, 6)
    assert forgotten == ["frame 3", "frame 2", "frame 1", "frame 6"]
    stream.discard_frames()
    answers(stream)
    assert forgotten == ["frame 3", "frame 2", "frame 1", "frame 6", "frame 4"]


def test_a_frame_that_is_too_old_when_its_turn_comes_is_forgotten() -> None:
    forgotten: list[str] = []
    stream = offered(session(on_answered=forgotten.append), 1)
    assert stream.start_frame(now_s=1.0) is None
    assert forgotten == ["frame 1"]


@pytest.mark.parametrize("rules", [LIVE, FILM, NARROW])
def test_of_a_client_that_never_reads_no_frame_is_refused_without_end(rules: StreamRules) -> None:
    stream = session(rules)
    for seq in range(100):
        if stream.wants_frame:
            stream.refuse_frame(seq, DAMAGED)
    assert len(stream._entries) <= 2 * rules.max_in_flight + 2


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
    stream.answer_frame(1, "one", version=1)
    assert stream.next_answer()
    assert stream.start_frame(now_s=0.1)
    assert stream.wants_frame


def test_a_result_that_is_not_sent_keeps_its_place_in_flight() -> None:
    stream = offered(session(), 1, 2, 3, start=2)
    stream.answer_frame(1, "one", version=1)
    stream.answer_frame(2, "two", version=1)
    assert not stream.can_start
    assert stream.next_answer()
    assert stream.can_start


def test_a_frame_that_waited_too_long_is_not_started() -> None:
    stream = offered(session(), 1)
    assert stream.start_frame(now_s=1.0) is None
    assert answers(stream) == [DroppedFrames(1, 1, 1, DropReason.TOO_OLD)]


def test_a_frame_may_be_given_up_while_it_is_worked_on() -> None:
    stream = offered(session(), 1, 2, start=2)
    stream.drop_frame(1, DropReason.TOO_OLD)
    stream.drop_frame(2, DropReason.TOO_OLD)
    assert answers(stream) == [DroppedFrames(1, 2, 2, DropReason.TOO_OLD)]


def test_neighbours_dropped_for_different_reasons_are_two_ranges() -> None:
    stream = offered(session(), 1, 2, start=1)
    offered(stream, 3)
    stream.drop_frame(1, DropReason.TOO_OLD)
    reasons = [a.reason for a in answers(stream) if isinstance(a, DroppedFrames)]
    assert reasons == [DropReason.TOO_OLD, DropReason.SUPERSEDED]


def test_a_new_version_is_announced_before_its_first_result() -> None:
    stream = offered(session(), 1, 2, start=2)
    stream.answer_frame(1, "old", version=1)
    stream.answer_frame(2, "new", version=4)
    old, notice, new = answers(stream)
    assert notice == ModelSwitch(4)
    assert isinstance(old, AnsweredFrame)
    assert isinstance(new, AnsweredFrame)


def test_what_was_accepted_before_the_drain_is_answered_and_what_comes_later_is_dropped() -> None:
    stream = offered(session(), 1, 2, start=1)
    stream.drain()
    offered(stream, 3, 4)
    assert stream.start_frame(now_s=0.1)
    stream.answer_frame(1, "one", version=1)
    stream.answer_frame(2, "two", version=1)
    one, two, dropped = answers(stream)
    assert isinstance(one, AnsweredFrame)
    assert isinstance(two, AnsweredFrame)
    assert dropped == DroppedFrames(3, 4, 2, DropReason.DRAINING)
    assert stream.is_finished


def test_the_end_of_the_input_is_not_the_end_of_the_answers() -> None:
    stream = offered(session(), 1, start=1)
    stream.end_input()
    assert not stream.is_finished
    stream.answer_frame(1, "one", version=1)
    assert not stream.is_finished
    assert stream.next_answer()
    assert stream.is_finished


def test_the_book_of_a_client_that_never_reads_stays_short() -> None:
    stream = session()
    for seq in range(1000):
        stream.add_frame(seq, "frame", now_s=float(seq))
        if seq % 3 == 0:
            stream.start_frame(now_s=seq + 5.0)  # too old
        elif stream.can_start and (started := stream.start_frame(now_s=float(seq))):
            stream.answer_frame(started.seq, "result", version=1)
    assert len(stream._entries) <= 2 * LIVE.max_in_flight + 3


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
        assert stream.can_start or working or stream._entries[0].answer, "nothing can go on"
        if started := stream.start_frame(now_s=now_s):
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
                stream.add_frame(seq, "frame", now_s=now_s)
            else:
                stream.refuse_frame(seq, DAMAGED)
        case "start" if started := stream.start_frame(now_s=now_s):
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
            stream.answer_frame(seq, "result", version=data.draw(st.integers(1, 2)))
        case "fail":
            stream.fail_frame(seq, DAMAGED)
        case "drop":
            stream.drop_frame(seq, DropReason.TOO_OLD)
