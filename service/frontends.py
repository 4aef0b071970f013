"""Runs the frontends until a signal ends them: nothing that was accepted is lost.

SIGTERM   not ready from now on; for ``lame_duck_s`` everything that still comes is answered, since those who
          send it may not have noticed yet; then no more connections, and what has begun is finished.
SIGINT    the same without the lame-duck time: nobody but a person at a terminal sends it.
another   whatever has begun is answered as ``draining``, at once.

All of it has one deadline. A model that is still being loaded then cannot be interrupted: it is left behind.
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
    """Something that listens; all methods belong to the event loop."""

    @property
    def cut_off(self) -> bool:
        """Whether requests were cut off in the end, because there was no more time."""
        ...

    async def answer(self) -> None:
        """Answer until ``stop`` is called and everything is answered, or its grace is over."""
        ...

    def stop(self) -> None:
        """Accept nothing more, and end with what has begun."""
        ...

    def cut(self) -> None:
        """Do not even wait for that."""
        ...


class Frontends:
    """The frontends of one process, and their end.

    Args:
        data: what work comes through.
        admin: ends when all of them have ended, so that the last metrics can be read.
        lifecycle: told when the end begins.
        lame_duck_s: as above.
        grace_s: from the beginning of the end to the deadline, the lame-duck time included.
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
        """Whether the end has begun."""
        return self._ending

    async def run(self, loading: asyncio.Task[None]) -> int:
        """Answer until a signal comes, and to the end.

        Args:
            loading: of the models; waited for as long as for requests.

        Returns:
            The exit code: 0, or 1 when requests were cut off or a model was still being loaded.
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
        """Begin to end; the second call cuts off.

        Args:
            signum: which signal says so; None = the process itself, when it cannot go on.
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
        """Wait for tasks, whatever becomes of them, until the deadline or a second signal."""
        finishing = asyncio.ensure_future(asyncio.wait(tasks))
        cutting = asyncio.create_task(self._cutting.wait())
        left_s = max(0.0, self._deadline_s - asyncio.get_running_loop().time())
        await asyncio.wait((finishing, cutting), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finishing.cancel()
        cutting.cancel()

    def _stop(self) -> None:
        for frontend in self._data:
            frontend.stop()
