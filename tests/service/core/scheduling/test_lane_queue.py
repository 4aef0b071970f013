from __future__ import annotations

from collections.abc import Hashable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.pictures.preprocess import ImageSize
from service.core.scheduling.lane_queue import BatchKey, BatchLimits, Item, LaneQueue
from service.core.scheduling.latency_model import LatencyModel

SIZE = ImageSize(10, 10)
KEY = BatchKey("model", SIZE, BatchLimits(max_items=4))
OTHER = BatchKey("model", ImageSize(10, 20), BatchLimits(max_items=4))

A_LATENCY = LatencyModel()
for _pixels in (100, 200):
    A_LATENCY.learn(pixels=_pixels, duration_s=1.0 + 0.01 * _pixels)
LATENCIES: Mapping[Hashable, LatencyModel] = {"model": A_LATENCY}


def an_item(
    name: str = "", *, key: BatchKey = KEY, source: str | None = None, at_s: float = 0.0
) -> Item[str, int]:
    return Item(name, key, at_s, 1e9, source=source)


def a_queue(*items: Item[str, int]) -> LaneQueue[str, int]:
    queue: LaneQueue[str, int] = LaneQueue()
    for item in items:
        queue.add(item)
    return queue


@pytest.mark.parametrize(
    ("limits", "full"),
    [
        (BatchLimits(), 1),
        (BatchLimits(max_items=8), 8),
        (BatchLimits(max_items=8, max_pixels=300), 3),
        (BatchLimits(max_items=8, max_pixels=50), 1),
    ],
)
def test_a_full_batch_keeps_to_items_and_pixels_but_one_item_always_goes(
    limits: BatchLimits, full: int
) -> None:
    assert BatchKey("model", SIZE, limits).full_batch == full


def test_a_key_can_be_made_one_that_shares_no_batch() -> None:
    assert KEY.alone().full_batch == 1
    assert (KEY.alone().model, KEY.alone().size) == (KEY.model, KEY.size)


def test_an_item_of_several_pictures_has_their_pixels() -> None:
    assert Item("", KEY, 0.0, 1.0, pictures=3).pixels == 300


def test_sources_take_turns_and_one_item_of_each_comes_before_the_second_of_any() -> None:
    queue = a_queue(*(an_item(name, source=name[0]) for name in ("a1", "a2", "a3", "b1", "b2", "c1")))
    assert [item.work for item in queue.items_of(KEY)] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    queue.move_source_last("a")
    assert queue.first_item().work == "b1"


def test_the_oldest_item_of_the_source_leads_whatever_its_size() -> None:
    queue = a_queue(an_item("second", at_s=2.0), an_item("third", at_s=3.0))
    queue.add_first(an_item("first", key=OTHER, at_s=1.0))
    assert queue.first_item().work == "first"
    assert [item.work for item in queue.items_of(OTHER)] == ["first"]


def test_a_source_that_replaces_what_waits_keeps_its_turn() -> None:
    older = an_item("older", source="a")
    queue = a_queue(older, an_item("b", source="b"))
    queue.remove(older)
    queue.add(an_item("newer", source="a"))
    assert queue.first_item().work == "newer"


def test_a_source_that_left_holds_no_other_up() -> None:
    gone = an_item("gone", source="a")
    queue = a_queue(gone, an_item("b", source="b"))
    queue.remove(gone)
    assert queue.first_item().work == "b"
    assert set(queue._by_source) == {"b"}


def test_the_work_that_waits_is_counted_in_full_and_in_begun_batches() -> None:
    queue = a_queue(*(an_item() for _ in range(5)), an_item(key=OTHER))
    assert queue.work_s(LATENCIES) == pytest.approx(3 * 1.0 + 0.01 * (5 * 100 + 200))


def test_an_item_that_joins_a_batch_costs_its_pixels_only() -> None:
    queue = a_queue(an_item())
    assert queue.work_until_s(an_item(), LATENCIES) == pytest.approx(1.0 + 0.01 * 200)


def test_behind_a_full_batch_the_next_will_be_full_as_well() -> None:
    queue = a_queue(*(an_item() for _ in range(4)))
    assert queue.work_until_s(an_item(), LATENCIES) == pytest.approx(2 * (1.0 + 0.01 * 400))


def test_of_another_source_counts_what_its_turns_allow() -> None:
    key = KEY.alone()
    queue = a_queue(*(an_item(key=key, source="flood") for _ in range(100)))
    per_item_s = 1.0 + 0.01 * 100
    assert queue.work_until_s(an_item(key=key, source="few"), LATENCIES) == pytest.approx(2 * per_item_s)
    assert queue.work_until_s(an_item(key=key, source="flood"), LATENCIES) == pytest.approx(101 * per_item_s)


@given(st.lists(st.tuples(st.sampled_from([KEY, OTHER, KEY.alone()]), st.sampled_from("abc")), max_size=30))
def test_a_queue_that_was_emptied_has_forgotten_everything(kinds: list[tuple[BatchKey, str]]) -> None:
    items = [an_item(key=key, source=source) for key, source in kinds]
    queue = a_queue(*items)
    assert len(queue) == len(items)
    for item in items:
        queue.remove(item)
    assert len(queue) == 0 == queue.work_s(LATENCIES)
    assert not any([queue._by_source, queue.num_items_of, queue._per_key, queue._work])
