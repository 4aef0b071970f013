from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.batching import Item, WaitingRoom
from service.core.errors import DeadlineExceededError, QueueFullError

NEVER_S = 1e9


def an_item(
    name: str = "", *, pixels: int = 1, now_s: float = 0.0, deadline_s: float = NEVER_S
) -> Item[str, int]:
    return Item(name, pixels, now_s, deadline_s)


def test_the_oldest_item_comes_first() -> None:
    room: WaitingRoom[str, int] = WaitingRoom()
    for name in "abc":
        room.admit(an_item(name))
    assert [taken.work for _ in "abc" if (taken := room.take(now_s=0.0))] == ["a", "b", "c"]
    assert room.take(now_s=0.0) is None


def test_a_cancelled_item_is_not_taken() -> None:
    room: WaitingRoom[str, int] = WaitingRoom()
    cancelled, wanted = an_item(), an_item()
    room.admit(cancelled)
    room.admit(wanted)
    cancelled.future.cancel()
    assert room.take(now_s=0.0) is wanted


def test_a_taken_item_can_not_be_cancelled_any_more() -> None:
    room: WaitingRoom[str, int] = WaitingRoom()
    item = an_item()
    room.admit(item)
    room.take(now_s=0.0)
    assert not item.future.cancel()


def test_an_expired_item_is_answered_and_not_taken() -> None:
    room: WaitingRoom[str, int] = WaitingRoom()
    expired = an_item(deadline_s=5.0)
    room.admit(expired)
    assert room.take(now_s=5.0) is None
    with pytest.raises(DeadlineExceededError):
        expired.future.result(timeout=0)


def test_a_withdrawn_item_frees_its_place() -> None:
    room: WaitingRoom[str, int] = WaitingRoom(max_items=1)
    item = an_item()
    room.admit(item)
    room.withdraw(item.future)
    room.withdraw(item.future)
    room.admit(an_item())
    assert len(room) == 1


def test_a_full_room_refuses_and_says_when_its_queue_will_be_gone() -> None:
    room: WaitingRoom[str, int] = WaitingRoom(max_items=2)
    room.learn(pixels=100, duration_s=3.0)
    room.admit(an_item(pixels=100))
    room.admit(an_item(pixels=200))
    with pytest.raises(QueueFullError) as refused:
        room.admit(an_item())
    assert refused.value.retry_after_s == pytest.approx(9.0)
    assert len(room) == 2


def test_what_the_queue_alone_would_make_too_late_is_refused_at_once() -> None:
    room: WaitingRoom[str, int] = WaitingRoom()
    room.learn(pixels=100, duration_s=3.0)
    room.admit(an_item(pixels=100))
    room.admit(an_item(deadline_s=3.1))
    with pytest.raises(QueueFullError):
        room.admit(an_item(deadline_s=2.9))


def test_what_comes_after_its_deadline_is_too_late_and_not_one_too_many() -> None:
    room: WaitingRoom[str, int] = WaitingRoom()
    room.learn(pixels=100, duration_s=3.0)
    room.admit(an_item(pixels=100))
    with pytest.raises(DeadlineExceededError):
        room.admit(an_item(now_s=5.0, deadline_s=5.0))
    assert len(room) == 1


def test_nothing_is_refused_for_its_deadline_before_a_duration_is_known() -> None:
    room: WaitingRoom[str, int] = WaitingRoom()
    for _ in range(10):
        room.admit(an_item(pixels=10**9, deadline_s=0.001))
    assert room.expected_wait_s == 0.0


@given(st.lists(st.floats(0.001, 10.0), min_size=1), st.integers(1, 10**7))
def test_the_expected_wait_lies_within_what_was_seen(durations_s: list[float], pixels: int) -> None:
    room: WaitingRoom[str, int] = WaitingRoom()
    for duration_s in durations_s:
        room.learn(pixels=pixels, duration_s=duration_s)
    room.admit(an_item(pixels=pixels))
    assert min(durations_s) * 0.999 <= room.expected_wait_s <= max(durations_s) * 1.001


@given(st.lists(st.sampled_from(["admit", "cancel", "expire", "take"]), max_size=60), st.integers(1, 5))
def test_each_admitted_item_is_answered_exactly_once_and_the_room_stays_bounded(
    steps: list[str], max_items: int
) -> None:
    room: WaitingRoom[str, int] = WaitingRoom(max_items)
    admitted: list[Item[str, int]] = []
    answered: list[Item[str, int]] = []
    now_s = 0.0
    for step in [*steps, *["take"] * (max_items + 1)]:
        if step == "admit":
            item = an_item(now_s=now_s, deadline_s=now_s + 10.0)
            item.future.add_done_callback(lambda _, item=item: answered.append(item))
            if len(room) < max_items:
                room.admit(item)
                admitted.append(item)
            else:
                with pytest.raises(QueueFullError):
                    room.admit(item)
        elif step == "cancel" and admitted:
            admitted[-1].future.cancel()
        elif step == "expire":
            now_s += 10.0
        elif step == "take" and (taken := room.take(now_s=now_s)):
            taken.future.set_result(1)
        assert len(room) <= max_items
    assert sorted(map(id, answered)) == sorted(map(id, admitted))
