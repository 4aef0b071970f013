"""Runs the frontends until a signal stops them. No accepted request is lost.

SIGTERM         the service is not ready any more. For ``lame_duck_s`` new requests are still answered, as
                load balancers need time to notice. Then no connection is accepted, and the requests that have
                begun are finished.
SIGINT          the same without the lame-duck time: it comes from a person at a terminal.
second signal   the requests that have begun are answered with ``draining``, at once.

One deadline holds for all of it. A model that is still being loaded at the deadline is abandoned: loading
cannot be interrupted.
"""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Sequence
from typing import Protocol

import structlog

from service.core.readiness import Readiness

_log = structlog.get_logger()


class Frontend(Protocol):
    """A server of one protocol; its methods are called in the event loop."""

    @property
    def cut_off(self) -> bool:
        """Whether requests were cut off at the deadline."""
        ...

    async def answer(self) -> None:
        """Answer requests until ``stop`` is called and all are answered or the grace time is over."""
        ...

    def stop(self) -> None:
        """Accept no more connections and finish the requests that have begun."""
        ...

    def cut(self) -> None:
        """Stop, and cut off the requests that have begun."""
        ...


class Frontends:
    """The frontends of one process, run and stopped together.

    Args:
        data: frontends that receive pictures.
        admin: stops after all others, so that the last metrics can be read.
        lifecycle: told when the frontends begin to stop.
        lame_duck_s: time in which new requests are still answered, in seconds.
        grace_s: from the signal to the deadline, in seconds, ``lame_duck_s`` included.
    """

    def __init__(
        self,
        data: Sequence[Frontend],
        admin: Frontend,
        lifecycle: Readiness,
        *,
        lame_duck_s: float,
        grace_s: float,
    ) -> None:
        self._data = data
        self._admin = admin
        self._lifecycle = lifecycle
        self._lame_duck_s = lame_duck_s
        self._grace_s = grace_s
        self._ending = False
        self._cutting = asyncio.Event()
        self._deadline_s = math.inf  # on the clock of the event loop

    @property
    def ending(self) -> bool:
        """Whether the frontends are stopping."""
        return self._ending

    async def run(self, loading: asyncio.Task[None]) -> int:
        """Answer requests until a signal comes, then stop.

        Args:
            loading: loads the models; the deadline of requests holds for it too.

        Returns:
            The exit code: 0, or 1 if requests were cut off or a model was still being loaded.
        """
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self.end, signum)
        administrating = asyncio.create_task(self._admin.answer())
        await asyncio.gather(*(frontend.answer() for frontend in self._data))
        self._admin.stop()
        await self._until_the_deadline(administrating, loading)
        if not administrating.done():
            self._admin.cut()
            await administrating
        cut_off = any(frontend.cut_off for frontend in (*self._data, self._admin))
        return int(self._cutting.is_set() or cut_off or not loading.done())

    def end(self, signum: int | None = None) -> None:
        """Begin to stop; the second call cuts off requests.

        Args:
            signum: the signal; None = the process cannot go on.
        """
        if self._ending and signum is not None:
            self._cutting.set()
            for frontend in (*self._data, self._admin):
                frontend.cut()
            return
        self._ending = self._lifecycle.draining = True
        is_expected = signum == signal.SIGTERM and self._lifecycle.started
        delay_s = self._lame_duck_s if is_expected else 0.0
        _log.info("stopping", lame_duck_s=delay_s)
        loop = asyncio.get_running_loop()
        self._deadline_s = loop.time() + delay_s + self._grace_s - self._lame_duck_s
        loop.call_later(delay_s, self._stop)

    async def _until_the_deadline(self, *tasks: asyncio.Task[None]) -> None:
        """Wait until the tasks are done or failed, the deadline has passed, or a second signal has come."""
        finishing = asyncio.ensure_future(asyncio.wait(tasks))
        cutting = asyncio.create_task(self._cutting.wait())
        left_s = max(0.0, self._deadline_s - asyncio.get_running_loop().time())
        await asyncio.wait((finishing, cutting), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finishing.cancel()
        cutting.cancel()

    def _stop(self) -> None:
        for frontend in self._data:
            frontend.stop()
