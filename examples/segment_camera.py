"""Sends a camera or a film to the service over gRPC and prints what becomes of each frame.

    python examples/segment_camera.py example/film.mp4 [--server 127.0.0.1:8001]
    python examples/segment_camera.py rtsp://camera/stream --seconds 10

It needs a running service (``bisenet serve``) and the extra ``client``. ``bisenet dataset example`` writes a
film. From a camera the newest frame is sent and older ones are dropped; from a film every frame is answered.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import aclosing

import numpy as np

from service.client.answers import Dropped, Failed, Interrupted, Opened, Result, StreamEvent
from service.client.cameras import CameraFeed
from service.client.errors import ClientError
from service.client.grpc_client import AsyncGrpcClient
from service.client.reconnecting_stream import ReconnectingStream, StreamOptions


async def follow(source: str, server: str, seconds: float | None) -> None:
    """Send the frames of a source and print the events of the stream."""
    async with AsyncGrpcClient(server) as client, CameraFeed(source, seconds=seconds) as feed:
        stream = ReconnectingStream(client, feed, StreamOptions(policy=feed.policy))
        async with aclosing(stream.events()) as events:
            async for event in events:
                print(describe(event))
                if isinstance(event, Result):
                    feed.forget(event.seq)  # ``feed.picture(event.seq)`` is the picture until here
        print(f"{stream.ledger.sent} frames sent, {stream.ledger.outcomes['answered']} answered")


def describe(event: StreamEvent) -> str:
    """Return an event as one line."""
    match event:
        case Opened(model=model, version=version):
            return f"opened: {model}@{version} answers"
        case Result(seq=seq, mask=mask):
            ids, counts = np.unique(mask.labels_HW(), return_counts=True)
            return f"frame {seq}: {mask.width}x{mask.height} pixels, most of class {ids[counts.argmax()]}"
        case Dropped(first_seq=first, last_seq=last, reason=reason):
            return f"frames {first} to {last}: dropped ({reason})"
        case Failed(seq=seq, code=code):
            return f"frame {seq}: {code}"
        case Interrupted(reason=reason, delay_s=delay_s):
            return f"interrupted: {reason}; connecting again in {delay_s:.1f} s"
    return str(event)


def main() -> None:
    """Follow the source that the command line names."""
    parser = argparse.ArgumentParser(description="Send a camera or a film to the service.")
    parser.add_argument("source", help="path of a film, rtsp://... or the number of a USB camera")
    parser.add_argument("--server", default="127.0.0.1:8001", help="HOST:PORT of the service's gRPC")
    parser.add_argument("--seconds", type=float, help="end after this many seconds of the source")
    arguments = parser.parse_args()
    try:
        asyncio.run(follow(arguments.source, arguments.server, arguments.seconds))
    except ClientError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
