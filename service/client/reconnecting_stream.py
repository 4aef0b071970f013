"""A stream of frames over as many connections as it takes."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

from service.client.answers import (
    Dropped,
    Frame,
    FramePolicy,
    GoingAway,
    Interrupted,
    MaskForm,
    Opened,
    Result,
    StreamEvent,
)
from service.client.backoff import ReconnectBackoff
from service.client.errors import RefusedError, SourceError, UnreachableError
from service.client.grpc_client import AsyncGrpcClient, FrameCall
from service.client.ledger import FrameLedger

__all__ = ["FrameFeed", "ReconnectingStream", "StreamOptions"]

WINDOW = 32
"""Frames without an answer, at most. They are kept to be sent again."""

_FAILURES_BEFORE_ADVICE = 3

_SERVICE_STOPS = "the service is about to stop"
_ENDED_EARLY = "the stream ended before every frame was answered"


class FrameFeed(Protocol):
    """The source of the frames of a stream."""

    async def next(self) -> Frame | None:
        """Return the next frame; None at the end. A cancelled call takes no frame.

        Raises:
            SourceError: the source cannot be read.
        """
        ...


@dataclass(frozen=True)
class StreamOptions:
    """How the frames of a stream are answered.

    Args:
        model: NAME or NAME@VERSION; empty = the default model.
        mask: form of the results.
        policy: ``latest``: newer frames replace frames that wait. ``block``: every frame is answered.
        max_in_flight: frames in work at the same time; 0 = the limit of the service.
        max_frame_age_s: age at which a frame is dropped, in seconds; 0 = the limit of the service.
    """

    model: str = ""
    mask: MaskForm = "raw"
    policy: FramePolicy = "latest"
    max_in_flight: int = 0
    max_frame_age_s: float = 0.0


class ReconnectingStream:
    """Sends the frames of a feed and yields their events. A lost connection is opened again.

    With ``latest``, frames without an answer are lost with their connection: a camera has newer ones. With
    ``block``, they are sent again, as are the frames that a stopping service dropped: every frame is answered
    once.

    Args:
        client: opens the connections.
        feed: the frames.
        options: how the frames are answered.
        backoff: how long to wait before the next attempt.
        pause: waits that many seconds.

    Attributes:
        ledger: the outcome of every frame.
    """

    def __init__(
        self,
        client: AsyncGrpcClient,
        feed: FrameFeed,
        options: StreamOptions,
        *,
        backoff: ReconnectBackoff | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.ledger = FrameLedger()
        self._client = client
        self._feed = feed
        self._options = options
        self._backoff = backoff or ReconnectBackoff()
        self._pause = pause
        self._kept: dict[int, Frame] = {}  # sent and without an answer
        self._dropped: list[Frame] = []  # by a stopping service; to be sent again before ``_again``
        self._again: deque[Frame] = deque()
        self._next: Frame | None = None  # from the feed, not sent yet
        self._window = WINDOW
        self._has_room = asyncio.Event()
        self._is_fed = False  # the feed has ended
        self._feed_error: SourceError | None = None
        self._fetching: asyncio.Task[Frame | None] | None = None
        self._is_leaving = False  # the service stops, so no frame is sent on this connection
        self._failures: Counter[int] = Counter()  # connections on which a frame was the oldest without answer

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of the service and each interruption, until the last frame is answered.

        Raises:
            RefusedError: the service refuses the stream for good.
            SourceError: the feed failed. The frames before that are answered.
            ProtocolError: the answers do not fit the frames.
        """
        while not self._has_all_answers():
            try:
                async with aclosing(self._connection()) as events:
                    async for event in events:
                        yield event
                break
            except (RefusedError, UnreachableError) as error:
                if self._has_all_answers():
                    break
                interrupted = self._interrupted(error)
            yield interrupted
            await self._pause(interrupted.delay_s)
            await self._until_needed()
        if self._feed_error is not None:
            raise self._feed_error

    def _has_all_answers(self) -> bool:
        """Return whether every frame of the feed is answered: then a lost connection costs nothing."""
        return self._is_fed and not (self.ledger or self._dropped or self._again or self._next)

    async def _connection(self) -> AsyncGenerator[StreamEvent, None]:
        options = self._options
        async with self._client.stream(
            model=options.model,
            mask=options.mask,
            policy=options.policy,
            max_in_flight=options.max_in_flight,
            max_frame_age_s=options.max_frame_age_s,
        ) as call:
            sending: asyncio.Task[None] | None = None
            try:
                while (event := await call.next_event()) is not None:
                    # Before the stream is accepted, a frame would hide the reason of a refusal.
                    if isinstance(event, Opened):
                        self._is_leaving = False
                        sending = asyncio.create_task(self._send(call))
                    elif isinstance(event, GoingAway):
                        self._leave()
                    elif self._takes_back(event):
                        continue
                    self._take(event)
                    yield event
            finally:
                await _cancel(sending)
        if not self._has_all_answers():
            raise UnreachableError(_SERVICE_STOPS if self._dropped else _ENDED_EARLY)

    def _takes_back(self, event: StreamEvent) -> bool:
        """Keep frames that a stopping service dropped, to send them again."""
        is_dropped = isinstance(event, Dropped) and event.reason == "draining"
        if not (is_dropped and self._options.policy == "block"):
            return False
        assert isinstance(event, Dropped)
        self._dropped += [self._kept.pop(seq) for seq in self.ledger.take_back(event)]
        return True

    def _take(self, event: StreamEvent) -> None:
        if isinstance(event, Result):
            self._backoff.reset()
            self._window = WINDOW
        self.ledger.take(event)
        for seq in self._kept.keys() - self.ledger.unanswered:
            del self._kept[seq]
        self._has_room.set()

    async def _send(self, call: FrameCall) -> None:
        with suppress(UnreachableError):  # the events tell why
            while (frame := await self._fetched()) is not None:
                self._next = None
                self._kept[frame.seq] = frame
                self.ledger.send(frame.seq)
                await call.send(frame)
            await call.end()

    def _leave(self) -> None:
        """Send nothing more. Only fetching is cancelled: a cancelled write would cancel the whole call."""
        self._is_leaving = True
        if self._fetching is not None:
            self._fetching.cancel()

    async def _fetched(self) -> Frame | None:
        """Return the next frame to send.

        Raises:
            UnreachableError: the service is about to stop.
        """
        if self._is_leaving:
            raise UnreachableError(_SERVICE_STOPS)
        self._fetching = asyncio.create_task(self._fetch())
        try:
            return await self._fetching
        except asyncio.CancelledError:
            if not self._is_leaving:
                raise
            raise UnreachableError(_SERVICE_STOPS) from None

    async def _fetch(self) -> Frame | None:
        """Put the next frame to send into ``_next``, where it stays until a connection takes it."""
        while len(self.ledger) + len(self._dropped) >= self._window:
            self._has_room.clear()
            await self._has_room.wait()
        if self._next is None and self._again:
            self._next = self._again.popleft()
        if self._next is None and not self._is_fed:
            try:
                self._next = await self._feed.next()
            except SourceError as error:
                self._feed_error = error
            self._is_fed = self._next is None
        return self._next

    async def _until_needed(self) -> None:
        """Wait for a frame to send, if there is none: a proxy would cut an idle connection again."""
        if not (self.ledger or self._dropped):
            await self._fetch()

    def _interrupted(self, error: RefusedError | UnreachableError) -> Interrupted:
        """Prepare the next connection.

        Raises:
            RefusedError: another attempt would be refused as well.
        """
        retry_after_s = error.retry_after_s if isinstance(error, RefusedError) else 0.0
        if retry_after_s is None:
            raise error
        reason = _SERVICE_STOPS if self._is_leaving else str(error)
        lost: tuple[int, ...] = ()
        if self._options.policy == "block":
            unanswered = [self._kept[seq] for seq in self.ledger.take_back()]
            if unanswered and isinstance(error, UnreachableError) and not self._is_leaving:
                reason += self._advice(unanswered[0])
                # If a proxy limits the bytes of a stream, each connection now brings one answer at least.
                self._window = 1
            again = self._dropped + unanswered + ([] if self._next is None else [self._next])
            self._again.extendleft(reversed(again))
            self._dropped, self._next = [], None
        else:
            lost = self.ledger.lose()
        self._kept.clear()
        self._has_room.set()
        return Interrupted(reason, self._backoff.next_s(retry_after_s), lost)

    def _advice(self, oldest: Frame) -> str:
        """Return advice when one frame has no answer on several connections, else nothing."""
        failures = self._failures[oldest.seq] + 1
        self._failures = Counter({oldest.seq: failures})
        if failures < _FAILURES_BEFORE_ADVICE:
            return ""
        return (
            f"; frame {oldest.seq} of {len(oldest.data)} bytes has no answer after {failures} connections: a "
            "proxy may limit the size of bodies (nginx: set client_max_body_size to 0 for gRPC)"
        )


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
