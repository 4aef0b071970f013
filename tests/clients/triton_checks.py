"""What both modules of tritonclient must see: they have the same names for different classes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from protocol_checks import MANY, MODEL, TOO_MANY, Checks, Site
from tritonclient.utils import InferenceServerException


class Tensors:
    """Makes inputs and outputs of requests.

    Args:
        module: ``tritonclient.http`` or ``tritonclient.grpc``.
    """

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def files(self, picture: bytes, count: int) -> list[Any]:
        """Return the input: the same file several times."""
        return self._input(np.array([picture] * count, dtype=np.object_), "BYTES")

    def pixels(self, images_NHW3: np.ndarray) -> list[Any]:
        """Return the input: raw pixels."""
        return self._input(images_NHW3, "UINT8")

    def outputs(self, *names: str, **options: Any) -> list[Any]:
        """Return outputs that are asked for."""
        return [self._module.InferRequestedOutput(name, **options) for name in names or ("labels",)]

    def _input(self, array: np.ndarray, datatype: str) -> list[Any]:
        tensor = self._module.InferInput("image", list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        return [tensor]


def check_labels(client: Any, tensors: Tensors, site: Site, checks: Checks) -> None:
    """Get the labels of the service's own route: of a file, of many, of pixels; and the confidence."""
    for count in (1, MANY):
        result = client.infer(MODEL, tensors.files(site.picture, count), outputs=tensors.outputs())
        checks.equal(result.as_numpy("labels"), np.stack([site.labels_HW] * count))
    result = client.infer(
        MODEL, tensors.pixels(site.pixels_HW3[np.newaxis]), outputs=tensors.outputs(), request_id="r-7"
    )
    checks.equal(result.as_numpy("labels")[0], site.labels_HW)
    wanted = tensors.outputs("confidence", "class_pixels")
    result = client.infer(MODEL, tensors.files(site.picture, 2), outputs=wanted)
    confidence_NK = result.as_numpy("confidence")
    checks.equal(confidence_NK.dtype, np.dtype(np.float16))
    checks.equal(confidence_NK > 0, result.as_numpy("class_pixels") > 0)


def check_refusals(client: Any, tensors: Tensors, site: Site, checks: Checks) -> None:
    """See the client's own exception with the service's text."""
    picture = tensors.files(site.picture, 1)
    for model, inputs, options, words in (
        ("nobody", picture, {}, "no model 'nobody' is served"),
        (MODEL, tensors.files(b"GIF89a", 1), {}, "JPEG, PNG or WebP"),
        (MODEL, tensors.pixels(np.zeros((1, 4, 4, 4), np.uint8)), {}, "[N, H, W, 3]"),
        (MODEL, tensors.files(site.picture, TOO_MANY), {}, "64 pictures"),
        (MODEL, picture, {"outputs": tensors.outputs("depth")}, "no output 'depth'"),
        (MODEL, picture, {"timeout": 1}, "deadline"),
    ):
        checks.refused(lambda: client.infer(model, inputs, **options), InferenceServerException, words)  # noqa: B023 - called at once


async def check_awaiting(client: Any, tensors: Tensors, site: Site, checks: Checks) -> None:
    """Use a client for asyncio."""
    async with client:
        checks.true(await client.is_server_ready())
        for count in (1, MANY):
            result = await client.infer(MODEL, tensors.files(site.picture, count), outputs=tensors.outputs())
            checks.equal(result.as_numpy("labels"), np.stack([site.labels_HW] * count))
        try:
            await client.infer(MODEL, tensors.files(b"", 1))
        except InferenceServerException as error:
            checks.said(error, "there are no bytes")
