"""tritonclient.http against a running service: blocking and asyncio."""

from __future__ import annotations

import asyncio

import numpy as np
from protocol_checks import MANY, MODEL, TOO_MANY, Checks, Site, described_site, is_jpeg
from tritonclient import http
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException


def files(picture: bytes, count: int) -> list[http.InferInput]:
    """Return the input: the same file several times."""
    tensor = http.InferInput("image", [count], "BYTES")
    tensor.set_data_from_numpy(np.array([picture] * count, dtype=np.object_))
    return [tensor]


def pixels(images_NHW3: np.ndarray) -> list[http.InferInput]:
    """Return the input: raw pixels."""
    tensor = http.InferInput("image", list(images_NHW3.shape), "UINT8")
    tensor.set_data_from_numpy(images_NHW3)
    return [tensor]


def labels(*names: str) -> list[http.InferRequestedOutput]:
    """Return outputs that are asked for."""
    return [http.InferRequestedOutput(name) for name in names or ("labels",)]


def blocking(site: Site, checks: Checks) -> None:
    """Use the blocking client."""
    with http.InferenceServerClient(site.http, concurrency=4) as client:
        checks.true(client.is_server_live())
        checks.true(client.is_server_ready())
        checks.true(client.is_model_ready(MODEL))
        checks.true(client.is_model_ready(MODEL, "1"))
        checks.true(not client.is_model_ready("nobody"))
        checks.true("binary_tensor_data" in client.get_server_metadata()["extensions"])
        metadata = client.get_model_metadata(MODEL)
        checks.equal({output["name"] for output in metadata["outputs"]} >= {"labels", "mask_png"}, True)
        checks.equal(client.get_model_config(MODEL)["name"], MODEL)
        index = client.get_model_repository_index()
        checks.equal([(one["name"], one["version"], one["state"]) for one in index], [(MODEL, "1", "READY")])
        for count in (1, MANY):
            result = client.infer(MODEL, files(site.picture, count), outputs=labels())
            checks.equal(result.as_numpy("labels"), np.stack([site.labels_HW] * count))
        for algorithm in ("gzip", "deflate"):
            result = client.infer(
                MODEL, files(site.picture, 1), outputs=labels(), request_compression_algorithm=algorithm
            )
            checks.equal(result.as_numpy("labels")[0], site.labels_HW)
        result = client.infer(MODEL, pixels(site.pixels_HW3[np.newaxis]), outputs=labels(), request_id="r-7")
        checks.equal(result.as_numpy("labels")[0], site.labels_HW)
        checks.equal(result.get_response()["id"], "r-7")
        result = client.infer(MODEL, files(site.picture, 2))  # all outputs
        checks.equal(result.as_numpy("class_pixels")[1].sum(), site.labels_HW.size)
        checks.true(is_jpeg(result.as_numpy("overlay_jpeg")[1]))
        as_json = [http.InferRequestedOutput("labels", binary_data=False)]
        result = client.infer(MODEL, files(site.picture, 1), outputs=as_json, priority=1, timeout=20_000_000)
        checks.equal(result.as_numpy("labels")[0], site.labels_HW)
        body, json_length = client.generate_request_body(files(site.picture, 1), outputs=labels())
        checks.true(json_length is not None and len(body) > len(site.picture))
        pending = [client.async_infer(MODEL, files(site.picture, 1), outputs=labels()) for _ in range(8)]
        checks.true(
            all(np.array_equal(one.get_result().as_numpy("labels")[0], site.labels_HW) for one in pending)
        )
        statistics = client.get_inference_statistics(MODEL)["model_stats"][0]
        checks.true(statistics["inference_count"] >= MANY + 12)
        checks.true(client.get_inference_statistics()["model_stats"])
        refusals(client, site, checks)
    repository(site, checks)


def refusals(client: http.InferenceServerClient, site: Site, checks: Checks) -> None:
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
    checks.refused(
        lambda: client.infer(MODEL, files(site.picture, 1), outputs=labels("depth")),
        refused,
        "no output 'depth'",
    )
    checks.refused(lambda: client.infer(MODEL, files(site.picture, 1), timeout=1), refused, "deadline")
    checks.refused(lambda: client.get_model_metadata("nobody"), refused, "no model 'nobody' is served")
    checks.refused(lambda: client.load_model(MODEL), refused, "nothing at this path")


def repository(site: Site, checks: Checks) -> None:
    """Load through the admin port, with its token and without."""
    with http.InferenceServerClient(site.admin) as client:
        client.load_model(f"{MODEL}@1", headers={"Authorization": f"Bearer {site.token}"})
        checks.refused(lambda: client.load_model(MODEL), InferenceServerException, "admin token is needed")
        checks.refused(
            lambda: client.unload_model(MODEL, headers={"Authorization": f"Bearer {site.token}"}),
            InferenceServerException,
            MODEL,
        )


async def awaiting(site: Site, checks: Checks) -> None:
    """Use the client for asyncio."""
    async with aio.InferenceServerClient(site.http) as client:
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
