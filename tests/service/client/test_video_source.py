"""Films, cameras and network streams as pictures: upright, in time, and with their faults told."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="the extra `client` is not installed")

import av
from films import FILM_SIZE, damage, film, film_server, mjpeg_camera, silent_server, turn

from service.client.errors import SourceError
from service.client.film_writer import FilmWriter
from service.client.video_source import CameraOptions, VideoSource, source_frames, source_name

SHORT = CameraOptions(timeout_s=0.3)
DATA = os.environ.get("BISENET_DATA_ROOT")


def test_a_film_is_read_as_it_was_written(tmp_path: Path) -> None:
    frames = list(source_frames(str(film(tmp_path / "clip.mp4", 20))))
    assert [round(frame.position_s * 25) for frame in frames] == list(range(20))
    assert {frame.image_HW3.shape for frame in frames} == {(*FILM_SIZE, 3)}
    levels = [float(frame.image_HW3.mean()) for frame in frames]
    assert np.allclose(levels, 10 + 5 * np.arange(20), atol=4)


def test_positions_are_counted_from_the_first_picture(tmp_path: Path) -> None:
    path = film(tmp_path / "cut.mkv", 3, shown_s=[5.0, 5.04, 5.08])
    assert [round(frame.position_s * 25) for frame in source_frames(str(path))] == [0, 1, 2]


def test_a_film_with_a_title_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        container.metadata["title"] = "TITLE"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = FILM_SIZE[1], FILM_SIZE[0]
        frame = av.VideoFrame.from_ndarray(np.zeros((*FILM_SIZE, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = (tmp_path / "clip.mp4").read_bytes()
    assert content.count(b"TITLE") == 1
    (tmp_path / "clip.mp4").write_bytes(content.replace(b"TITLE", "d\xe9j\xe0!".encode("latin-1")))
    assert len(list(source_frames(str(tmp_path / "clip.mp4")))) == 1


@pytest.mark.parametrize("content", [None, b"", b"no film at all"])
def test_a_file_that_is_no_film_is_an_error_with_its_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=r"clip\.mp4"):
        list(source_frames(str(path)))


def test_a_sound_file_has_no_pictures(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(SourceError, match=r"sound\.wav: the source has no pictures"):
        VideoSource(str(tmp_path / "sound.wav"))


class TestUpright:
    @pytest.mark.parametrize(
        ("matrix", "upright"),
        [
            ((1, 0, 0, 1), lambda image_HW3: image_HW3),
            ((0, 1, -1, 0), lambda image_HW3: np.rot90(image_HW3, -1)),
            ((-1, 0, 0, -1), lambda image_HW3: np.rot90(image_HW3, 2)),
            ((0, -1, 1, 0), lambda image_HW3: np.rot90(image_HW3, 1)),
            ((-1, 0, 0, 1), lambda image_HW3: image_HW3[:, ::-1]),
            ((1, 0, 0, -1), lambda image_HW3: image_HW3[::-1]),
            ((0, 1, 1, 0), lambda image_HW3: image_HW3.swapaxes(0, 1)),
            ((0, -1, -1, 0), lambda image_HW3: np.rot90(image_HW3.swapaxes(0, 1), 2)),
        ],
    )
    def test_a_film_is_turned_and_mirrored_as_its_display_matrix_says(
        self, tmp_path: Path, matrix: tuple[int, int, int, int], upright: Any
    ) -> None:
        path = tmp_path / "clip.mp4"
        writer = FilmWriter(path)
        writer.write(np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8), 0.0)
        writer.close()
        (stored,) = source_frames(str(path))
        (shown,) = source_frames(str(turn(path, *matrix)))
        assert np.array_equal(shown.image_HW3, upright(stored.image_HW3))
        assert shown.image_HW3.flags.c_contiguous

    def test_exif_turns_the_pictures_of_a_motion_jpeg(self, tmp_path: Path) -> None:
        turned = Image.Exif()
        turned[0x0112] = 6
        image = Image.new("RGB", (64, 48))
        image.paste((255, 255, 255), (0, 0, 64, 24))  # the upper half is white
        image.save(tmp_path / "one.jpg", exif=turned)
        (tmp_path / "clip.mjpeg").write_bytes(2 * (tmp_path / "one.jpg").read_bytes())
        frames = list(source_frames(str(tmp_path / "clip.mjpeg")))
        assert [frame.image_HW3.shape for frame in frames] == [(64, 48, 3)] * 2
        assert frames[0].image_HW3[:, 28:].mean() > 240  # now it is the right half
        assert frames[0].image_HW3[:, :20].mean() < 15


class TestDamage:
    def test_a_damaged_packet_costs_only_its_own_pictures(self, tmp_path: Path) -> None:
        with VideoSource(str(damage(film(tmp_path / "clip.mp4", 30), 7))) as opened:
            frames = list(opened.frames())
        assert opened.damaged_packets == 1
        assert len(frames) == 29

    def test_several_damaged_packets_are_counted(self, tmp_path: Path) -> None:
        with VideoSource(str(damage(film(tmp_path / "clip.mp4", 30), 7, 12, 13))) as opened:
            frames = list(opened.frames())
        assert (opened.damaged_packets, len(frames)) == (3, 27)

    def test_a_film_without_a_whole_packet_is_an_error(self, tmp_path: Path) -> None:
        path = damage(film(tmp_path / "clip.mp4", 5), *range(5))
        with VideoSource(str(path)) as opened, pytest.raises(SourceError, match="5 packets are damaged"):
            list(opened.frames())


class TestLive:
    """What goes on by itself is told by the demuxer, not by the name."""

    @pytest.mark.parametrize("form", ["{folder}/clip.mp4", "file://{folder}/clip.mp4", "{url}/clip.mp4"])
    def test_a_film_ends_wherever_it_lies(self, tmp_path: Path, form: str) -> None:
        film(tmp_path / "clip.mp4", 5)
        with film_server(tmp_path) as url:
            source = form.format(folder=tmp_path, url=url)
            with VideoSource(source) as opened:
                assert not opened.is_live
                assert len(list(opened.frames())) == 5

    @pytest.mark.parametrize("name", ["clip.h264", "clip.ts", "clip.mkv", "clip.avi"])
    def test_a_film_without_a_length_in_its_header_ends_too(self, tmp_path: Path, name: str) -> None:
        film(tmp_path / name, 5)
        with film_server(tmp_path) as url:
            for source in (str(tmp_path / name), f"{url}/{name}"):
                with VideoSource(source) as opened:
                    assert not opened.is_live

    def test_a_network_camera_is_live(self) -> None:
        with mjpeg_camera(3) as url, VideoSource(url) as opened:
            assert opened.is_live
            frames = opened.frames()
            assert [next(frames).image_HW3.shape for _ in range(3)] == [(*FILM_SIZE, 3)] * 3

    @pytest.mark.parametrize(("ending", "is_live"), [("#EXT-X-ENDLIST\n", False), ("", True)])
    def test_a_playlist_is_live_until_it_has_an_end(
        self, tmp_path: Path, ending: str, *, is_live: bool
    ) -> None:
        film(tmp_path / "part.ts", 25)
        playlist = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\npart.ts\n"
        (tmp_path / "clip.m3u8").write_text(playlist + ending)
        with film_server(tmp_path) as url, VideoSource(f"{url}/clip.m3u8") as opened:
            assert opened.is_live == is_live

    def test_a_pipe_ends(self, tmp_path: Path) -> None:
        content = film(tmp_path / "clip.ts", 5).read_bytes()
        os.mkfifo(tmp_path / "pipe")
        writing = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
        writing.start()
        with VideoSource(str(tmp_path / "pipe")) as opened:
            assert not opened.is_live
            assert len(list(opened.frames())) == 5
        writing.join()


class TestTimeouts:
    @pytest.mark.parametrize(
        "scheme", ["http", "https", "rtsp", "rtsps", "rtmp", "tcp", "HTTP", "RTSP", "Rtsps", "udp"]
    )
    def test_a_source_that_never_answers_is_given_up(self, scheme: str) -> None:
        with silent_server() as address, pytest.raises(SourceError, match="no data came for"):
            VideoSource(f"{scheme}://{address}/stream", SHORT)

    def test_a_camera_that_falls_silent_is_given_up(self) -> None:
        with mjpeg_camera(3, stays_silent=True) as url, VideoSource(url, SHORT) as opened:
            frames = opened.frames()
            assert len([next(frames) for _ in range(3)]) == 3
            with pytest.raises(SourceError, match="no data came for"):
                next(frames)

    def test_the_default_tells_a_lost_camera_within_ten_seconds(self) -> None:
        assert CameraOptions().timeout_s < 10

    def test_a_refused_connection_is_told_without_the_password(self) -> None:
        with pytest.raises(SourceError, match=r"^rtsp://127\.0\.0\.1:9/x: Connection refused$"):
            VideoSource("rtsp://user:pa@ss@127.0.0.1:9/x", SHORT)
        assert source_name("http://user:secret@camera/video?a=b@c") == "http://camera/video?a=b@c"


class TestUsbCameras:
    @pytest.fixture
    def opened_with(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
        """Return the calls of ``av.open``; each fails as if the device were missing."""
        calls: list[tuple[str, dict[str, Any]]] = []

        def refuse(name: str, **options: Any) -> None:
            calls.append((name, options))
            raise FileNotFoundError(2, "No such device")

        monkeypatch.setattr("service.client.video_source.av.open", refuse)
        return calls

    @pytest.mark.parametrize(
        ("source", "device"),
        [
            ("0", "/dev/video0"),
            ("12", "/dev/video12"),
            ("/dev/video3", "/dev/video3"),
            ("/dev/v4l/by-id/usb-Cam-index0", "/dev/v4l/by-id/usb-Cam-index0"),
            ("/dev/null", "/dev/null"),  # any character device, for names that udev rules give
        ],
    )
    def test_numbers_and_device_files_are_usb_cameras(
        self, opened_with: list[tuple[str, dict[str, Any]]], source: str, device: str
    ) -> None:
        with pytest.raises(SourceError, match=f"^{device}: No such device$"):
            VideoSource(source)
        assert opened_with == [(device, {"format": "v4l2", "options": {}})]

    def test_size_rate_and_pixel_format_reach_the_driver(
        self, opened_with: list[tuple[str, dict[str, Any]]]
    ) -> None:
        with pytest.raises(SourceError):
            VideoSource("0", CameraOptions(size="1280x720", fps=29.97, pixel_format="mjpeg"))
        options = {"video_size": "1280x720", "framerate": "29.97", "pixel_format": "mjpeg"}
        assert opened_with[0][1]["options"] == options

    @pytest.mark.parametrize("source", ["clip.mp4", "rtsp://camera/stream", "²"])
    def test_their_options_are_refused_for_other_sources(self, source: str) -> None:
        with pytest.raises(SourceError, match="options of USB cameras only"):
            VideoSource(source, CameraOptions(fps=30))

    def test_the_installed_ffmpeg_reads_usb_cameras(self) -> None:
        with pytest.raises(SourceError, match="No such file or directory"):
            VideoSource("77")


@pytest.mark.data
@pytest.mark.skipif(DATA is None, reason="BISENET_DATA_ROOT is not set")
@pytest.mark.parametrize(
    ("name", "shape", "count", "damaged"),
    [
        ("clip.mp4", (96, 128, 3), 30, 0),
        ("portrait.mp4", (128, 96, 3), 30, 0),
        ("damaged.mp4", (96, 128, 3), 29, 1),
    ],
)
def test_the_films_of_the_field_are_read_as_expected(
    name: str, shape: tuple[int, ...], count: int, damaged: int
) -> None:
    with VideoSource(str(Path(DATA or "") / "field" / "films" / name)) as opened:
        frames = list(opened.frames())
    assert {frame.image_HW3.shape for frame in frames} == {shape}
    assert (len(frames), opened.damaged_packets) == (count, damaged)
