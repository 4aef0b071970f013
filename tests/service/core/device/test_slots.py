from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.device.slots import SlotLease, SlotMap, SlotPool, next_array_offset


@pytest.fixture
def pool() -> Iterator[SlotPool]:
    pool = SlotPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _no_garbage_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def open_slots() -> int:
    """Return how many descriptors of slots are open; Python's mmap keeps one of its own."""
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("bisenet-slot" in str(link.readlink()) for link in links)


def sent(lease: SlotLease) -> int:
    """Return a descriptor as the other side gets it."""
    assert lease.slot.descriptor is not None
    return os.dup(lease.slot.descriptor)


def test_what_one_side_writes_the_other_side_reads(pool: SlotPool) -> None:
    lease = pool.lease(1000, now_s=0)
    ours = lease.array((10, 20, 3))
    theirs = SlotMap()
    theirs.add(lease.slot.number, sent(lease))
    ours[...] = 7
    assert (theirs.array(lease.slot.number, (10, 20, 3)) == 7).all()
    theirs.array(lease.slot.number, (4,), "float32", next_array_offset(600))[...] = 2.5
    assert (lease.array((4,), np.float32, next_array_offset(600)) == 2.5).all()


def test_a_slot_is_used_again_when_the_last_array_in_it_is_gone_and_not_before(pool: SlotPool) -> None:
    def number(pool: SlotPool) -> int:
        return pool.lease(100, now_s=0).slot.number

    lease = pool.lease(100, now_s=0)
    first, view = lease.slot.number, lease.array((5, 4))[1:3]
    del lease
    assert number(pool) != first
    del view
    assert number(pool) == first


@given(st.lists(st.integers(1, 1 << 22), min_size=1, max_size=30))
def test_slots_in_use_are_large_enough_and_never_shared(sizes: list[int]) -> None:
    pool = SlotPool()
    leases = [pool.lease(size, now_s=0) for size in sizes]
    assert all(lease.slot.capacity >= size for lease, size in zip(leases, sizes, strict=True))
    assert len({lease.slot.number for lease in leases}) == len(sizes)
    del leases
    pool.close()


def test_the_slot_of_an_array_is_found_by_where_it_begins(pool: SlotPool) -> None:
    lease = pool.lease(100, now_s=0)
    array = lease.array((5, 4, 3))
    found = pool.lease_of(array)
    assert found is not None
    assert found.slot is lease.slot
    assert pool.lease_of(array[1:]) is None
    assert pool.lease_of(np.zeros((5, 4, 3), np.uint8)) is None


def test_the_lease_of_an_array_that_is_gone_is_not_found_by_its_address(pool: SlotPool) -> None:
    array = pool.lease(100, now_s=0).array((5,))
    address = array.__array_interface__["data"][0]
    del array
    assert address not in pool._anchors


def test_memory_that_is_not_needed_is_given_back_after_a_while(pool: SlotPool) -> None:
    before = open_slots()
    number = pool.lease(100, now_s=0).slot.number
    assert pool.trim(now_s=0) == []
    assert open_slots() == before + 2
    assert pool.trim(now_s=4.9) == []
    assert pool.trim(now_s=5.1) == [number]
    assert open_slots() == before
    assert pool._slots == {}


def test_idle_memory_is_bounded_however_much_was_used(pool: SlotPool) -> None:
    leases = [pool.lease(20 << 20, now_s=0) for _ in range(6)]
    del leases
    forgotten = pool.trim(now_s=0)
    assert pool.idle_bytes <= 64 << 20
    assert len(forgotten) == 3


def test_a_slot_takes_memory_only_where_it_was_written_to(pool: SlotPool) -> None:
    lease = pool.lease((32 << 20) + 1, now_s=0)
    lease.array((100,))[...] = 1
    assert lease.slot.capacity == 64 << 20
    assert os.fstat(sent(lease)).st_blocks * 512 <= mmap.PAGESIZE


def test_a_slot_cannot_be_made_smaller(pool: SlotPool) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(sent(pool.lease(100, now_s=0)), 0)


def test_an_array_that_does_not_fit_is_refused(pool: SlotPool) -> None:
    lease = pool.lease(100, now_s=0)
    theirs = SlotMap()
    theirs.add(1, sent(lease))
    with pytest.raises(TypeError):
        theirs.array(1, (1 << 19,))
    theirs.forget(1)
    theirs.forget(1)
    with pytest.raises(KeyError):
        theirs.array(1, (1,))


def test_a_slot_that_is_forgotten_leaves_no_descriptor_behind(pool: SlotPool) -> None:
    lease = pool.lease(100, now_s=0)
    before = open_slots()
    theirs = SlotMap()
    theirs.add(1, sent(lease))
    assert open_slots() == before + 1
    theirs.forget(1)
    assert open_slots() == before


def test_what_is_no_slot_is_refused_and_its_descriptor_closed(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    descriptor = os.open(tmp_path / "empty", os.O_RDONLY)
    with pytest.raises(ValueError, match="empty"):
        SlotMap().add(1, descriptor)
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)


def test_a_retired_slot_is_not_used_again_but_by_those_who_use_it_now(pool: SlotPool) -> None:
    idle = pool.lease(100, now_s=0).slot
    lease = pool.lease(1 << 20, now_s=0)
    used = lease.array((10,))
    pool.retire()
    used[...] = 3
    assert pool.lease_of(used) is not None
    assert set(pool.trim(now_s=0)) == {idle.number}
    retired = lease.slot.number
    del lease, used
    assert pool.trim(now_s=0) == [retired]
    assert pool._slots == {}


def test_a_slot_needs_one_descriptor_once_it_was_sent(pool: SlotPool) -> None:
    before = open_slots()
    lease = pool.lease(100, now_s=0)
    lease.slot.close_descriptor()
    lease.slot.close_descriptor()
    assert open_slots() == before + 1
    lease.array((3,))[...] = 1
