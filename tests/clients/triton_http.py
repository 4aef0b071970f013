"""tritonclient.http against a running service: blocking and asyncio."""

from __future__ import annotations

import asyncio

import numpy as np
from protocol_checks import MANY, MODEL, Checks, Site, described_site, is_jpeg
from triton_checks import Tensors, check_awaiting, check_labels, check_refusals
from tritonclient import http
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

TENSORS = Tensors(http)


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
        check_labels(client, TENSORS, site, checks)
        files, labels = TENSORS.files(site.picture, 1), TENSORS.outputs()
        for algorithm in ("gzip", "deflate"):
            result = client.infer(MODEL, files, outputs=labels, request_compression_algorithm=algorithm)
            checks.equal(result.as_numpy("labels")[0], site.labels_HW)
        result = client.infer(MODEL, TENSORS.files(site.picture, 2))  # the default outputs
        checks.equal(result.as_numpy("class_pixels")[1].sum(), site.labels_HW.size)
        checks.true(is_jpeg(result.as_numpy("overlay_jpeg")[1]))
        as_json = TENSORS.outputs("labels", "confidence", binary_data=False)
        result = client.infer(MODEL, files, outputs=as_json, priority=1, timeout=20_000_000)
        checks.equal(result.as_numpy("labels")[0], site.labels_HW)
        checks.true(0 < result.as_numpy("confidence").max() <= 1)
        body, json_length = client.generate_request_body(files, outputs=labels)
        checks.true(json_length is not None and len(body) > len(site.picture))
        pending = [client.async_infer(MODEL, files, outputs=labels) for _ in range(8)]
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
    check_refusals(client, TENSORS, site, checks)
    for call, words in (
        (lambda: client.get_model_metadata("nobody"), "no model 'nobody' is served"),
        (lambda: client.load_model(MODEL), "nothing at this path"),
    ):
        checks.refused(call, InferenceServerException, words)


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
    await check_awaiting(aio.InferenceServerClient(site.http), TENSORS, site, checks)


if __name__ == "__main__":
    SITE, CHECKS = described_site(), Checks()
    blocking(SITE, CHECKS)
    asyncio.run(awaiting(SITE, CHECKS))
    CHECKS.done()
