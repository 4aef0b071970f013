"""Films and cameras: read by PyAV, numbered, encoded, and written again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import PATIENCE_S

pytest.importorskip("av", reason="the extra `client` is not installed")

import av

from service.client import cameras
from service.client.answers import Frame
from service.client.backoff import ReconnectBackoff
from service.client.cameras import (
    CameraFeed,
    CameraFrame,
    FilmWriter,
    camera_frames,
    is_camera,
    source_frames,
)
from service.client.errors import SourceError

SIZE = (48, 64)


def film(path: Path, count: int, *, fps: float = 25.0) -> Path:
    """Write a film whose pictures are gray, each a little brighter than the one before."""
    writer = FilmWriter(path)
    for number in range(count):
        writer.write(np.full((*SIZE, 3), 10 + 5 * number, np.uint8), number / fps)
    writer.close()
    return path


async def all_of(feed: CameraFeed) -> list[Frame]:
    frames = []
    while (frame := await asyncio.wait_for(feed.next(), PATIENCE_S)) is not None:
        frames.append(frame)
    return frames


def test_a_film_is_read_as_it_was_written(tmp_path: Path) -> None:
    read = list(source_frames(str(film(tmp_path / "clip.mp4", 20))))
    assert [round(shot.position_s * 25) for shot in read] == list(range(20))
    assert {shot.image_HW3.shape for shot in read} == {(*SIZE, 3)}
    levels = [float(shot.image_HW3.mean()) for shot in read]
    assert np.allclose(levels, 10 + 5 * np.arange(20), atol=4)


def test_positions_are_counted_from_the_first_picture(tmp_path: Path) -> None:
    writer = FilmWriter(tmp_path / "cut.mkv")
    for number in range(3):
        writer.write(np.zeros((*SIZE, 3), np.uint8), 5.0 + number / 25)
    writer.close()
    assert [round(shot.position_s * 25) for shot in source_frames(str(tmp_path / "cut.mkv"))] == [0, 1, 2]


def test_a_film_whose_title_is_no_utf8_is_read_all_the_same(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        container.metadata["title"] = "TITLE"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = SIZE[1], SIZE[0]
        frame = av.VideoFrame.from_ndarray(np.zeros((*SIZE, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = (tmp_path / "clip.mp4").read_bytes()
    assert content.count(b"TITLE") == 1
    (tmp_path / "clip.mp4").write_bytes(content.replace(b"TITLE", "d\xe9j\xe0!".encode("latin-1")))
    assert len(list(source_frames(str(tmp_path / "clip.mp4")))) == 1


@pytest.mark.parametrize("where", ["none/clip.mp4", "folder", "clip.txt", "locked/clip.mp4"])
def test_what_cannot_be_written_is_told_before_the_first_picture(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "locked").mkdir(mode=0o500)
    if where == "locked/clip.mp4" and os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("root may write everywhere")
    with pytest.raises(SourceError, match=where):
        FilmWriter(tmp_path / where)


def test_what_cannot_be_written_in_the_end_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    writer = FilmWriter(tmp_path / "out" / "clip.mp4")
    (tmp_path / "out").rmdir()
    writer.write(np.zeros((*SIZE, 3), np.uint8), 0.0)
    with pytest.raises(SourceError, match=r"clip\.mp4"):
        writer.close()
    with pytest.raises(SourceError, match="film"):
        FilmWriter(tmp_path / "film.webm").write(np.zeros((*SIZE, 3), np.uint8), 0.0)


def test_a_film_of_odd_size_loses_a_row_and_a_column(tmp_path: Path) -> None:
    writer = FilmWriter(tmp_path / "odd.mp4")
    writer.write(np.zeros((49, 65, 3), np.uint8), 0.0)
    writer.close()
    (shot,) = source_frames(str(tmp_path / "odd.mp4"))
    assert shot.image_HW3.shape == (*SIZE, 3)


def test_pictures_of_the_same_moment_keep_their_order(tmp_path: Path) -> None:
    writer = FilmWriter(tmp_path / "clip.mp4")
    for _ in range(3):
        writer.write(np.zeros((*SIZE, 3), np.uint8), 0.0)
    writer.close()
    assert len(list(source_frames(str(tmp_path / "clip.mp4")))) == 3


@pytest.mark.parametrize("content", [None, b"", b"no film at all"])
def test_what_is_no_film_is_told_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=r"clip\.mp4"):
        list(source_frames(str(path)))


def test_a_camera_that_is_not_there_is_told_by_name() -> None:
    with pytest.raises(SourceError, match="77"):
        list(source_frames("77"))


def test_numbers_and_urls_are_cameras_and_paths_are_not() -> None:
    assert is_camera("0")
    assert is_camera("rtsp://camera/stream")
    assert not is_camera("clip.mp4")


async def test_a_film_with_block_loses_no_picture(tmp_path: Path) -> None:
    async with CameraFeed(str(film(tmp_path / "clip.mp4", 30)), "block") as feed:
        frames = await all_of(feed)
    assert [frame.seq for frame in frames] == list(range(1, 31))
    assert all(frame.data.startswith(b"\xff\xd8") for frame in frames)
    assert feed.skipped == 0


async def test_a_picture_that_nobody_took_is_replaced_by_the_next(tmp_path: Path) -> None:
    async with CameraFeed(str(film(tmp_path / "clip.mp4", 20, fps=1000)), "latest") as feed:
        await asyncio.to_thread(feed._thread.join, PATIENCE_S)
        await asyncio.sleep(0)  # what the thread has handed over arrives
        frames = await all_of(feed)
    assert [frame.seq for frame in frames] == [1]
    assert feed.skipped == 19


async def test_only_so_many_seconds_are_read(tmp_path: Path) -> None:
    async with CameraFeed(str(film(tmp_path / "clip.mp4", 30)), "block", seconds=0.4) as feed:
        assert len(await all_of(feed)) == 10


async def test_who_stops_waiting_takes_no_picture_along(tmp_path: Path) -> None:
    async with CameraFeed(str(film(tmp_path / "clip.mp4", 5)), "block") as feed:
        for _ in range(20):
            waiting = asyncio.create_task(feed.next())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert [frame.seq for frame in await all_of(feed)] == [1, 2, 3, 4, 5]


async def test_the_pictures_of_answered_frames_are_forgotten(tmp_path: Path) -> None:
    async with CameraFeed(str(film(tmp_path / "clip.mp4", 4)), "block") as feed:
        await all_of(feed)
        assert feed.shot(3).image_HW3.shape == (*SIZE, 3)
        feed.forget(3)
        assert list(feed._shots) == [4]


async def test_a_source_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    async with CameraFeed(str(tmp_path / "none.mp4"), "block") as feed:
        with pytest.raises(SourceError):
            await feed.next()


async def test_whatever_ends_the_reading_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> Iterator[CameraFrame]:
        raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no title")
        yield

    monkeypatch.setattr(cameras, "source_frames", broken)
    async with CameraFeed(str(tmp_path / "clip.mp4"), "block") as feed:
        with pytest.raises(SourceError, match="no title"):
            await asyncio.wait_for(feed.next(), PATIENCE_S)


async def test_the_loss_of_a_camera_is_told_and_its_time_runs_out(tmp_path: Path) -> None:
    path = film(tmp_path / "clip.mp4", 3)
    lost: list[tuple[str, float]] = []

    def on_lost(reason: str, delay_s: float) -> None:
        lost.append((reason, delay_s))
        path.unlink(missing_ok=True)  # and it never comes back

    async with CameraFeed(f"file://{path}", "block", seconds=0.3, on_lost=on_lost) as feed:
        await all_of(feed)
    assert "clip.mp4" in lost[0][0]
    assert all(delay_s >= 0 for _, delay_s in lost)


def test_a_camera_that_breaks_off_is_opened_again(tmp_path: Path) -> None:
    path = film(tmp_path / "clip.mp4", 3)
    waits: list[float] = []
    reasons: list[str] = []

    def pause(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 2:
            path.unlink()  # now it is gone for a while
        return len(waits) == 4

    spread = ReconnectBackoff(first_s=1.0, spread=lambda _, high: high)
    lost = camera_frames(str(path), pause=pause, on_lost=lambda why, _: reasons.append(why), backoff=spread)
    assert len(list(lost)) == 6
    assert len(reasons) == 4
    assert "No such file" in reasons[-1]
    assert waits == [1.0, 1.0, 2.0, 4.0]
