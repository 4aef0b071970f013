"""Who logs never waits for who reads."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from service.log_stream import UnblockedStream


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue


def test_lines_arrive_in_their_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = UnblockedStream(writer)
    for number in range(100):
        stream.write(f"line {number}\n")
    stream.close()
    assert os.read(reader, 10_000).decode().splitlines() == [f"line {number}" for number in range(100)]


def test_a_reader_that_never_reads_holds_nobody_up_and_learns_what_was_dropped(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = UnblockedStream(writer, max_lines=100)
    for _ in range(1000):
        stream.write("x" * 1000 + "\n")
    text = b""
    while b"dropped" not in text:
        text += os.read(reader, 65536)
    stream.close()
    assert b'{"event": "log lines dropped", "count": ' in text


def test_a_reader_that_is_gone_holds_nobody_up(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    stream = UnblockedStream(writer)
    for _ in range(1000):
        stream.write("nobody reads this\n")
    stream.close()
