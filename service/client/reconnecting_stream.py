"""A camera or film through the service, over as many connections as it takes."""

from __future__ import annotations

import asyncio
from collections import deque
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

WINDOW = 32
"""Frames that may wait for their answer; they are kept, to be sent again."""

_ABOUT_TO_STOP = "the service is about to stop"


class FrameFeed(Protocol):
    """Where frames come from."""

    async def next(self) -> Frame | None:
        """Return the next frame, None when there will be none; cancelled, it has taken none.

        Raises:
            SourceError: it breaks off.
        """
        ...


@dataclass(frozen=True)
class StreamOptions:
    """How frames are to be answered; see ``AsyncGrpcClient.stream``."""

    model: str = ""
    mask: MaskForm = "raw"
    policy: FramePolicy = "latest"
    max_in_flight: int = 0
    max_frame_age_s: float = 0.0


class ReconnectingStream:
    """Sends what a feed yields and tells what becomes of it; connects again when the connection is lost.

    With ``latest`` the frames that were under way then are lost, as a camera has newer ones; with ``block``
    they are sent again, and so are those that a service dropped because it is about to stop.

    Args:
        client: connects.
        feed: the frames.
        wish: how they are to be answered.
        backoff: how long to wait before the next attempt.
        pause: waits so many seconds.

    Attributes:
        ledger: what became of every frame.
    """

    def __init__(
        self,
        client: AsyncGrpcClient,
        feed: FrameFeed,
        wish: StreamOptions,
        *,
        backoff: ReconnectBackoff | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.ledger = FrameLedger()
        self._client = client
        self._feed = feed
        self._wish = wish
        self._backoff = backoff or ReconnectBackoff()
        self._pause = pause
        self._kept: dict[int, Frame] = {}
        self._again: deque[Frame] = deque()
        self._dropped: list[Frame] = []  # to be sent again, before those of ``_again``
        self._has_room = asyncio.Event()
        self._end: SourceError | None = None
        self._is_fed = False
        self._fetching: asyncio.Task[Frame | None] | None = None
        self._held: Frame | None = None
        self._is_leaving = False

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """Yield what the service says, and each interruption, until the last frame is answered.

        Raises:
            RefusedError: the service will not answer, however often it is asked.
            SourceError: the feed broke off; what it had yielded is answered.
            ProtocolError: its answers make no sense.
        """
        while True:
            interrupted: Interrupted | None = None
            try:
                async with aclosing(self._connection()) as events:
                    async for event in events:
                        yield event
            except (RefusedError, UnreachableError) as error:
                if not self._is_complete:
                    interrupted = self._interrupted(error)
            if interrupted is None:
                break
            yield interrupted
            await self._pause(interrupted.delay_s)
        if self._end is not None:
            raise self._end

    @property
    def _is_complete(self) -> bool:
        """Whether nothing is left to send or to wait for: then a lost connection is no loss."""
        return self._is_fed and not (self.ledger or self._dropped or self._again or self._held)

    async def _connection(self) -> AsyncGenerator[StreamEvent, None]:
        wish = self._wish
        async with self._client.stream(
            model=wish.model,
            mask=wish.mask,
            policy=wish.policy,
            max_in_flight=wish.max_in_flight,
            max_frame_age_s=wish.max_frame_age_s,
        ) as call:
            sending: asyncio.Task[None] | None = None
            try:
                while (event := await call.next_event()) is not None:
                    # A message that is sent when the call has ended hides why it has ended.
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
                await _ended(sending)
        if self._dropped:  # the frames had ended before the service said goodbye
            raise UnreachableError(_ABOUT_TO_STOP)

    def _takes_back(self, event: StreamEvent) -> bool:
        if not (isinstance(event, Dropped) and event.reason == "draining" and self._wish.policy == "block"):
            return False
        self._dropped += [self._kept.pop(seq) for seq in self.ledger.take_back(event)]
        return True

    def _take(self, event: StreamEvent) -> None:
        if isinstance(event, Result):
            self._backoff.reset()
        self.ledger.take(event)
        for seq in self._kept.keys() - self.ledger.unanswered:
            del self._kept[seq]
        self._has_room.set()

    async def _send(self, call: FrameCall) -> None:
        with suppress(UnreachableError):  # the events tell why
            try:
                while (frame := await self._fetched()) is not None:
                    self._held = None
                    self._kept[frame.seq] = frame
                    self.ledger.send(frame.seq)
                    await call.send(frame)
            except SourceError as error:
                self._end = error
            self._is_fed = True
            await call.end()

    def _leave(self) -> None:
        """Send nothing more. The sending itself must not be cancelled: that would cancel the whole call."""
        self._is_leaving = True
        if self._fetching is not None:
            self._fetching.cancel()

    async def _fetched(self) -> Frame | None:
        if self._is_leaving:
            raise UnreachableError(_ABOUT_TO_STOP)
        self._fetching = asyncio.create_task(self._next())
        try:
            return await self._fetching
        except asyncio.CancelledError:
            if not self._is_leaving:
                raise
            raise UnreachableError(_ABOUT_TO_STOP) from None

    async def _next(self) -> Frame | None:
        while len(self.ledger) + len(self._dropped) >= WINDOW:
            self._has_room.clear()
            await self._has_room.wait()
        if self._held is None:  # else it was fetched, but nobody was there any more to take it
            self._held = self._again.popleft() if self._again else await self._feed.next()
        return self._held

    def _interrupted(self, error: RefusedError | UnreachableError) -> Interrupted:
        retry_after_s = error.retry_after_s if isinstance(error, RefusedError) else 0.0
        if retry_after_s is None:
            raise error
        lost: tuple[int, ...] = ()
        if self._wish.policy == "block":
            again = self._dropped + [self._kept[seq] for seq in self.ledger.take_back()]
            self._dropped = []
            if self._held is not None:
                again.append(self._held)
                self._held = None
            self._again.extendleft(reversed(again))
        else:
            lost = self.ledger.lose()
        self._kept.clear()
        self._has_room.set()
        reason = _ABOUT_TO_STOP if self._is_leaving else str(error)
        return Interrupted(reason, self._backoff.next_s(retry_after_s), lost)


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
