"""A real RTSP server with one H.264 camera a path; run by the system's Python, which has GStreamer.

Usage: python3 rtsp_server.py CAMERAS. Prints its port, then serves ``/0`` to ``/N-1`` until it is killed.
"""

from __future__ import annotations

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - the versions must be required first

_PIPELINE = (
    "( videotestsrc is-live=true pattern={pattern} ! video/x-raw,width=320,height=240,framerate=15/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=15 ! rtph264pay name=pay0 pt=96 )"
)


def main(cameras: int) -> None:
    """Serve so many cameras for ever."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    for number in range(cameras):
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(_PIPELINE.format(pattern=number))
        factory.set_shared(True)
        server.get_mount_points().add_factory(f"/{number}", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)  # noqa: T201
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
