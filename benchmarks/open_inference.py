"""Pictures a second over other people's protocols, against the service's own routes in the same run.

    python benchmarks/open_inference.py --pictures CAMVID/val --precision int8

    native          POST /v1/segment, one JPEG a request, palette PNG out: the baseline of the next three
    hugging face    POST /hf/..., one JPEG a request, a score and a base64 PNG for each class out
    oip 1           POST /v2/models/.../infer, one JPEG a request, binary mask_png out
    oip 16          the same with 16 JPEGs a request
    native grpc     Segment, raw RGB in, raw labels out: the baseline of the next one
    oip grpc        ModelInfer, UINT8 [1, H, W, 3] in, labels out

The ways take turns; what is printed are medians over the rounds, and medians of the ratios within each round.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import uvloop

from benchmarks.command_line import make_parser, parse_if_idle
from model.pictures.image import decode_image
from service.cli.bench.http_target import HttpTarget
from service.cli.bench.load import RefusedError, Send, closed_loop, figures_of
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

WARM_UP_S = 1.0
BASELINES = {"hugging face": "native", "oip 1": "native", "oip 16": "native", "oip grpc": "native grpc"}


@dataclass(frozen=True)
class Way:
    """One kind of request.

    Attributes:
        send: sends the request of a number and waits for its answer.
        in_flight: requests under way.
        pictures: in each request.
    """

    send: Send
    in_flight: int = 4
    pictures: int = 1


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
            f"{name:<14} {median(values):7.2f} pictures/s ({', '.join(f'{value:.1f}' for value in values)})"
        )
    for name, baseline in BASELINES.items():
        ratios = [mine / other for mine, other in zip(rates[name], rates[baseline], strict=True)]
        print(f"{name:<14} {median(ratios):7.3f} of {baseline}")


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
        ways = {
            "native": Way(_http(target, "/v1/segment", pictures)),
            "hugging face": Way(_http(target, f"/hf/{name}", pictures)),
            "oip 1": Way(_http(infer, path, _bodies(pictures, 1))),
            "oip 16": Way(_http(infer, path, _bodies(pictures, MANY)), in_flight=2, pictures=MANY),
            "native grpc": Way(_native_grpc(channel, pictures)),
            "oip grpc": Way(_infer_grpc(channel, pictures, name, version)),
        }
        for way in ways.values():
            await _rate(way, WARM_UP_S)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                rates[name].append(await _rate(way, options.seconds))
    return rates


async def _rate(way: Way, seconds: float) -> float:
    """Return the pictures a second that are answered.

    Raises:
        RefusedError: a request is refused; the message is the code of the error.
    """
    figures = figures_of(await closed_loop(way.send, in_flight=way.in_flight, seconds=seconds))
    if figures.refused:
        raise RefusedError(str(figures.refused))
    return way.pictures * figures.pictures_per_s


def _http(target: HttpTarget, path: str, bodies: Sequence[bytes]) -> Send:
    async def send(number: int) -> None:
        await target.segment(bodies[number % len(bodies)], path)

    return send


def _bodies(pictures: Sequence[bytes], count: int) -> list[bytes]:
    return [_body(pictures, start, count) for start in range(min(len(pictures), MANY))]


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

    async def send(number: int) -> None:
        await stub.Segment(requests[number % len(requests)])

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

    async def send(number: int) -> None:
        await stub.ModelInfer(requests[number % len(requests)])

    return send


if __name__ == "__main__":
    main()
