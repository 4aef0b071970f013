"""Child processes of this package, which end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

_CODE = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1


def program(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package as a program.

    It imports nothing from the user's home or from the folder in which the service was started.
    """
    return [sys.executable, "-s", "-P", "-m", module, *arguments]


def with_code(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Python finds this package."""
    folders = [str(_CODE), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(folders)}


def end_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends, even if that is killed."""
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "prctl"):
        c_library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_signals_to_parent() -> None:
    """Ignore SIGINT and SIGTERM: Ctrl-C and some service managers send them to every process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
