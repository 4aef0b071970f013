"""Ask a service for one picture after the other, with the client that ``$CLIENT`` names, until it refuses.

The program runs in the client's own environment. It prints a line before the first request, which says
whether the client calls the service ready, and a line with type and text of the client's exception.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = "pooling"
REQUESTS = 20
FOLDER = Path(os.environ["CLIENT_SITE"])
ADDRESSES = json.loads((FOLDER / "site.json").read_text())
PICTURE = FOLDER / "picture.jpg"


def triton(transport: str) -> None:
    """Ask with tritonclient, which has one module for each transport."""
    module = importlib.import_module(f"tritonclient.{transport}")
    with module.InferenceServerClient(ADDRESSES[transport]) as client:
        begin(is_ready=client.is_server_ready())
        for _ in range(REQUESTS):
            client.infer(MODEL, [image_for(module.InferInput)])


async def kserve_rest() -> None:
    """Ask with KServe's client for REST."""
    module = importlib.import_module("kserve")
    request = module.InferRequest(MODEL, [image_for(module.InferInput, binary_data=True)])
    client, url = module.InferenceRESTClient(module.RESTConfig(protocol="v2")), f"http://{ADDRESSES['http']}"
    try:
        begin(is_ready=await client.is_server_ready(url))
    except importlib.import_module("httpx").HTTPStatusError:  # how this client says no
        begin(is_ready=False)
    for _ in range(REQUESTS):
        await client.infer(url, request, model_name=MODEL)


async def kserve_grpc() -> None:
    """Ask with KServe's client for gRPC."""
    module = importlib.import_module("kserve")
    request = module.InferRequest(MODEL, [image_for(module.InferInput, binary_data=True)])
    # By default this client asks again after UNAVAILABLE, until it finds nobody who could tell why.
    client = module.InferenceGRPCClient(ADDRESSES["grpc"], channel_args=[("grpc.enable_retries", 0)])
    begin(is_ready=await client.is_server_ready())
    for _ in range(REQUESTS):
        await client.infer(request)


def hugging_face() -> None:
    """Ask with huggingface_hub."""
    module = importlib.import_module("huggingface_hub")
    client = module.InferenceClient(model=f"http://{ADDRESSES['http']}/hf/{MODEL}", token="unused")
    begin(is_ready=None)
    for _ in range(REQUESTS):
        client.image_segmentation(PICTURE)


def image_for(kind: Any, **options: Any) -> Any:
    """Return the input tensor of a client."""
    numpy = importlib.import_module("numpy")  # not every environment has it
    tensor = kind("image", [1], "BYTES")
    tensor.set_data_from_numpy(numpy.array([PICTURE.read_bytes()], dtype=numpy.object_), **options)
    return tensor


def begin(*, is_ready: bool | None) -> None:
    """Say that the first request follows."""
    print(json.dumps({"ready": is_ready}), flush=True)


PROGRAMS: dict[str, Callable[[], None]] = {
    "triton http": lambda: triton("http"),
    "triton grpc": lambda: triton("grpc"),
    "kserve http": lambda: asyncio.run(kserve_rest()),
    "kserve grpc": lambda: asyncio.run(kserve_grpc()),
    "huggingface_hub": hugging_face,
}


if __name__ == "__main__":
    try:
        PROGRAMS[os.environ["CLIENT"]]()
    except Exception as error:  # noqa: BLE001 - of whatever kind: it is what the program reports
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))
