"""Clients for HTTP: one that blocks, one for asyncio. Both send the same calls.

httpx2 has one interface for both. The standard library has no HTTP for asyncio.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

import httpx2
from PIL import Image

from service.client.answers import ClassInfo, Detail, Mask, MaskForm, Model, Segmentation
from service.client.errors import ClientError, ProtocolError, RefusedError, UnreachableError

__all__ = ["AsyncHttpClient", "HttpClient"]

DEFAULT_TIMEOUT_S = 30.0

_ACCEPT: Mapping[MaskForm, str] = {
    "png": "image/png",
    "raw": "application/octet-stream",
    "coco_rle": "application/json",
    "overlay": "image/jpeg",
}
_TIMING = re.compile(r"(\w+);dur=([0-9.e+-]+)")

_CONNECTION_CLOSED = (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)
"""The peer closed a connection: often a proxy, one that was idle for long."""

_BODY_LIMIT_OF_PROXY = 413
_PROXY_WITHOUT_SERVICE = frozenset({502, 503, 504})

AnswerT = TypeVar("AnswerT")


class HttpClient:
    """Asks the service over HTTP and waits for the answer. Threads may share a client.

    A request whose connection is closed is sent once more, as proxies close idle connections.

    Args:
        url: for example ``http://127.0.0.1:8000``, or with the prefix of a proxy ``https://host/masks``.
        key: API key; None = the service asks for none.
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
        detail: Detail = "reduced",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Segmentation:
        """Segment one picture.

        Args:
            picture: a JPEG, PNG or WebP file.
            model: NAME or NAME@VERSION; empty = the default model.
            mask: form of the answer.
            classes: ids to keep; empty = all.
            detail: ``full`` = a large picture is not reduced for the network; takes longer.
            timeout_s: time after which the answer is no longer needed, in seconds.

        Raises:
            RefusedError: the service answered with an error.
            UnreachableError: the service gave no answer.
            ProtocolError: the answer is not one of this service.
        """
        return self._ask(_segment_call(picture, model, mask, classes, detail, timeout_s=timeout_s))

    def models(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Model]:
        """List the models of the service, the default model first.

        Args:
            timeout_s: time after which the answer is no longer needed, in seconds.

        Raises:
            RefusedError: the service answered with an error.
            UnreachableError: the service gave no answer.
            ProtocolError: the answer is not one of this service.
        """
        return self._ask(_models_call(timeout_s))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, call: _Call[AnswerT]) -> AnswerT:
        with _client_errors():
            try:
                response = self._client.request(**call.request)
            except _CONNECTION_CLOSED:
                response = self._client.request(**call.request)
            return call.answer(response)


class AsyncHttpClient:
    """Asks the service over HTTP. A client belongs to one event loop.

    A request whose connection is closed is sent once more, as proxies close idle connections.

    Args:
        url: for example ``http://127.0.0.1:8000``, or with the prefix of a proxy ``https://host/masks``.
        key: API key; None = the service asks for none.
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
        detail: Detail = "reduced",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Segmentation:
        """Segment one picture.

        Args:
            picture: a JPEG, PNG or WebP file.
            model: NAME or NAME@VERSION; empty = the default model.
            mask: form of the answer.
            classes: ids to keep; empty = all.
            detail: ``full`` = a large picture is not reduced for the network; takes longer.
            timeout_s: time after which the answer is no longer needed, in seconds.

        Raises:
            RefusedError: the service answered with an error.
            UnreachableError: the service gave no answer.
            ProtocolError: the answer is not one of this service.
        """
        return await self._ask(_segment_call(picture, model, mask, classes, detail, timeout_s=timeout_s))

    async def models(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Model]:
        """List the models of the service, the default model first.

        Args:
            timeout_s: time after which the answer is no longer needed, in seconds.

        Raises:
            RefusedError: the service answered with an error.
            UnreachableError: the service gave no answer.
            ProtocolError: the answer is not one of this service.
        """
        return await self._ask(_models_call(timeout_s))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, call: _Call[AnswerT]) -> AnswerT:
        with _client_errors():
            try:
                response = await self._client.request(**call.request)
            except _CONNECTION_CLOSED:
                response = await self._client.request(**call.request)
            return call.answer(response)


@dataclass(frozen=True)
class _Call(Generic[AnswerT]):
    """One question to the service, for blocking clients and for asyncio.

    Attributes:
        request: arguments of httpx2's ``request``.
        read: turns a successful response into the answer.
    """

    request: Mapping[str, Any]
    read: Callable[[httpx2.Response], AnswerT]

    def answer(self, response: httpx2.Response) -> AnswerT:
        """Return the answer of a response.

        Raises:
            ClientError: it holds an error, or is not one of this service.
        """
        if not response.is_success:
            _raise_error_of(response)
        try:
            return self.read(response)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ProtocolError(
                f"the answer is not one of this service: is another program at this address? {error!r}"
            ) from error


def _segment_call(
    picture: bytes, model: str, mask: MaskForm, classes: Sequence[int], detail: Detail, *, timeout_s: float
) -> _Call[Segmentation]:
    params = {
        "output": "overlay" if mask == "overlay" else "labels",
        "timeout_ms": str(round(1e3 * timeout_s)),
    }
    if mask == "coco_rle":
        params["mask"] = mask
    if detail != "reduced":  # older services do not know the parameter
        params["detail"] = detail
    if classes:
        params["classes"] = ",".join(map(str, classes))
    name, _, number = model.partition("@")
    version = f"/versions/{number}" if number else ""
    request = {
        "method": "POST",
        "url": f"/v1/models/{name}{version}:segment" if name else "/v1/segment",
        "params": params,
        "headers": {"Accept": _ACCEPT[mask]},
        "content": picture,
        "timeout": timeout_s,
    }
    return _Call(request, lambda response: _segmentation(response, mask))


def _models_call(timeout_s: float) -> _Call[list[Model]]:
    return _Call({"method": "GET", "url": "/v1/models", "timeout": timeout_s}, _models)


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


@contextmanager
def _client_errors() -> Iterator[None]:
    try:
        yield
    except httpx2.TimeoutException as error:
        raise RefusedError("deadline_exceeded", "no answer came in time") from error
    except _CONNECTION_CLOSED as error:
        raise UnreachableError(
            "the connection was closed twice without an answer: a proxy may refuse bodies of this size"
        ) from error
    except httpx2.TransportError as error:
        raise UnreachableError(str(error)) from error


def _segmentation(response: httpx2.Response, form: MaskForm) -> Segmentation:
    headers = response.headers
    timings = _TIMING.findall(headers.get("Server-Timing", ""))
    return Segmentation(
        _mask(response, form),
        headers["X-Model-Name"],
        int(headers["X-Model-Version"]),
        {stage: float(ms) for stage, ms in timings},
    )


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


def _raise_error_of(response: httpx2.Response) -> NoReturn:
    try:
        problem = response.json()
        code, detail, request_id = problem["code"], problem["detail"], problem["request_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise _error_of_proxy(response) from error
    retry = response.headers.get("Retry-After", "")
    retry_after_s = float(retry) if retry.isdigit() else None
    raise RefusedError(code, detail, retry_after_s=retry_after_s, request_id=request_id)


def _error_of_proxy(response: httpx2.Response) -> ClientError:
    """Return the error of a response without the service's explanation."""
    status = response.status_code
    if status in _PROXY_WITHOUT_SERVICE:
        return UnreachableError(f"a proxy answers {status}: it does not reach the service")
    if status == _BODY_LIMIT_OF_PROXY:
        return RefusedError(
            "payload_too_large",
            "a proxy in front of the service limits the size of a body: raise client_max_body_size of nginx",
        )
    return ProtocolError(f"status {status} is not from this service: is another program at this address?")
