"""grpc.aio without a model: answers each frame of a stream with the same bytes.

    python benchmarks/peers/echo_server.py PORT BYTES_OF_AN_ANSWER

It prints "ready" when it listens. Its time for a frame is the lower limit for a service with this contract
and this library.
"""

from __future__ import annotations

import os
import sys

import grpc
import uvloop

from service.wire import segmentation_pb2 as wire
from service.wire.segmentation_pb2_grpc import SegmentationServicer, add_SegmentationServicer_to_server


class Echo(SegmentationServicer):
    """Answers the stream method only."""

    def __init__(self, num_bytes: int) -> None:
        self._mask = wire.Mask(data=os.urandom(num_bytes), encoding=wire.PNG)

    async def SegmentStream(self, requests: object, context: grpc.aio.ServicerContext) -> None:  # noqa: ARG002
        """Answer the opening, then each frame."""
        await context.read()
        await context.write(wire.StreamResponse(opened=wire.StreamOpened(version=1)))
        while (message := await context.read()) is not grpc.aio.EOF:
            result = wire.FrameResult(seq=message.frame.seq, mask=self._mask, version=1)
            await context.write(wire.StreamResponse(result=result))


async def serve(port: int, num_bytes: int) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    add_SegmentationServicer_to_server(Echo(num_bytes), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
