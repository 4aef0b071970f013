"""Cameras and films for streams: numbered, encoded, paced, and opened again when a camera is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import PATIENCE_S

pytest.importorskip("av", reason="the extra `client` is not installed")

from films import FILM_SIZE, damage, film, film_server, mjpeg_camera

from service.client.answers import Frame
from service.client.backoff import ReconnectBackoff
from service.client.cameras import CameraFeed, CameraFrame, CameraOptions, VideoSource, camera_frames
from service.client.errors import SourceError


async def all_of(feed: CameraFeed) -> list[Frame]:
    frames = []
    while (frame := await asyncio.wait_for(feed.next(), PATIENCE_S)) is not None:
        frames.append(frame)
    return frames


async def test_a_film_with_block_loses_no_picture(tmp_path: Path) -> None:
    async with CameraFeed(str(film(tmp_path / "clip.mp4", 30)), "block") as feed:
        frames = await all_of(feed)
    assert [frame.seq for frame in frames] == list(range(1, 31))
    assert all(frame.data.startswith(b"\xff\xd8") for frame in frames)
    assert (feed.skipped, feed.damaged_packets) == (0, 0)


async def test_a_picture_that_was_not_taken_is_replaced_by_the_next(tmp_path: Path) -> None:
    async with CameraFeed(str(film(tmp_path / "clip.mp4", 20, fps=1000)), "latest") as feed:
        await asyncio.to_thread(feed._thread.join, PATIENCE_S)
        await asyncio.sleep(0)  # the loop receives the pictures of the thread
        frames = await all_of(feed)
    assert [frame.seq for frame in frames] == [1]
    assert feed.skipped == 19


async def test_only_the_wanted_seconds_are_read(tmp_path: Path) -> None:
    async with CameraFeed(str(film(tmp_path / "clip.mp4", 30)), "block", seconds=0.4) as feed:
        assert len(await all_of(feed)) == 10


async def test_a_cancelled_call_takes_no_picture(tmp_path: Path) -> None:
    async with CameraFeed(str(film(tmp_path / "clip.mp4", 5)), "block") as feed:
        for _ in range(20):
            waiting = asyncio.create_task(feed.next())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert [frame.seq for frame in await all_of(feed)] == [1, 2, 3, 4, 5]


async def test_the_pictures_of_answered_frames_are_freed(tmp_path: Path) -> None:
    async with CameraFeed(str(film(tmp_path / "clip.mp4", 4)), "block") as feed:
        await all_of(feed)
        assert feed.picture(3).image_HW3.shape == (*FILM_SIZE, 3)
        feed.forget(3)
        with pytest.raises(KeyError):
            feed.picture(3)
        assert feed.picture(4).image_HW3.shape == (*FILM_SIZE, 3)


async def test_damaged_packets_are_counted(tmp_path: Path) -> None:
    async with CameraFeed(str(damage(film(tmp_path / "clip.mp4", 10), 4)), "block") as feed:
        assert len(await all_of(feed)) == 9
        assert feed.damaged_packets == 1


@pytest.mark.parametrize("name", ["none.mp4", "rtsp://127.0.0.1:9/stream"])
async def test_a_source_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path, name: str) -> None:
    feed = CameraFeed(name if "://" in name else str(tmp_path / name))
    with pytest.raises(SourceError):
        await feed.__aenter__()


async def test_any_failure_of_the_reading_thread_is_an_error_of_the_next_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: VideoSource) -> Iterator[CameraFrame]:
        raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no title")
        yield

    monkeypatch.setattr(VideoSource, "frames", broken)
    async with CameraFeed(str(film(tmp_path / "clip.mp4", 1)), "block") as feed:
        with pytest.raises(SourceError, match="no title"):
            await asyncio.wait_for(feed.next(), PATIENCE_S)


class TestPolicy:
    async def test_a_film_blocks_wherever_it_lies(self, tmp_path: Path) -> None:
        film(tmp_path / "clip.mp4", 3)
        with film_server(tmp_path) as url:
            for source in (str(tmp_path / "clip.mp4"), f"file://{tmp_path}/clip.mp4", f"{url}/clip.mp4"):
                async with CameraFeed(source) as feed:
                    assert feed.policy == "block"
                    assert len(await all_of(feed)) == 3

    async def test_of_a_live_source_the_latest_picture_counts(self) -> None:
        with mjpeg_camera(3) as url:
            async with CameraFeed(url) as feed:
                assert feed.policy == "latest"

    async def test_the_users_choice_counts_more_than_the_source(self) -> None:
        with mjpeg_camera(3) as url:
            async with CameraFeed(url, "block", seconds=0) as feed:
                assert feed.policy == "block"


class TestLostCamera:
    async def test_the_loss_is_told_and_the_camera_is_opened_again(self) -> None:
        reasons: list[str] = []
        with mjpeg_camera(3) as url:
            async with CameraFeed(url, "block", on_lost=lambda reason, _: reasons.append(reason)) as feed:
                frames = [await asyncio.wait_for(feed.next(), PATIENCE_S) for _ in range(7)]
        assert [frame.seq for frame in frames if frame] == list(range(1, 8))
        assert len(reasons) >= 2
        assert all(url in reason for reason in reasons)

    async def test_a_camera_that_falls_silent_is_lost(self) -> None:
        reasons: list[str] = []
        with mjpeg_camera(3, stays_silent=True) as url:
            feed = CameraFeed(
                url,
                "block",
                on_lost=lambda reason, _: reasons.append(reason),
                options=CameraOptions(timeout_s=0.3),
            )
            async with feed:
                frames = [await asyncio.wait_for(feed.next(), PATIENCE_S) for _ in range(4)]
        assert [frame.seq for frame in frames if frame] == [1, 2, 3, 4]
        assert reasons[0] == f"{url}: no data came for 0.3 seconds"

    async def test_the_time_of_a_lost_camera_runs_out(self) -> None:
        with mjpeg_camera(3, stays_silent=True) as url:
            options = CameraOptions(timeout_s=0.2)
            async with CameraFeed(url, "block", seconds=0.3, options=options) as feed:
                assert len(await all_of(feed)) >= 3

    def test_the_wait_grows_until_the_camera_is_back(self, tmp_path: Path) -> None:
        path = film(tmp_path / "clip.mp4", 3)
        waits: list[float] = []
        reasons: list[str] = []

        def pause(seconds: float) -> bool:
            waits.append(seconds)
            if len(waits) == 2:
                path.unlink()  # now the camera is gone for a while
            return len(waits) == 4

        backoff = ReconnectBackoff(first_s=1.0, spread=lambda _, high: high)
        with VideoSource(str(path)) as camera:
            frames = camera_frames(
                camera, pause=pause, on_lost=lambda reason, _: reasons.append(reason), backoff=backoff
            )
            assert len(list(frames)) == 6
        assert len(reasons) == 4
        assert "No such file" in reasons[-1]
        assert waits == [1.0, 1.0, 2.0, 4.0]
