"""Clients for gRPC: one that blocks, one for asyncio. Both send the calls of ``messages``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import grpc

from service.client.answers import Detail, Frame, FramePolicy, MaskForm, Model, Segmentation, StreamEvent
from service.client.errors import UnreachableError
from service.client.grpc_write import StreamCall, WriteError, end_writing, write
from service.client.messages import (
    AnswerT,
    UnaryCall,
    error_of,
    event_of,
    frame_request,
    models_call,
    open_request,
    segment_call,
    stream_error_of,
)
from service.wire import segmentation_pb2 as wire
from service.wire.segmentation_pb2_grpc import SegmentationStub

__all__ = ["AsyncGrpcClient", "FrameCall", "GrpcClient"]

DEFAULT_TIMEOUT_S = 30.0

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # a raw mask is as large as its picture
    ("grpc.max_send_message_length", -1),
    # Keeps a connection alive through proxies that close it after 5 seconds of silence.
    ("grpc.keepalive_time_ms", 4_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a camera may have no picture for a long time
    # Otherwise the channel itself waits up to two minutes before it connects again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # otherwise grpcio 1.85 waits a minute for the answer to a ping
]


class GrpcClient:
    """Asks the service over gRPC and waits for the answer. Threads may share a client.

    A call whose connection breaks is sent once more, as proxies close idle connections.

    Args:
        address: ``HOST:PORT``.
        key: API key; None = the service asks for none.
        tls: encrypt the connection, to a proxy with TLS in front of the service.
        ca: certificates to trust, PEM, which implies ``tls``; None = those of gRPC.
    """

    def __init__(
        self, address: str, *, key: str | None = None, tls: bool = False, ca: bytes | None = None
    ) -> None:
        credentials = _credentials(ca, tls=tls)
        self._channel = (
            grpc.insecure_channel(address, options=_OPTIONS)
            if credentials is None
            else grpc.secure_channel(address, credentials, options=_OPTIONS)
        )
        self._stub = SegmentationStub(self._channel)
        self._metadata = _metadata(key)

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
        return self._ask(segment_call(picture, model, mask, classes, detail), timeout_s)

    def models(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Model]:
        """List the models of the service, the default model first.

        Args:
            timeout_s: time after which the answer is no longer needed, in seconds.

        Raises:
            RefusedError: the service answered with an error.
            UnreachableError: the service gave no answer.
            ProtocolError: the answer is not one of this service.
        """
        return self._ask(models_call(), timeout_s)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, call: UnaryCall[AnswerT], timeout_s: float) -> AnswerT:
        try:
            return self._ask_once(call, timeout_s)
        except UnreachableError:
            return self._ask_once(call, timeout_s)

    def _ask_once(self, call: UnaryCall[AnswerT], timeout_s: float) -> AnswerT:
        method = getattr(self._stub, call.method)
        try:
            response = method(call.request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(error) from error
        return call.read(response)


class FrameCall:
    """One stream on one connection. One task sends frames, one task reads events.

    Args:
        call: the call of gRPC.
    """

    def __init__(self, call: StreamCall) -> None:
        self._call = call

    async def send(self, frame: Frame) -> None:
        """Send a frame; return when the connection has room for the next one.

        Raises:
            UnreachableError: the stream is over; ``next_event`` tells why.
        """
        try:
            await write(self._call, frame_request(frame))
        except WriteError as error:
            raise UnreachableError("the stream is over") from error

    async def end(self) -> None:
        """Tell the service that no more frames come.

        Raises:
            UnreachableError: the stream is over; ``next_event`` tells why.
        """
        try:
            await end_writing(self._call)
        except WriteError as error:
            raise UnreachableError("the stream is over") from error

    async def next_event(self) -> StreamEvent | None:
        """Return the next event; None at the end of the stream.

        Raises:
            RefusedError: the service ended the stream with an error.
            UnreachableError: the connection broke.
            ProtocolError: this client does not know the message.
        """
        try:
            message: object = await self._call.read()
        except grpc.RpcError as error:
            raise stream_error_of(error) from error
        return event_of(message) if isinstance(message, wire.StreamResponse) else None


class AsyncGrpcClient:
    """Asks the service over gRPC. A client belongs to the event loop in which it was made.

    A call whose connection breaks is sent once more, as proxies close idle connections. A stream is not:
    ``ReconnectingStream`` does that.

    Args:
        address: ``HOST:PORT``.
        key: API key; None = the service asks for none.
        tls: encrypt the connection, to a proxy with TLS in front of the service.
        ca: certificates to trust, PEM, which implies ``tls``; None = those of gRPC.
    """

    def __init__(
        self, address: str, *, key: str | None = None, tls: bool = False, ca: bytes | None = None
    ) -> None:
        credentials = _credentials(ca, tls=tls)
        self._channel = (
            grpc.aio.insecure_channel(address, options=_OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        )
        self._stub = SegmentationStub(self._channel)
        self._metadata = _metadata(key)

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
        return await self._ask(segment_call(picture, model, mask, classes, detail), timeout_s)

    async def models(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Model]:
        """List the models of the service, the default model first.

        Args:
            timeout_s: time after which the answer is no longer needed, in seconds.

        Raises:
            RefusedError: the service answered with an error.
            UnreachableError: the service gave no answer.
            ProtocolError: the answer is not one of this service.
        """
        return await self._ask(models_call(), timeout_s)

    @asynccontextmanager
    async def stream(
        self,
        *,
        model: str = "",
        mask: MaskForm = "png",
        policy: FramePolicy = "latest",
        max_in_flight: int = 0,
        max_frame_age_s: float = 0.0,
    ) -> AsyncIterator[FrameCall]:
        """Open a stream of frames. A context that is left early cancels the stream.

        Args:
            model: NAME or NAME@VERSION; empty = the default model.
            mask: form of the results.
            policy: ``latest``: newer frames replace frames that wait. ``block``: every frame is answered.
            max_in_flight: frames in work at the same time; 0 = the limit of the service.
            max_frame_age_s: age at which a frame is dropped, in seconds; 0 = the limit of the service.
        """
        call = self._stub.SegmentStream(metadata=self._metadata)
        try:
            with suppress(WriteError):  # the first event tells why
                await write(call, open_request(model, mask, policy, max_in_flight, max_frame_age_s))
            yield FrameCall(call)
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, call: UnaryCall[AnswerT], timeout_s: float) -> AnswerT:
        try:
            return await self._ask_once(call, timeout_s)
        except UnreachableError:
            return await self._ask_once(call, timeout_s)

    async def _ask_once(self, call: UnaryCall[AnswerT], timeout_s: float) -> AnswerT:
        method = getattr(self._stub, call.method)
        try:
            response = await method(call.request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(error) from error
        return call.read(response)


def _metadata(key: str | None) -> tuple[tuple[str, str], ...]:
    return () if key is None else (("authorization", f"Bearer {key}"),)


def _credentials(ca: bytes | None, *, tls: bool) -> grpc.ChannelCredentials | None:
    return grpc.ssl_channel_credentials(ca) if tls or ca is not None else None
