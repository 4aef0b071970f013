"""KServe's clients for REST and gRPC against a running service."""

from __future__ import annotations

import asyncio
import base64

import grpc
import httpx
import numpy as np
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    InferResponse,
    RESTConfig,
)
from kserve.protocol.infer_type import RequestedOutput
from protocol_checks import MANY, MODEL, TOO_MANY, Checks, Site, described_site, is_jpeg


def request(array: np.ndarray, datatype: str, *outputs: str, model: str = MODEL) -> InferRequest:
    """Return a request with binary data in, and out for numbers: this client reads files as UTF-8 then."""
    tensor = InferInput("image", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=True)
    wanted = [
        RequestedOutput(name, parameters={"binary_data": name not in ("mask_png", "overlay_jpeg")})
        for name in outputs
    ]
    return InferRequest(model, [tensor], request_outputs=wanted)


def files(picture: bytes, count: int, *outputs: str, model: str = MODEL) -> InferRequest:
    """Return a request with the same file several times."""
    array = np.array([picture] * count, dtype=np.object_)
    return request(array, "BYTES", *outputs or ("labels",), model=model)


def check_confidence(response: InferResponse, checks: Checks) -> None:
    """See the confidence of the classes that occur."""
    confidence, pixels = response.outputs
    checks.equal((confidence.datatype, list(confidence.shape)), ("FP16", list(pixels.shape)))
    checks.equal(confidence.as_numpy() > 0, pixels.as_numpy() > 0)


async def over_rest(site: Site, checks: Checks) -> None:
    """Use the REST client."""
    client, url = InferenceRESTClient(RESTConfig(protocol="v2")), f"http://{site.http}"
    checks.true(await client.is_server_ready(url))
    checks.true(await client.is_server_live(url))
    checks.true(await client.is_model_ready(url, MODEL))
    for count in (1, MANY):
        response = await client.infer(url, files(site.picture, count), model_name=MODEL)
        checks.equal(response.outputs[0].as_numpy(), np.stack([site.labels_HW] * count))
    pixels = request(site.pixels_HW3[np.newaxis], "UINT8", "class_pixels", "overlay_jpeg")
    response = await client.infer(url, pixels, model_name=MODEL)
    checks.equal(int(response.outputs[0].as_numpy().sum()), site.labels_HW.size)
    checks.true(is_jpeg(base64.b64decode(response.outputs[1].data[0])))
    response = await client.infer(url, files(site.picture, 2, "confidence", "class_pixels"), model_name=MODEL)
    check_confidence(response, checks)
    for wrong, words in (
        (files(b"GIF89a", 1), "JPEG, PNG or WebP"),
        (files(site.picture, TOO_MANY), "64 pictures"),
        (request(np.zeros((1, 4, 4, 4), np.uint8), "UINT8", "labels"), "[N, H, W, 3]"),
        (files(site.picture, 1, model="nobody"), "no model 'nobody' is served"),
    ):
        try:
            await client.infer(url, wrong, model_name=wrong.model_name)
        except httpx.HTTPStatusError as error:
            checks.said(error, words)
        else:
            raise AssertionError(f"not refused: {words}")


async def over_grpc(site: Site, checks: Checks) -> None:
    """Use the gRPC client."""
    client = InferenceGRPCClient(site.grpc)
    checks.true(await client.is_server_ready())
    checks.true(await client.is_server_live())
    checks.true(await client.is_model_ready(MODEL))
    for count in (1, MANY):
        response = await client.infer(files(site.picture, count))
        labels = next(output for output in response.outputs if output.name == "labels")
        checks.equal(labels.as_numpy(), np.stack([site.labels_HW] * count))
    check_confidence(await client.infer(files(site.picture, 2, "confidence", "class_pixels")), checks)
    for wrong, words in (
        (files(b"GIF89a", 1), "JPEG, PNG or WebP"),
        (files(site.picture, TOO_MANY), "64 pictures"),
        (request(np.zeros((1, 4, 4, 4), np.uint8), "UINT8", "labels"), "[N, H, W, 3]"),
        (files(site.picture, 1, model="nobody"), "no model 'nobody' is served"),
    ):
        try:
            await client.infer(wrong)
        except grpc.RpcError as error:
            checks.said(error, words)
        else:
            raise AssertionError(f"not refused: {words}")
    await client.close()


async def main() -> None:
    """Check both."""
    site, checks = described_site(), Checks()
    await over_rest(site, checks)
    await over_grpc(site, checks)
    checks.done()


if __name__ == "__main__":
    asyncio.run(main())
