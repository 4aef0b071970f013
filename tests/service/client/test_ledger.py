"""Every frame that was sent is answered, lost, or without an answer yet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.client.answers import Dropped, Failed, GoingAway, ModelChanged
from service.client.backoff import ReconnectBackoff
from service.client.errors import ProtocolError
from service.client.ledger import FrameLedger


def ledger(*seqs: int) -> FrameLedger:
    frames = FrameLedger()
    for seq in seqs:
        frames.send(seq)
    return frames


def test_each_answer_closes_the_frames_that_it_names() -> None:
    frames = ledger(1, 2, 5, 6)
    frames.take(Failed(1, "undecodable_image"))
    frames.take(Dropped(2, 5, 2, "superseded"))
    assert frames.unanswered == (6,)
    assert dict(frames.outcomes) == {"failed": 1, "superseded": 2}


@pytest.mark.parametrize(
    "event",
    [
        Failed(2, "internal"),  # not the oldest
        Dropped(1, 2, 1, "superseded"),  # counts wrong
        Dropped(1, 0, 0, "superseded"),  # answers no frame
        Dropped(1, 9, 3, "superseded"),  # more than was sent
        Dropped(0, 2, 2, "superseded"),
    ],
)
def test_an_answer_out_of_order_is_noticed(event: Failed | Dropped) -> None:
    with pytest.raises(ProtocolError):
        ledger(1, 2).take(event)


def test_an_answer_for_nothing_is_noticed() -> None:
    with pytest.raises(ProtocolError):
        FrameLedger().take(Failed(1, "internal"))


def test_an_event_that_answers_no_frame_changes_nothing() -> None:
    frames = ledger(1)
    frames.take(ModelChanged(2))
    frames.take(GoingAway(1.0))
    assert frames.unanswered == (1,)


@given(st.lists(st.integers(1, 5), max_size=20), st.integers(0, 20))
def test_every_frame_has_one_outcome(steps: list[int], answered: int) -> None:
    seqs = [sum(steps[: index + 1]) for index in range(len(steps))]
    frames = ledger(*seqs)
    for seq in seqs[:answered]:
        frames.take(Failed(seq, "internal"))
    lost = frames.lose()
    assert frames.sent == len(seqs) == sum(frames.outcomes.values())
    assert len(lost) == max(0, len(seqs) - answered)
    assert not frames.unanswered


def test_a_frame_that_is_sent_again_counts_once() -> None:
    frames = ledger(1, 2)
    assert frames.take_back() == (1, 2)
    frames.send(1)
    frames.send(2)
    assert frames.sent == 2


def test_a_dropped_range_can_be_taken_back_and_counts_once() -> None:
    frames = ledger(1, 2, 3)
    frames.take(Failed(1, "internal"))
    assert frames.take_back(Dropped(2, 2, 1, "draining")) == (2,)
    assert (frames.unanswered, frames.sent, dict(frames.outcomes)) == ((3,), 2, {"failed": 1})
    with pytest.raises(ProtocolError):
        frames.take_back(Dropped(2, 2, 1, "draining"))


def test_the_wait_doubles_up_to_its_limit_and_starts_anew_after_a_success() -> None:
    backoff = ReconnectBackoff(first_s=1.0, max_s=5.0, spread=lambda _, high: high)
    assert [backoff.next_s() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_s() == 1.0


def test_the_wait_is_spread_from_nothing_and_never_before_the_advice() -> None:
    low = ReconnectBackoff(first_s=1.0, spread=lambda low, _: low)
    assert low.next_s() == 0.0
    assert low.next_s(retry_after_s=3.0) == 3.0
