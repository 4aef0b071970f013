"""Who logs never waits for who reads."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO

import pytest

from service.log_stream import UnblockedStream


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """Return a reader and a writer. Who writes must end before the test: a number is soon another file's."""
    reader, writer = os.pipe()
    with FileIO(reader, "rb") as reading, FileIO(writer, "wb") as writing:
        yield reading, writing


def test_lines_arrive_in_their_order(pipe: tuple[FileIO, FileIO]) -> None:
    reader, writer = pipe
    stream = UnblockedStream(writer.fileno())
    for number in range(100):
        stream.write(f"line {number}\n")
    stream.close()
    assert reader.read(10_000).decode().splitlines() == [f"line {number}" for number in range(100)]


def test_a_reader_that_never_reads_holds_no_writer_up_and_is_told_of_dropped_lines(
    pipe: tuple[FileIO, FileIO],
) -> None:
    reader, writer = pipe
    stream = UnblockedStream(writer.fileno(), max_lines=100)
    for _ in range(1000):
        stream.write("x" * 1000 + "\n")
    text = b""
    while b"dropped" not in text:
        text += reader.read(65536)
    assert b'{"event": "log lines dropped", "count": ' in text
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(stream.close)
        while not closing.done():
            if select.select([reader], [], [], 0.01)[0]:
                reader.read(65536)
        closing.result()
    assert not stream._thread.is_alive()  # or it would write on to the number of another file


def test_a_reader_that_is_gone_holds_no_writer_up(pipe: tuple[FileIO, FileIO]) -> None:
    reader, writer = pipe
    reader.close()
    stream = UnblockedStream(writer.fileno())
    for _ in range(1000):
        stream.write("this is never read\n")
    stream.close()
