"""Permits to work on a frame: shared evenly among streams, and given just in time for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_WINDOW = 32
_OUTLIERS = 3
"""Frames of a window that may come later than estimated, or for which the device may be free earlier."""

_MARGIN_S = 0.001


class FrameTiming:
    """Estimates how long the next live frame can wait, so that it is ready when the device is.

    A frame that starts as soon as the one before leaves the device is decoded early, and grows old while the
    device works on another one.
    """

    def __init__(self) -> None:
        self._leads_s: deque[float] = deque(maxlen=_WINDOW)
        self._busy_s: deque[float] = deque(maxlen=_WINDOW)

    def learn(self, *, lead_s: float, busy_s: float) -> None:
        """Add a measured frame.

        Args:
            lead_s: time from its start until it was ready for the device, in seconds.
            busy_s: time in which the device was busy with it, in seconds.
        """
        self._leads_s.append(lead_s)
        self._busy_s.append(busy_s)

    @property
    def delay_s(self) -> float:
        """Time to wait after a frame has left the device, which has another one, in seconds; 0 = unknown."""
        if len(self._busy_s) < _WINDOW // 2:
            return 0.0
        soonest_s = sorted(self._busy_s)[_OUTLIERS]
        latest_s = sorted(self._leads_s)[-1 - _OUTLIERS]
        return max(0.0, soonest_s - latest_s - _MARGIN_S)


StartFrame = Callable[[], bool]
"""Starts a frame of one stream with a permit; False = it has no frame, and the permit is free again."""


class FramePermits:
    """Lets as many frames of all streams start as keep the device busy, and treats all streams equally.

    Permits are given in rounds: a stream that has a frame asks for one of the present round, or of the next
    round if it had one in this. A plain queue would not be fair: a camera whose next frame comes a little
    later each time would be served less often than the others.

    While there are live streams and the device has another frame, a permit is delayed after its frame has
    left the device, so that the next frame starts just in time.

    Args:
        max_frames: frames of all streams that are started and have not left the device.
        max_film_frames: the same while there is no live stream: films gain by throughput, not by young
            frames. None = ``max_frames``.

    Source:
        Start-time fair queueing (Goyal, Vin, Cheng 1996), with a cost of one per frame.
    """

    def __init__(self, max_frames: int, max_film_frames: int | None = None) -> None:
        self._max_frames = max_frames
        self._max_film_frames = max(max_frames, max_film_frames or 0)
        self._given = 0
        self._delayed = 0
        self._timing = FrameTiming()
        self._live: set[StartFrame] = set()
        self._round = 0
        self._next_round: dict[StartFrame, int] = {}
        self._waiting: dict[StartFrame, int] = {}  # round by stream

    def request(self, start: StartFrame, *, is_live: bool = True) -> None:
        """Ask for a permit, unless this stream waits for one already.

        Args:
            start: identifies the stream; called once, perhaps before this method returns.
            is_live: whether old frames of the stream are useless.
        """
        if is_live:
            self._live.add(start)
        if start not in self._waiting:
            self._waiting[start] = max(self._round, self._next_round.get(start, 0))
        self._give()

    def remove_stream(self, start: StartFrame) -> None:
        """Forget a stream, whether it waits or not."""
        self._waiting.pop(start, None)
        self._next_round.pop(start, None)
        self._live.discard(start)
        self._give()

    def frame_left_device(self, *, lead_s: float, busy_s: float) -> float:
        """Return a permit when its frame has left the device, perhaps later.

        Args:
            lead_s: time from the start of the frame until it was ready for the device, in seconds.
            busy_s: time in which the device was busy with it, in seconds.

        Returns:
            Time after which to call ``release_delayed``, in seconds; 0 = the permit is free again.
        """
        self._timing.learn(lead_s=lead_s, busy_s=busy_s)
        delay_s = self._timing.delay_s
        if not delay_s or not self._live or self._given - self._delayed <= 1:
            self.release()
            return 0.0
        self._delayed += 1
        return delay_s

    def release_delayed(self) -> None:
        """Return a permit that ``frame_left_device`` delayed."""
        self._delayed -= 1
        self.release()

    def release(self) -> None:
        """Return a permit now."""
        self._given -= 1
        self._give()

    @property
    def _limit(self) -> int:
        return self._max_frames if self._live else self._max_film_frames

    def _give(self) -> None:
        while self._given < self._limit and self._waiting:
            start = min(self._waiting, key=self._waiting.__getitem__)  # the first of those in one round
            self._round = self._waiting.pop(start)
            self._given += 1
            if start():
                self._next_round[start] = self._round + 1
            else:
                self._given -= 1
