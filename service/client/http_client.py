"""Clients for HTTP: one that blocks, one for asyncio.

httpx2 has one interface for both, so that only the waiting is written twice; the standard library has no HTTP
for asyncio.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx2
from PIL import Image

from service.client.answers import ClassInfo, Mask, MaskForm, Model, Segmentation
from service.client.errors import ClientError, ProtocolError, RefusedError, UnreachableError

DEFAULT_TIMEOUT_S = 30.0

_ACCEPT: Mapping[MaskForm, str] = {
    "png": "image/png",
    "raw": "application/octet-stream",
    "coco_rle": "application/json",
    "overlay": "image/jpeg",
}
_TIMING = re.compile(r"(\w+);dur=([0-9.e+-]+)")


class HttpClient:
    """Asks the service over HTTP and waits for the answer; may be shared by threads.

    Args:
        url: for example ``http://127.0.0.1:8000``.
        key: API key, where the service asks for one.
    """

    def __init__(self, url: str, *, key: str | None = None) -> None:
        self._client = httpx2.Client(base_url=url, headers=_headers(key))

    def segment(
        self,
        picture: bytes,
        *,
        model: str = "",
        mask: MaskForm = "png",
        classes: Sequence[int] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Segmentation:
        """Have one picture segmented.

        Args:
            picture: a JPEG, PNG or WebP file.
            model: NAME or NAME@VERSION; empty = the default model.
            mask: the form of the answer.
            classes: ids to keep; empty = all.
            timeout_s: after which the answer is useless.

        Raises:
            RefusedError: the service answered with an error.
            UnreachableError: nobody answered.
            ProtocolError: the answer makes no sense.
        """
        try:
            response = self._client.request(**_segment_request(picture, model, mask, classes, timeout_s))
        except httpx2.TransportError as error:
            raise _transport_error(error) from error
        return _segmentation(response, mask)

    def models(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Model]:
        """List what is served, the default model first; raises as ``segment``."""
        try:
            return _models(self._client.get("/v1/models", timeout=timeout_s))
        except httpx2.TransportError as error:
            raise _transport_error(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncHttpClient:
    """Asks the service over HTTP; belongs to one event loop.

    Args:
        url: for example ``http://127.0.0.1:8000``.
        key: API key, where the service asks for one.
    """

    def __init__(self, url: str, *, key: str | None = None) -> None:
        self._client = httpx2.AsyncClient(base_url=url, headers=_headers(key))

    async def segment(
        self,
        picture: bytes,
        *,
        model: str = "",
        mask: MaskForm = "png",
        classes: Sequence[int] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Segmentation:
        """Have one picture segmented; see ``HttpClient.segment``."""
        request = _segment_request(picture, model, mask, classes, timeout_s)
        try:
            response = await self._client.request(**request)
        except httpx2.TransportError as error:
            raise _transport_error(error) from error
        return _segmentation(response, mask)

    async def models(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Model]:
        """List what is served, the default model first; raises as ``segment``."""
        try:
            return _models(await self._client.get("/v1/models", timeout=timeout_s))
        except httpx2.TransportError as error:
            raise _transport_error(error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _segment_request(
    picture: bytes, model: str, mask: MaskForm, classes: Sequence[int], timeout_s: float
) -> dict[str, Any]:
    params = {
        "output": "overlay" if mask == "overlay" else "labels",
        "timeout_ms": str(round(1e3 * timeout_s)),
    }
    if mask == "coco_rle":
        params["mask"] = mask
    if classes:
        params["classes"] = ",".join(map(str, classes))
    name, _, number = model.partition("@")
    version = f"/versions/{number}" if number else ""
    return {
        "method": "POST",
        "url": f"/v1/models/{name}{version}:segment" if name else "/v1/segment",
        "params": params,
        "headers": {"Accept": _ACCEPT[mask]},
        "content": picture,
        "timeout": timeout_s,
    }


def _transport_error(error: httpx2.TransportError) -> ClientError:
    if isinstance(error, httpx2.TimeoutException):
        return RefusedError("deadline_exceeded", "no answer came in time")
    return UnreachableError(str(error))


def _segmentation(response: httpx2.Response, form: MaskForm) -> Segmentation:
    _check(response)
    headers = response.headers
    timings = _TIMING.findall(headers.get("Server-Timing", ""))
    try:
        return Segmentation(
            _mask(response, form),
            headers["X-Model-Name"],
            int(headers["X-Model-Version"]),
            {stage: float(ms) for stage, ms in timings},
        )
    except (KeyError, ValueError, OSError) as error:
        raise ProtocolError(f"the answer is incomplete: {error}") from error


def _mask(response: httpx2.Response, form: MaskForm) -> Mask:
    data, headers = response.content, response.headers
    match form:
        case "raw":
            return Mask(data, form, int(headers["X-Image-Width"]), int(headers["X-Image-Height"]))
        case "coco_rle":
            document = response.json()
            runs = json.dumps(document["mask"]["data"]).encode()
            return Mask(runs, form, document["width"], document["height"])
        case "png" | "overlay":
            with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as picture:
                return Mask(data, form, *picture.size)


def _models(response: httpx2.Response) -> list[Model]:
    _check(response)
    return [
        Model(
            model["name"],
            model["version"],
            tuple(ClassInfo(c["id"], c["name"], tuple(c["color"])) for c in model["classes"]),
            model["ignore_id"],
            model["engine"],
            model["device"],
            model["precision"],
        )
        for model in response.json()["models"]
    ]


def _check(response: httpx2.Response) -> None:
    if response.is_success:
        return
    try:
        problem = response.json()
        code, detail, request_id = problem["code"], problem["detail"], problem["request_id"]
    except (ValueError, KeyError) as error:
        raise ProtocolError(f"status {response.status_code} without an explanation") from error
    retry = response.headers.get("Retry-After", "")
    retry_after_s = float(retry) if retry.isdigit() else None
    raise RefusedError(code, detail, retry_after_s=retry_after_s, request_id=request_id)
