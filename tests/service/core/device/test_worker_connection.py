"""What a worker notes, and what is known of it afterwards."""

from __future__ import annotations

import mmap
import os

import pytest

from service.core.device.worker_connection import MAX_LAST_WORDS, BatchJobMark


@pytest.fixture
def mark() -> BatchJobMark:
    page = os.memfd_create("mark")
    os.ftruncate(page, mmap.PAGESIZE)
    mark = BatchJobMark(page)
    os.close(page)
    return mark


def test_of_an_empty_page_nothing_is_known(mark: BatchJobMark) -> None:
    assert not mark.has_begun(0)
    assert mark.words_of(0) is None


def test_what_began_is_known(mark: BatchJobMark) -> None:
    mark.begin(4)
    assert [mark.has_begun(token) for token in (0, 4, 5)] == [True, True, False]


def test_the_last_two_that_ended_are_known(mark: BatchJobMark) -> None:
    for token in (0, 1, 3, 4, 9):
        mark.end(token, b"end of %d" % token)
    words = [mark.words_of(token) for token in range(11)]
    assert words == [None] * 4 + [b"end of 4"] + [None] * 4 + [b"end of 9", None]


def test_neither_long_words_nor_their_neighbours_are_damaged(mark: BatchJobMark) -> None:
    mark.begin(2**40)
    first, second = bytes([1]) * MAX_LAST_WORDS, bytes([2]) * MAX_LAST_WORDS
    mark.end(7, first)
    mark.end(8, second)
    assert (mark.words_of(7), mark.words_of(8)) == (first, second)
    assert mark.has_begun(2**40)
    mark.end(9, b"")
    assert (mark.words_of(9), mark.words_of(8)) == (b"", second)


def test_words_that_a_process_could_not_finish_count_for_nothing(mark: BatchJobMark) -> None:
    for token in range(2):
        mark.end(token, b"whole")

    class Dying(bytes):
        """Ends the writer as it is copied."""

        def __len__(self) -> int:
            return 5

    with pytest.raises((ValueError, IndexError), match="size"):
        mark.end(2, Dying(b"torn"))
    assert [mark.words_of(token) for token in range(3)] == [None, b"whole", None]
