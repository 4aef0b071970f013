from __future__ import annotations

import pytest

from model.pictures.preprocess import ImageSize
from service.core.errors import (
    DeadlineExceededError,
    DrainingError,
    NoWorkerError,
    QueueFullError,
    RateLimitedError,
)
from service.core.scheduling.scheduler import Batch, BatchKey, BatchLimits, Item, Lane, Scheduler

NEVER_S = 1e9
KEY = BatchKey("model", ImageSize(10, 10))
WIDE = BatchKey("model", ImageSize(10, 20))
FOURS = BatchKey("model", ImageSize(10, 10), BatchLimits(max_items=4))

StrScheduler = Scheduler[str, int]


def an_item(
    name: str = "",
    *,
    key: BatchKey = KEY,
    now_s: float = 0.0,
    deadline_s: float = NEVER_S,
    lane: Lane = Lane.INTERACTIVE,
    source: str | None = None,
) -> Item[str, int]:
    return Item(name, key, now_s, deadline_s, lane, source)


def names(batch: Batch[str, int] | None) -> str:
    return "".join(item.work for item in batch.items) if batch else ""


def next_up(scheduler: StrScheduler, *, now_s: float = 0.0) -> str:
    """Take a batch, be done with it at once, and return what was in it."""
    batch = scheduler.take_batch(now_s=now_s)
    if batch:
        scheduler.finish_batch(batch, now_s=now_s)
    return names(batch)


def a_scheduler(*items: Item[str, int], max_items: int = 256, batch_s: float | None = None) -> StrScheduler:
    """Return a scheduler in which items wait, on a device that takes ``batch_s`` for ten by ten pixels."""
    scheduler: StrScheduler = Scheduler(max_items)
    if batch_s is not None:
        scheduler._latencies[KEY.model].learn(pixels=100, duration_s=batch_s)
    for item in items:
        scheduler.admit_item(item)
    return scheduler


def test_the_oldest_item_comes_first() -> None:
    scheduler = a_scheduler(*map(an_item, "abc"))
    assert [next_up(scheduler) for _ in "abcd"] == ["a", "b", "c", ""]


def test_a_batch_takes_what_shares_its_key_and_leaves_the_rest_in_order() -> None:
    scheduler = a_scheduler(
        an_item("a", key=FOURS, now_s=1.0),
        an_item("b", now_s=2.0),
        *(an_item(name, key=FOURS, now_s=3.0) for name in "cdef"),
        an_item("g", key=FOURS, lane=Lane.STREAM),
    )
    assert [next_up(scheduler) for _ in range(4)] == ["acde", "b", "f", "g"]


def test_a_cancelled_item_is_not_taken() -> None:
    cancelled = an_item("a")
    scheduler = a_scheduler(cancelled, an_item("b"))
    cancelled.future.cancel()
    assert next_up(scheduler) == "b"


def test_a_taken_item_can_not_be_cancelled_any_more() -> None:
    item = an_item()
    a_scheduler(item).take_batch(now_s=0.0)
    assert not item.future.cancel()


def test_an_expired_item_is_answered_and_not_taken() -> None:
    expired = an_item(deadline_s=5.0)
    assert a_scheduler(expired).take_batch(now_s=5.0) is None
    with pytest.raises(DeadlineExceededError):
        expired.future.result(timeout=0)


def test_what_would_be_late_makes_way_for_what_would_not() -> None:
    late = an_item("a", deadline_s=3.0)
    scheduler = a_scheduler(late, an_item("b"), batch_s=2.0)
    assert next_up(scheduler, now_s=1.5) == "b"
    with pytest.raises(DeadlineExceededError):
        late.future.result(timeout=0)


def test_an_expired_client_may_come_back_at_once() -> None:
    late = an_item("a", key=FOURS, deadline_s=1.0)
    scheduler = a_scheduler(late, an_item("b", key=FOURS), an_item("c", key=FOURS))
    late.future.add_done_callback(lambda _: scheduler.admit_item(an_item("d", key=FOURS)))
    late.future.add_done_callback(lambda _: scheduler.take_batch(now_s=1.0))
    assert names(scheduler.take_batch(now_s=1.0)) == "bc"
    assert len(scheduler) == 1


def test_what_would_be_late_is_tried_when_nothing_else_waits() -> None:
    scheduler = a_scheduler(an_item("a", deadline_s=3.0), batch_s=2.0)
    assert next_up(scheduler, now_s=1.5) == "a"


def test_a_batch_stays_so_small_that_all_of_it_is_in_time() -> None:
    scheduler = a_scheduler(
        an_item("a", key=FOURS, deadline_s=2.5), an_item("b", key=FOURS), an_item("c", key=FOURS)
    )
    scheduler._latencies[KEY.model].learn(pixels=100, duration_s=1.0)
    assert [next_up(scheduler), next_up(scheduler)] == ["ab", "c"]


def test_the_first_in_line_are_given_up_when_they_would_keep_batches_small_for_ever() -> None:
    hurried = [an_item(name, key=FOURS, deadline_s=1.5) for name in "ab"]
    patient = [an_item(name, key=FOURS, deadline_s=4.2) for name in "cdef"]
    scheduler = a_scheduler(*hurried, *patient)
    scheduler._latencies[KEY.model].learn(pixels=100, duration_s=1.0)
    assert next_up(scheduler) == "cdef"


def test_no_item_is_given_up_while_all_can_be_in_time_one_batch_after_the_other() -> None:
    items = [
        an_item(name, key=FOURS, deadline_s=deadline_s)
        for name, deadline_s in (("a", 1.5), ("b", 3.1), ("c", 3.1))
    ]
    scheduler = a_scheduler(*items)
    scheduler._latencies[KEY.model].learn(pixels=100, duration_s=1.0)
    assert [next_up(scheduler, now_s=0.0), next_up(scheduler, now_s=1.0)] == ["a", "bc"]


def test_a_withdrawn_item_frees_its_place() -> None:
    item = an_item()
    scheduler = a_scheduler(item, max_items=1)
    scheduler.withdraw(item.future)
    scheduler.withdraw(item.future)
    scheduler.admit_item(an_item())
    assert len(scheduler) == 1


def test_a_reserved_place_counts_but_nothing_is_taken_before_it_is_ready() -> None:
    scheduler = a_scheduler(max_items=1, batch_s=3.0)
    promised = an_item("a", deadline_s=4.0)
    scheduler.reserve_items([promised])
    with pytest.raises(QueueFullError) as refused:
        scheduler.admit_item(an_item())
    assert refused.value.retry_after_s == pytest.approx(3.0)
    assert scheduler.take_batch(now_s=0.0) is None
    scheduler.admit_item(promised)
    assert next_up(scheduler) == "a"


def test_what_has_a_place_is_not_refused_when_the_queue_has_grown() -> None:
    scheduler = a_scheduler(an_item("a"), batch_s=3.0)
    promised = an_item("b", deadline_s=6.5)
    scheduler.reserve_items([promised])
    scheduler.requeue_items([an_item("c")])
    scheduler.admit_item(promised)
    assert len(scheduler) == 3


def test_what_can_not_be_in_time_gets_no_place() -> None:
    scheduler = a_scheduler(an_item(), batch_s=3.0)
    with pytest.raises(QueueFullError):
        scheduler.reserve_items([an_item(deadline_s=5.9)])
    with pytest.raises(DeadlineExceededError):
        scheduler.reserve_items([an_item(now_s=5.0, deadline_s=5.0)])
    assert len(scheduler) == 1


def test_several_items_get_all_their_places_or_none() -> None:
    scheduler = a_scheduler(an_item(), max_items=3)
    tiles = [an_item(name) for name in "abc"]
    with pytest.raises(QueueFullError, match="has 3 tiles, and only 2 of them find a place"):
        scheduler.reserve_items(tiles)
    assert len(scheduler) == 1
    scheduler.reserve_items(tiles[:2])
    assert len(scheduler) == 3


def test_several_items_are_refused_when_they_outlast_their_deadline_together() -> None:
    tiles = [an_item(name, deadline_s=10.0) for name in "abc"]
    with pytest.raises(QueueFullError, match="allow more time") as refused:
        a_scheduler(an_item(), batch_s=3.0).reserve_items(tiles)
    assert refused.value.retry_after_s == pytest.approx(3.0)
    a_scheduler(an_item(), batch_s=3.0).reserve_items(tiles[:2])


def test_an_idle_device_tries_several_items_whatever_the_estimate_says() -> None:
    scheduler = a_scheduler(batch_s=30.0)
    scheduler.reserve_items([an_item(name, deadline_s=10.0) for name in "abc"])
    assert len(scheduler) == 3


def test_places_beyond_the_share_of_a_client_are_refused_as_its_limit() -> None:
    others = (an_item(source=name) for name in "abc")
    scheduler = a_scheduler(*others, max_items=16)
    with pytest.raises(RateLimitedError, match="has 5 tiles, and only 4 of them"):
        scheduler.reserve_items([an_item(source="d") for _ in range(5)])


def test_the_tiles_of_a_picture_let_other_clients_in_between_and_later_pictures_of_their_own_behind() -> None:
    scheduler = a_scheduler()
    tiles = [an_item(name, source="large") for name in "abc"]
    scheduler.reserve_items(tiles)
    order = []
    for tile in tiles:
        scheduler.admit_item(tile)
        if tile is tiles[0]:
            scheduler.admit_item(an_item("x", key=WIDE, now_s=1.0, source="large"))
        order += [next_up(scheduler, now_s=2.0)]
        if tile is tiles[1]:
            scheduler.admit_item(an_item("y", now_s=3.0, source="small"))
    order += [next_up(scheduler, now_s=4.0) for _ in range(2)]
    assert "".join(order) == "abcyx"


def test_a_withdrawn_reservation_frees_its_place_and_can_not_be_used_any_more() -> None:
    scheduler = a_scheduler(max_items=1)
    item = an_item()
    scheduler.reserve_items([item])
    item.future.cancel()
    scheduler.withdraw(item.future)
    scheduler.admit_item(item)
    assert len(scheduler) == 0
    assert scheduler.expected_wait_s(now_s=0.0) == 0.0


def test_a_full_room_refuses_and_says_when_its_queue_will_be_gone() -> None:
    scheduler = a_scheduler(an_item(), an_item(key=WIDE), max_items=2, batch_s=3.0)
    with pytest.raises(QueueFullError) as refused:
        scheduler.admit_item(an_item())
    assert refused.value.retry_after_s == pytest.approx(9.0)
    assert len(scheduler) == 2


def test_the_advice_counts_what_runs() -> None:
    scheduler = a_scheduler(an_item(), an_item(), batch_s=3.0)
    batch = scheduler.take_batch(now_s=10.0)
    assert scheduler.expected_wait_s(now_s=11.0) == pytest.approx(2.0 + 3.0)
    assert batch
    scheduler.finish_batch(batch, now_s=12.0)
    assert scheduler.expected_wait_s(now_s=12.0) == pytest.approx(3.0)


def test_a_batch_that_ends_early_or_late_moves_the_one_behind_it() -> None:
    scheduler = a_scheduler(an_item(), an_item(), batch_s=3.0)
    batch = scheduler.take_batch(now_s=0.0)
    assert batch
    assert scheduler.take_batch(now_s=0.0)
    scheduler.finish_batch(batch, now_s=1.0)
    assert scheduler.expected_wait_s(now_s=2.0) == pytest.approx(2.0)


def test_what_can_not_be_in_time_is_refused_at_once() -> None:
    scheduler = a_scheduler(an_item(), batch_s=3.0)
    scheduler.admit_item(an_item(deadline_s=6.1))
    with pytest.raises(QueueFullError):
        scheduler.admit_item(an_item(deadline_s=8.9))


def check(scheduler: StrScheduler, *, deadline_s: float) -> bool:
    """Return whether a picture that is not received yet has a chance."""
    try:
        scheduler.check_early(Lane.INTERACTIVE, KEY.model, now_s=0.0, deadline_s=deadline_s)
    except QueueFullError:
        return False
    return True


@pytest.mark.parametrize("waiting", [0, 1, 5, 20])
def test_what_is_not_received_yet_has_a_chance_exactly_if_it_would_get_a_place(waiting: int) -> None:
    for tenths in range(1, 260):
        scheduler = a_scheduler(*map(an_item, "abcdefghijklmnopqrst"[:waiting]), batch_s=1.0)
        late = an_item(deadline_s=tenths / 10)
        chance = check(scheduler, deadline_s=late.deadline_s)
        try:
            scheduler.admit_item(late)
        except QueueFullError:
            assert not chance
        else:
            assert chance


def test_what_is_not_received_yet_may_turn_out_to_be_small() -> None:
    scheduler = a_scheduler(an_item("a"), batch_s=1.0)
    scheduler._latencies[KEY.model].learn(pixels=10, duration_s=0.1)
    assert check(scheduler, deadline_s=1.2)
    assert not check(scheduler, deadline_s=1.0)


def test_a_full_room_refuses_before_anything_is_received() -> None:
    scheduler = a_scheduler(an_item("a"), an_item("b"), max_items=2)
    assert not check(scheduler, deadline_s=NEVER_S)
    next_up(scheduler)
    assert check(scheduler, deadline_s=NEVER_S)


def test_more_urgent_work_is_in_front_of_a_less_urgent_item_but_not_the_other_way_round() -> None:
    scheduler = a_scheduler(an_item(), an_item(lane=Lane.BULK), batch_s=3.0)
    with pytest.raises(QueueFullError):
        scheduler.admit_item(an_item(deadline_s=5.9, lane=Lane.STREAM))
    scheduler.admit_item(an_item(deadline_s=6.1, lane=Lane.STREAM))


def test_the_more_a_device_varies_the_earlier_is_refused() -> None:
    scheduler = a_scheduler(an_item(), batch_s=3.0)
    for duration_s in [2.0, 4.0] * 20:
        scheduler._latencies[KEY.model].learn(pixels=100, duration_s=duration_s)
    with pytest.raises(QueueFullError):
        scheduler.admit_item(an_item(deadline_s=7.0))


def test_deviations_add_up_as_squares() -> None:
    scheduler = a_scheduler(*(an_item() for _ in range(15)))
    for duration_s in [0.9, 1.1] * 50:
        scheduler._latencies[KEY.model].learn(pixels=100, duration_s=duration_s)
    with pytest.raises(QueueFullError):
        scheduler.admit_item(an_item(deadline_s=16.0 + 0.1 * 3 * 3))
    scheduler.admit_item(an_item(deadline_s=16.0 + 0.1 * 3 * 5))


def test_what_comes_after_its_deadline_is_too_late_and_not_one_too_many() -> None:
    scheduler = a_scheduler(an_item(), max_items=1)
    with pytest.raises(DeadlineExceededError):
        scheduler.admit_item(an_item(now_s=5.0, deadline_s=5.0))
    assert len(scheduler) == 1


@pytest.mark.parametrize(
    ("items", "max_items", "deadline_s", "message"),
    [
        (1, 1, NEVER_S, "the queue is full, 1 request is waiting: try again later"),
        (2, 2, NEVER_S, "the queue is full, 2 requests are waiting: try again later"),
        (
            1,
            256,
            5.9,
            (
                "the answer would come after the deadline, because 1 request is waiting: "
                "try again later or allow more time"
            ),
        ),
    ],
)
def test_a_refusal_says_why_and_what_to_do(
    items: int, max_items: int, deadline_s: float, message: str
) -> None:
    scheduler = a_scheduler(*(an_item() for _ in range(items)), max_items=max_items, batch_s=3.0)
    with pytest.raises(QueueFullError) as refused:
        scheduler.admit_item(an_item(deadline_s=deadline_s))
    assert str(refused.value) == message


def test_a_refusal_behind_a_running_batch_alone_says_that_the_device_is_busy() -> None:
    scheduler = a_scheduler(an_item(), batch_s=3.0)
    scheduler.take_batch(now_s=0.0)
    with pytest.raises(
        QueueFullError, match=r"because the device is busy: try again later or allow more time$"
    ):
        scheduler.admit_item(an_item(deadline_s=5.9))


def test_a_client_with_its_share_of_the_queue_is_told_so() -> None:
    scheduler = a_scheduler(an_item(lane=Lane.STREAM, source="a"), max_items=4)
    with pytest.raises(RateLimitedError) as refused:
        scheduler.admit_item(an_item(lane=Lane.STREAM, source="a"))
    assert str(refused.value).startswith("1 request is waiting from this client, and more may not")


def test_nothing_is_refused_for_its_deadline_before_a_duration_is_known() -> None:
    scheduler = a_scheduler(*(an_item(deadline_s=0.001) for _ in range(10)))
    assert scheduler.expected_wait_s(now_s=0.0) == 0.0


@pytest.mark.parametrize(
    ("lane", "source", "places"),
    [(Lane.INTERACTIVE, None, 16), (Lane.STREAM, None, 8), (Lane.BULK, None, 4), (Lane.STREAM, "a", 4)],
)
def test_neither_a_lane_nor_a_source_takes_the_places_of_others(
    lane: Lane, source: str | None, places: int
) -> None:
    scheduler = a_scheduler(*(an_item(lane=lane, source=source) for _ in range(places)), max_items=16)
    with pytest.raises(QueueFullError if source is None else RateLimitedError):
        scheduler.admit_item(an_item(lane=lane, source=source))
    if places < 16:
        scheduler.admit_item(an_item())


def fill(scheduler: StrScheduler, source: str | None) -> int:
    """Let interactive items of a source wait until one is refused; return how many got a place."""
    for count in range(100):
        try:
            scheduler.admit_item(an_item(source=source))
        except (QueueFullError, RateLimitedError):
            return count
    raise AssertionError("no item is ever refused")


def test_a_lone_client_may_fill_the_room_and_others_find_a_place_all_the_same() -> None:
    scheduler = a_scheduler(max_items=16)
    assert fill(scheduler, "a") == 16
    assert fill(scheduler, "b") == 1
    assert fill(scheduler, "c") == 1
    assert fill(scheduler, "d") == 0
    assert fill(scheduler, "a") == 0
    while len(scheduler) > 10:
        next_up(scheduler)
    scheduler.admit_item(an_item(source="e"))
    assert fill(scheduler, "a") == 0
    assert fill(scheduler, "e") == 16 - 11


@pytest.mark.parametrize(("clients", "each"), [("ab", 8), ("abc", 6), ("abcd", 4)])
def test_of_several_clients_none_fills_more_than_its_share(clients: str, each: int) -> None:
    scheduler = a_scheduler(*(an_item(source=client) for client in clients), max_items=16)
    assert 1 + fill(scheduler, "a") == each


def test_a_client_who_comes_behind_a_flood_is_the_next_one() -> None:
    scheduler = a_scheduler(*(an_item("a", source="a") for _ in range(16)), max_items=16, batch_s=1.0)
    assert next_up(scheduler) == "a"
    scheduler.check_early(Lane.INTERACTIVE, KEY.model, now_s=0.0, deadline_s=3.0, source="b")
    with pytest.raises(QueueFullError):
        scheduler.check_early(Lane.INTERACTIVE, KEY.model, now_s=0.0, deadline_s=3.0, source="a")
    scheduler.admit_item(an_item("b", deadline_s=3.0, source="b"))
    assert "b" in next_up(scheduler) + next_up(scheduler)


def test_a_place_is_there_for_every_lane_of_the_smallest_room() -> None:
    for lane in Lane:
        a_scheduler(an_item(lane=lane, source="a"), max_items=1)


def test_interactive_work_goes_first_then_streams_then_bulk() -> None:
    scheduler = a_scheduler(*(an_item(lane.name, lane=lane) for lane in reversed(Lane)))
    assert [next_up(scheduler) for _ in Lane] == ["INTERACTIVE", "STREAM", "BULK"]


@pytest.mark.parametrize(("lane", "patience_s"), [(Lane.STREAM, 0.1), (Lane.BULK, 1.0)])
def test_no_lane_is_passed_over_for_ever(lane: Lane, patience_s: float) -> None:
    scheduler = a_scheduler(
        an_item("l", lane=lane), an_item("m", lane=lane), *(an_item("i") for _ in range(5))
    )
    times_s = [0.0, patience_s + 0.01, patience_s + 0.02, 2 * patience_s + 0.02]
    assert [next_up(scheduler, now_s=now_s) for now_s in times_s] == ["i", "l", "i", "m"]


def test_behind_a_running_batch_goes_none_that_others_may_still_join() -> None:
    scheduler = a_scheduler(*(an_item(name, key=FOURS) for name in "abcdef"))
    assert names(scheduler.take_batch(now_s=0.0)) == "abcd"
    assert scheduler.take_batch(now_s=0.0) is None
    for name in "gh":
        scheduler.admit_item(an_item(name, key=FOURS))
    assert names(scheduler.take_batch(now_s=0.0)) == "efgh"


def test_behind_a_running_batch_goes_no_bulk_work() -> None:
    scheduler = a_scheduler(an_item("a"), an_item("b", lane=Lane.BULK))
    running = scheduler.take_batch(now_s=0.0)
    assert running
    assert scheduler.take_batch(now_s=0.0) is None
    scheduler.finish_batch(running, now_s=1.0)
    assert next_up(scheduler) == "b"


def test_what_was_not_begun_when_a_worker_died_waits_in_front_once_more() -> None:
    scheduler = a_scheduler(*(an_item(name) for name in "abc"))
    batches = [scheduler.take_batch(now_s=0.0), scheduler.take_batch(now_s=0.0)]
    for batch in batches:
        assert batch
        scheduler.finish_batch(batch, now_s=0.0)
    scheduler.requeue_items([item for batch in batches if batch for item in batch.items])
    assert [next_up(scheduler) for _ in "abc"] == ["a", "b", "c"]


def test_what_was_requeued_before_is_answered_instead() -> None:
    item = an_item()
    scheduler = a_scheduler(item)
    for _ in range(2):
        batch = scheduler.take_batch(now_s=0.0)
        assert batch
        scheduler.finish_batch(batch, now_s=0.0)
        scheduler.requeue_items(batch.items)
    assert len(scheduler) == 0
    with pytest.raises(NoWorkerError):
        item.future.result(timeout=0)


def test_a_requeued_item_expires_as_any_other() -> None:
    item = an_item(deadline_s=5.0)
    scheduler = a_scheduler(item)
    batch = scheduler.take_batch(now_s=0.0)
    assert batch
    scheduler.finish_batch(batch, now_s=1.0)
    scheduler.requeue_items(batch.items)
    assert scheduler.take_batch(now_s=5.0) is None
    with pytest.raises(DeadlineExceededError):
        item.future.result(timeout=0)


def test_abandoned_items_are_answered_each_with_an_error_of_its_own() -> None:
    items = [an_item(lane=lane) for lane in Lane]
    scheduler = a_scheduler(*items[:2])
    scheduler.reserve_items([items[2]])
    items[0].future.cancel()
    scheduler.fail_all(lambda: DrainingError("no time is left"))
    assert len(scheduler) == 0
    errors = [item.future.exception(timeout=0) for item in items[1:]]
    assert all(isinstance(error, DrainingError) for error in errors)
    assert errors[0] is not errors[1]
    scheduler.admit_item(items[2])
    assert len(scheduler) == 0


def test_a_batch_that_failed_teaches_nothing() -> None:
    scheduler = a_scheduler(an_item(), an_item())
    batch = scheduler.take_batch(now_s=0.0)
    assert batch
    scheduler.finish_batch(batch, now_s=1.0)
    assert scheduler.expected_wait_s(now_s=1.0) == 0.0


def test_a_batch_says_how_long_it_is_expected_to_take() -> None:
    batch = a_scheduler(an_item(), batch_s=3.0).take_batch(now_s=0.0)
    assert batch
    assert (batch.expected_s, batch.pixels, batch.lane) == (3.0, 100, Lane.INTERACTIVE)
