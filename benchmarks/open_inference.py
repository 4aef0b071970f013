"""Pictures a second over the Open Inference Protocol, against the service's own routes in the same run.

    python benchmarks/open_inference.py --pictures CAMVID/val --precision int8

    native          POST /v1/segment, one JPEG a request, palette PNG out: the baseline of the next two
    oip 1           POST /v2/models/.../infer, one JPEG a request, binary mask_png out
    oip 16          the same with 16 JPEGs a request
    native grpc     Segment, raw RGB in, raw labels out: the baseline of the next one
    oip grpc        ModelInfer, UINT8 [1, H, W, 3] in, labels out

The ways take turns; what is printed are medians over the rounds, and medians of the ratios within each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import uvloop

from benchmarks.command_line import make_parser, parse_if_idle
from model.pictures.image import decode_image
from service.cli.bench.http_target import HttpTarget
from service.cli.bench.load_bench import make_load
from service.cli.bench.own_service import own_service
from service.http_api.open_inference.message import HEADER_LENGTH
from service.machine import this_machine
from service.open_inference.outputs import output_kind, raw_encoding
from service.wire import open_inference_pb2 as oip
from service.wire import segmentation_pb2 as wire
from service.wire.open_inference_pb2_grpc import GRPCInferenceServiceStub
from service.wire.segmentation_pb2_grpc import SegmentationStub

MANY = 16
JSON_BYTES = 512
"""Of every infer request, padded with spaces: so one header suits all of them."""

IN_FLIGHT = 4
MANY_IN_FLIGHT = 2
WARM_UP_S = 1.0
BASELINES = {"oip 1": "native", "oip 16": "native", "oip grpc": "native grpc"}

Send = Callable[[int], Awaitable[int]]
"""Sends the request of a number and returns how many pictures it had."""


def main() -> None:
    """Measure in turns, and print medians and ratios."""
    options = _options()
    pictures = make_load([options.size], options.pictures).pictures
    flags = ["--model", options.model, "--precision", options.precision]
    with own_service(flags) as service:
        rates = uvloop.run(_measured(service.url, service.grpc_address, pictures, options))
    print(f"{options.model} {options.precision}, {options.size}; {this_machine().summary}")
    for name, values in rates.items():
        print(
            f"{name:<12} {median(values):7.2f} pictures/s ({', '.join(f'{value:.1f}' for value in values)})"
        )
    for name, baseline in BASELINES.items():
        ratios = [mine / other for mine, other in zip(rates[name], rates[baseline], strict=True)]
        print(f"{name:<12} {median(ratios):7.3f} of {baseline}")


def _options() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="camvid@2", help="name@version")
    parser.add_argument("--precision", default="int8", help="of that version")
    parser.add_argument("--size", default="512x1024", metavar="HxW", help="of the pictures")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures; else made-up ones")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=5)
    return parse_if_idle(parser)


async def _measured(
    url: str, address: str, pictures: Sequence[bytes], options: argparse.Namespace
) -> dict[str, list[float]]:
    name, _, version = options.model.partition("@")
    path = f"/v2/models/{name}/versions/{version}/infer"
    no_limit = [("grpc.max_receive_message_length", -1)]
    infer_headers = {HEADER_LENGTH: str(JSON_BYTES)}
    async with (
        HttpTarget(url) as target,
        HttpTarget(url, headers=infer_headers) as infer,
        grpc.aio.insecure_channel(address, options=no_limit) as channel,
    ):
        ways: dict[str, tuple[Send, int]] = {
            "native": (_native(target, pictures), IN_FLIGHT),
            "oip 1": (_infer(infer, path, pictures, 1), IN_FLIGHT),
            "oip 16": (_infer(infer, path, pictures, MANY), MANY_IN_FLIGHT),
            "native grpc": (_native_grpc(channel, pictures), IN_FLIGHT),
            "oip grpc": (_infer_grpc(channel, pictures, name, version), IN_FLIGHT),
        }
        for send, in_flight in ways.values():
            await _rate(send, in_flight, WARM_UP_S)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, (send, in_flight) in ways.items():
                rates[name].append(await _rate(send, in_flight, options.seconds))
    return rates


async def _rate(send: Send, in_flight: int, seconds: float) -> float:
    """Keep requests in flight, and return the pictures a second that were answered."""
    began_s = time.monotonic()
    answered, number = 0, 0

    async def ask() -> None:
        nonlocal answered, number
        while time.monotonic() < began_s + seconds:
            number += 1
            answered += await send(number)

    await asyncio.gather(*(ask() for _ in range(in_flight)))
    return answered / (time.monotonic() - began_s)


def _native(target: HttpTarget, pictures: Sequence[bytes]) -> Send:
    async def send(number: int) -> int:
        await target.segment(pictures[number % len(pictures)])
        return 1

    return send


def _infer(target: HttpTarget, path: str, pictures: Sequence[bytes], count: int) -> Send:
    bodies = [_body(pictures, start, count) for start in range(min(len(pictures), MANY))]

    async def send(number: int) -> int:
        await target.segment(bodies[number % len(bodies)], path)
        return count

    return send


def _body(pictures: Sequence[bytes], start: int, count: int) -> bytes:
    encode = raw_encoding(output_kind("mask_png"))  # elements behind their length, in both directions
    raw = b"".join(encode(pictures[(start + index) % len(pictures)]) for index in range(count))
    tensor: dict[str, Any] = {"name": "image", "shape": [count], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(raw)}
    outputs = [{"name": "mask_png", "parameters": {"binary_data": True}}]
    return json.dumps({"inputs": [tensor], "outputs": outputs}).encode().ljust(JSON_BYTES) + raw


def _native_grpc(channel: grpc.aio.Channel, pictures: Sequence[bytes]) -> Send:
    stub: Any = SegmentationStub(channel)
    images = [decode_image(picture) for picture in pictures[:MANY]]
    requests = [
        wire.SegmentRequest(
            image=wire.Image(
                data=image.tobytes(), encoding=wire.RGB8, width=image.shape[1], height=image.shape[0]
            ),
            mask=wire.RAW,
        )
        for image in images
    ]

    async def send(number: int) -> int:
        await stub.Segment(requests[number % len(requests)])
        return 1

    return send


def _infer_grpc(channel: grpc.aio.Channel, pictures: Sequence[bytes], name: str, version: str) -> Send:
    stub: Any = GRPCInferenceServiceStub(channel)
    images = [np.asarray(decode_image(picture))[np.newaxis] for picture in pictures[:MANY]]
    tensor, output = oip.ModelInferRequest.InferInputTensor, oip.ModelInferRequest.InferRequestedOutputTensor
    requests = [
        oip.ModelInferRequest(
            model_name=name,
            model_version=version,
            inputs=[tensor(name="image", datatype="UINT8", shape=image.shape)],
            outputs=[output(name="labels")],
            raw_input_contents=[image.tobytes()],
        )
        for image in images
    ]

    async def send(number: int) -> int:
        await stub.ModelInfer(requests[number % len(requests)])
        return 1

    return send


if __name__ == "__main__":
    main()
