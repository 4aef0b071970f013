"""tritonclient.grpc against a running service: blocking, streams and asyncio."""

from __future__ import annotations

import asyncio
import queue

import numpy as np
from protocol_checks import MANY, MODEL, TOO_MANY, Checks, Site, described_site, is_jpeg
from tritonclient import grpc
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

PATIENCE_S = 60


def files(picture: bytes, count: int) -> list[grpc.InferInput]:
    """Return the input: the same file several times."""
    tensor = grpc.InferInput("image", [count], "BYTES")
    tensor.set_data_from_numpy(np.array([picture] * count, dtype=np.object_))
    return [tensor]


def pixels(images_NHW3: np.ndarray) -> list[grpc.InferInput]:
    """Return the input: raw pixels."""
    tensor = grpc.InferInput("image", list(images_NHW3.shape), "UINT8")
    tensor.set_data_from_numpy(images_NHW3)
    return [tensor]


def labels(*names: str) -> list[grpc.InferRequestedOutput]:
    """Return outputs that are asked for."""
    return [grpc.InferRequestedOutput(name) for name in names or ("labels",)]


def blocking(site: Site, checks: Checks) -> None:
    """Use the blocking client."""
    with grpc.InferenceServerClient(site.grpc) as client:
        checks.true(client.is_server_live())
        checks.true(client.is_server_ready())
        checks.true(client.is_model_ready(MODEL, "1"))
        checks.equal(client.get_server_metadata().name, "bisenet-service")
        metadata = client.get_model_metadata(MODEL)
        checks.equal([tensor.datatype for tensor in metadata.inputs], ["BYTES", "UINT8"])
        checks.equal([one.name for one in client.get_model_repository_index().models], [MODEL])
        for count in (1, MANY):
            result = client.infer(MODEL, files(site.picture, count), outputs=labels())
            checks.equal(result.as_numpy("labels"), np.stack([site.labels_HW] * count))
        result = client.infer(
            MODEL, pixels(site.pixels_HW3[np.newaxis]), outputs=labels(), priority=2, timeout=20_000_000
        )
        checks.equal(result.as_numpy("labels")[0], site.labels_HW)
        result = client.infer(MODEL, files(site.picture, 1), compression_algorithm="gzip")  # all outputs
        checks.equal(result.as_numpy("class_pixels")[0].sum(), site.labels_HW.size)
        checks.true(is_jpeg(result.as_numpy("overlay_jpeg")[0]))
        refusals(client, site, checks)
        stream(client, site, checks)


def refusals(client: grpc.InferenceServerClient, site: Site, checks: Checks) -> None:
    """See the client's own exception with the service's text."""
    refused = InferenceServerException
    checks.refused(
        lambda: client.infer("nobody", files(site.picture, 1)), refused, "no model 'nobody' is served"
    )
    checks.refused(lambda: client.infer(MODEL, files(b"GIF89a", 1)), refused, "JPEG, PNG or WebP")
    checks.refused(
        lambda: client.infer(MODEL, pixels(np.zeros((1, 4, 4, 4), np.uint8))), refused, "[N, H, W, 3]"
    )
    checks.refused(lambda: client.infer(MODEL, files(site.picture, TOO_MANY)), refused, "64 pictures")
    checks.refused(lambda: client.infer(MODEL, files(site.picture, 1), timeout=1), refused, "deadline")


def stream(client: grpc.InferenceServerClient, site: Site, checks: Checks) -> None:
    """Send requests on a stream; one of them is wrong."""
    answers: queue.Queue[tuple[grpc.InferResult | None, InferenceServerException | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for picture in (site.picture, b"GIF89a", site.picture):
        client.async_stream_infer(MODEL, files(picture, 1), outputs=labels())
    told = [answers.get(timeout=PATIENCE_S) for _ in range(3)]
    client.stop_stream()
    checks.equal([error is None for _, error in told], [True, False, True])
    result, error = told[2][0], told[1][1]
    assert result is not None
    assert error is not None
    checks.equal(result.as_numpy("labels")[0], site.labels_HW)
    checks.said(error, "JPEG, PNG or WebP")


async def awaiting(site: Site, checks: Checks) -> None:
    """Use the client for asyncio."""
    async with aio.InferenceServerClient(site.grpc) as client:
        checks.true(await client.is_server_ready())
        for count in (1, MANY):
            result = await client.infer(MODEL, files(site.picture, count), outputs=labels())
            checks.equal(result.as_numpy("labels"), np.stack([site.labels_HW] * count))
        try:
            await client.infer(MODEL, files(b"", 1))
        except InferenceServerException as error:
            checks.said(error, "there are no bytes")


if __name__ == "__main__":
    SITE, CHECKS = described_site(), Checks()
    blocking(SITE, CHECKS)
    asyncio.run(awaiting(SITE, CHECKS))
    CHECKS.done()
