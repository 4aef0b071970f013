"""Low priority for background threads."""

from __future__ import annotations

import os
import threading

_NICENESS = 10


def yield_to_others() -> None:
    """Give the calling thread the lowest priority of the system.

    For threads that compute without the interpreter's lock: a thread that waits while it holds the lock stops
    all others. On Linux every thread has its own niceness; without privileges it cannot be lowered again.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
