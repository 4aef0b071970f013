"""The execution record of a worker, and its reading afterwards."""

from __future__ import annotations

import mmap
import os

import pytest

from service.core.device.worker_connection import MAX_RECORDED_BYTES, ExecutionRecord


@pytest.fixture
def record() -> ExecutionRecord:
    page = os.memfd_create("record")
    os.ftruncate(page, mmap.PAGESIZE)
    record = ExecutionRecord(page)
    os.close(page)
    return record


def test_of_an_empty_page_nothing_is_known(record: ExecutionRecord) -> None:
    assert not record.has_started(0)
    assert record.reply_of(0) is None


def test_what_began_is_known(record: ExecutionRecord) -> None:
    record.record_start(4)
    assert [record.has_started(token) for token in (0, 4, 5)] == [True, True, False]


def test_the_last_two_that_ended_are_known(record: ExecutionRecord) -> None:
    for token in (0, 1, 3, 4, 9):
        record.record_reply(token, b"end of %d" % token)
    words = [record.reply_of(token) for token in range(11)]
    assert words == [None] * 4 + [b"end of 4"] + [None] * 4 + [b"end of 9", None]


def test_neither_long_words_nor_their_neighbours_are_damaged(record: ExecutionRecord) -> None:
    record.record_start(2**40)
    first, second = bytes([1]) * MAX_RECORDED_BYTES, bytes([2]) * MAX_RECORDED_BYTES
    record.record_reply(7, first)
    record.record_reply(8, second)
    assert (record.reply_of(7), record.reply_of(8)) == (first, second)
    assert record.has_started(2**40)
    record.record_reply(9, b"")
    assert (record.reply_of(9), record.reply_of(8)) == (b"", second)


def test_words_that_a_process_could_not_finish_count_for_nothing(record: ExecutionRecord) -> None:
    for token in range(2):
        record.record_reply(token, b"whole")

    class Dying(bytes):
        """Ends the writer as it is copied."""

        def __len__(self) -> int:
            return 5

    with pytest.raises((ValueError, IndexError), match="size"):
        record.record_reply(2, Dying(b"torn"))
    assert [record.reply_of(token) for token in range(3)] == [None, b"whole", None]
