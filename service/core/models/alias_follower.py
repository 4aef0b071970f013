"""Looks at the followed aliases again and again: another replica, or a command, may have moved them."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import structlog

from service.core.errors import ServiceError
from service.core.models.live_versions import LiveVersions

_log = structlog.get_logger()

_END_S = 1.0


class AliasFollower:
    """Lets a service follow its aliases, in a thread of its own.

    A look that fails, or a version that cannot be loaded, changes nothing: what is served goes on.

    Args:
        versions: looks, loads and switches.
        interval_s: between two looks.
    """

    def __init__(self, versions: LiveVersions, interval_s: float) -> None:
        self._versions = versions
        self._interval_s = interval_s
        self._ending = threading.Event()
        # A version that is being loaded cannot be interrupted: the end of the process does not wait for it.
        self._thread = threading.Thread(target=self._run, name="aliases", daemon=True)

    def start(self) -> None:
        """Begin to look, after the models are loaded."""
        self._thread.start()

    def __enter__(self) -> Self:
        """Return the follower, which has not begun."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop looking."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)

    def _run(self) -> None:
        is_failing = False
        while not self._ending.wait(self._interval_s):
            try:
                self._versions.catch_up()
            except ServiceError as error:
                if not is_failing and not self._ending.is_set():
                    _log.warning("aliases cannot be followed for now", reason=str(error))
                is_failing = True
            except Exception:  # noqa: BLE001 - the outermost edge of the thread, which goes on
                if not self._ending.is_set():
                    _log.exception("aliases cannot be followed for now")
                is_failing = True
            else:
                is_failing = False
