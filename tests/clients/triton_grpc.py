"""tritonclient.grpc against a running service: blocking, streams and asyncio."""

from __future__ import annotations

import asyncio
import queue

from protocol_checks import MODEL, Checks, Site, described_site, is_jpeg
from triton_checks import Tensors, check_awaiting, check_labels, check_refusals
from tritonclient import grpc
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

PATIENCE_S = 60
TENSORS = Tensors(grpc)


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
        check_labels(client, TENSORS, site, checks)
        pixels = TENSORS.pixels(site.pixels_HW3[None])
        result = client.infer(MODEL, pixels, outputs=TENSORS.outputs(), priority=2, timeout=20_000_000)
        checks.equal(result.as_numpy("labels")[0], site.labels_HW)
        files = TENSORS.files(site.picture, 1)
        result = client.infer(MODEL, files, compression_algorithm="gzip")  # the default outputs
        checks.equal(result.as_numpy("class_pixels")[0].sum(), site.labels_HW.size)
        checks.true(is_jpeg(result.as_numpy("overlay_jpeg")[0]))
        check_refusals(client, TENSORS, site, checks)
        stream(client, site, checks)


def stream(client: grpc.InferenceServerClient, site: Site, checks: Checks) -> None:
    """Send requests on a stream; one of them is wrong."""
    answers: queue.Queue[tuple[grpc.InferResult | None, InferenceServerException | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for picture in (site.picture, b"GIF89a", site.picture):
        client.async_stream_infer(MODEL, TENSORS.files(picture, 1), outputs=TENSORS.outputs())
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
    await check_awaiting(aio.InferenceServerClient(site.grpc), TENSORS, site, checks)


if __name__ == "__main__":
    SITE, CHECKS = described_site(), Checks()
    blocking(SITE, CHECKS)
    asyncio.run(awaiting(SITE, CHECKS))
    CHECKS.done()
