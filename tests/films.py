"""Films and network cameras for tests."""

from __future__ import annotations

import functools
import http.server
import io
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from PIL import Image

from service.client.film_writer import FilmWriter

FILM_SIZE = (48, 64)

_IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def film(path: Path, count: int, *, fps: float = 25.0, shown_s: Sequence[float] | None = None) -> Path:
    """Write a film of gray pictures, each a little brighter than the one before.

    ``shown_s`` holds the time stamp of every picture, for films whose rate changes.
    """
    writer = FilmWriter(path)
    for number in range(count):
        position_s = number / fps if shown_s is None else shown_s[number]
        writer.write(np.full((*FILM_SIZE, 3), 10 + 5 * number, np.uint8), position_s)
    writer.close()
    return path


def turn(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Give an MP4 film the display matrix (a b; c d), as a phone does that was held in another way."""
    content = path.read_bytes()
    track = content.index(b"tkhd")
    at = content.index(_IDENTITY, track)
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:at] + matrix + content[at + len(matrix) :])
    return path


def damage(path: Path, *packets: int) -> Path:
    """Overwrite some packets of a film, counted from 0 in the order of the file."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for number in packets:
        position, size = places[number]
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    return path


@contextmanager
def film_server(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP; yields its URL."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with served(functools.partial(Handler, directory=str(folder))) as url:
        yield url


@contextmanager
def mjpeg_camera(pictures: int, *, stays_silent: bool = False) -> Iterator[str]:
    """Run a network camera; yields its URL.

    Each connection gets so many pictures. Then the camera closes it, or keeps it open without a word.
    """
    stopping = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for number in range(pictures):
                data = _jpeg(number)
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
                self.wfile.write(b"Content-Length: %d\r\n\r\n%b\r\n" % (len(data), data))
            if stays_silent:
                stopping.wait()

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as url:
        try:
            yield f"{url}/camera"
        finally:
            stopping.set()


@contextmanager
def silent_server() -> Iterator[str]:
    """Accept connections and never answer; yields ``HOST:PORT``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler] | functools.partial[object]) -> Iterator[str]:
    """Run an HTTP server; yields its URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:  # type: ignore[arg-type]
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


def _jpeg(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((*FILM_SIZE, 3), 10 + 5 * number, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()
