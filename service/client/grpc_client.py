"""Clients for gRPC: one that blocks, one for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import grpc

from service.client.answers import Frame, FramePolicy, MaskForm, Model, Segmentation, StreamEvent
from service.client.decoding import (
    error_of,
    event_of,
    frame_request,
    models_of,
    open_request,
    segment_request,
    segmentation_of,
)
from service.client.errors import UnreachableError
from service.wire import segmentation_pb2 as wire
from service.wire.segmentation_pb2_grpc import SegmentationStub

DEFAULT_TIMEOUT_S = 30.0

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # a raw mask is as large as its picture
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Or the channel itself would wait up to two minutes before it connects again, whatever the caller does.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # without it, grpcio 1.85 waits a minute for the answer to a ping
]

_StreamCall = grpc.aio.StreamStreamCall[wire.StreamRequest, wire.StreamResponse]


class GrpcClient:
    """Asks the service over gRPC and waits for the answer; may be shared by threads.

    Args:
        address: ``HOST:PORT``.
        key: API key, where the service asks for one.
        tls: encrypt; what has TLS is a proxy in front of the service.
        ca: certificates to trust, PEM, which implies ``tls``; None = those that come with gRPC.
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
        request = segment_request(picture, model, mask, classes)
        try:
            return segmentation_of(self._stub.Segment(request, timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise error_of(error) from error

    def models(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Model]:
        """List what is served, the default model first; raises as ``segment``."""
        request = wire.ListModelsRequest()
        try:
            return models_of(self._stub.ListModels(request, timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise error_of(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FrameCall:
    """One stream on one connection: frames out, events in, each by one task at a time.

    Args:
        call: gRPC's own.
    """

    def __init__(self, call: _StreamCall) -> None:
        self._call = call

    async def send(self, frame: Frame) -> None:
        """Send a frame; returns when there is room for the next one.

        Raises:
            UnreachableError: the stream is over; ``events`` tells why.
        """
        try:
            await self._call.write(frame_request(frame))
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise UnreachableError("the stream is over") from error

    async def end(self) -> None:
        """Say that no frame will come any more; raises as ``send``."""
        try:
            await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise UnreachableError("the stream is over") from error

    async def next_event(self) -> StreamEvent | None:
        """Return what the service says next; None when it has answered everything.

        Raises:
            RefusedError: the service ended the stream.
            UnreachableError: the connection broke.
            ProtocolError: the service says what this client does not know.
        """
        try:
            message: object = await self._call.read()
        except grpc.RpcError as error:
            raise error_of(error) from error
        return event_of(message) if isinstance(message, wire.StreamResponse) else None


class AsyncGrpcClient:
    """Asks the service over gRPC; belongs to the event loop in which it was made.

    Args:
        address: ``HOST:PORT``.
        key: API key, where the service asks for one.
        tls: encrypt; what has TLS is a proxy in front of the service.
        ca: certificates to trust, PEM, which implies ``tls``; None = those that come with gRPC.
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
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Segmentation:
        """Have one picture segmented; see ``GrpcClient.segment``."""
        request = segment_request(picture, model, mask, classes)
        try:
            response = await self._stub.Segment(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(error) from error
        return segmentation_of(response)

    async def models(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Model]:
        """List what is served, the default model first; raises as ``segment``."""
        request = wire.ListModelsRequest()
        try:
            response = await self._stub.ListModels(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(error) from error
        return models_of(response)

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
        """Open a stream of frames; left early, it is cancelled.

        Args:
            model: NAME or NAME@VERSION; empty = the default model.
            mask: the form of the results.
            policy: ``latest``: newer frames replace those that wait. ``block``: none is replaced.
            max_in_flight: frames in work at the same time; 0 = the service's own limit.
            max_frame_age_s: older frames are dropped; 0 = the service's own limit.
        """
        call = self._stub.SegmentStream(metadata=self._metadata)
        try:
            with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the first event tells why
                await call.write(open_request(model, mask, policy, max_in_flight, max_frame_age_s))
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


def _metadata(key: str | None) -> tuple[tuple[str, str], ...]:
    return () if key is None else (("authorization", f"Bearer {key}"),)


def _credentials(ca: bytes | None, *, tls: bool) -> grpc.ChannelCredentials | None:
    return grpc.ssl_channel_credentials(ca) if tls or ca is not None else None
