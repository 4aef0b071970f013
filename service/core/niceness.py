"""Threads whose work nobody waits for."""

from __future__ import annotations

import os
import threading

_NICENESS = 10


def yield_to_others() -> None:
    """Let the scheduler of the system prefer all other threads to the calling one, from now on.

    For threads that compute without the interpreter's lock: one that is put off while it holds the lock puts
    off all others. On Linux every thread has a niceness of its own; without privileges there is no way back.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
