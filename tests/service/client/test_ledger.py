"""The client's book: what was sent is answered, lost, or still under way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.client.answers import Dropped, Failed, GoingAway, ModelChanged
from service.client.backoff import ReconnectBackoff
from service.client.errors import ProtocolError
from service.client.ledger import FrameLedger


def ledger(*seqs: int) -> FrameLedger:
    book = FrameLedger()
    for seq in seqs:
        book.send(seq)
    return book


def test_each_answer_closes_what_it_names() -> None:
    book = ledger(1, 2, 5, 6)
    book.take(Failed(1, "undecodable_image"))
    book.take(Dropped(2, 5, 2, "superseded"))
    assert book.unanswered == (6,)
    assert dict(book.outcomes) == {"failed": 1, "superseded": 2}


@pytest.mark.parametrize(
    "event",
    [
        Failed(2, "internal"),  # not the oldest
        Dropped(1, 2, 1, "superseded"),  # counts wrong
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


def test_what_answers_no_frame_changes_nothing() -> None:
    book = ledger(1)
    book.take(ModelChanged(2))
    book.take(GoingAway(1.0))
    assert book.unanswered == (1,)


@given(st.lists(st.integers(1, 5), max_size=20), st.integers(0, 20))
def test_nothing_gets_lost_in_the_book(steps: list[int], answered: int) -> None:
    seqs = [sum(steps[: index + 1]) for index in range(len(steps))]
    book = ledger(*seqs)
    for seq in seqs[:answered]:
        book.take(Failed(seq, "internal"))
    lost = book.lose()
    assert book.sent == len(seqs) == sum(book.outcomes.values())
    assert len(lost) == max(0, len(seqs) - answered)
    assert not book.unanswered


def test_a_frame_that_is_sent_again_counts_once() -> None:
    book = ledger(1, 2)
    assert book.take_back() == (1, 2)
    book.send(1)
    book.send(2)
    assert book.sent == 2


def test_a_dropped_range_can_be_taken_back_and_counts_once() -> None:
    book = ledger(1, 2, 3)
    book.take(Failed(1, "internal"))
    assert book.take_back(Dropped(2, 2, 1, "draining")) == (2,)
    assert (book.unanswered, book.sent, dict(book.outcomes)) == ((3,), 2, {"failed": 1})
    with pytest.raises(ProtocolError):
        book.take_back(Dropped(2, 2, 1, "draining"))


def test_the_wait_doubles_up_to_its_limit_and_starts_anew_after_a_success() -> None:
    backoff = ReconnectBackoff(first_s=1.0, max_s=5.0, spread=lambda _, high: high)
    assert [backoff.next_s() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_s() == 1.0


def test_the_wait_is_spread_from_nothing_and_never_before_the_advice() -> None:
    low = ReconnectBackoff(first_s=1.0, spread=lambda low, _: low)
    assert low.next_s() == 0.0
    assert low.next_s(retry_after_s=3.0) == 3.0
