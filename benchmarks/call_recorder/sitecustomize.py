"""Records which functions of this project run in a process and in the Python processes that it starts.

Python imports a module of this name at its start. ``benchmarks/path_of_a_picture.py`` puts this folder first
in ``PYTHONPATH`` and names two folders: RECORD_ROOT holds the code whose functions count, RECORD_FOLDER
receives one file for each process. Nothing is recorded before RECORD_FOLDER holds a file named ``armed``.

A line holds, separated by tabs: nanoseconds (``time.monotonic_ns``), thread, event, and the functions of the
project on the stack, the called one first, separated by spaces.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import uvloop

_ROOT = os.environ["RECORD_ROOT"]
_FOLDER = Path(os.environ["RECORD_FOLDER"])
_PROJECT = tuple(f"{_ROOT}/{package}/" for package in ("model", "service"))
_FLUSH_S = 0.1

# Calls of libraries that are recorded with their stack: threads that wake others or wait, work on pixels, and
# the sending of the answer. Waking the event loop is added below.
_PYTHON_CALLS = {"Condition.wait": "handoff", "RequestResponseCycle.send": "work"}
_LIBRARY_CALLS = {
    "SimpleQueue.put": "handoff",  # to a thread of a pool, or of the worker
    "socket.sendmsg": "handoff",  # to the worker process
    "socket.sendall": "handoff",  # from the worker process
    "ImagingDecoder.decode": "work",
    "Compress.compress": "work",
}
_INFERENCE = ".infer"  # of OpenVINO, whose classes carry mangled names

_events: list[tuple[int, int, str, tuple[CodeType, ...]]] = []
_is_armed = False


def _record(frame: FrameType, event: str, argument: Any) -> None:
    if not _is_armed:
        return
    if event == "call":
        code = frame.f_code
        if code.co_filename.startswith(_PROJECT):
            _note("call", (code,))
        if kind := _PYTHON_CALLS.get(code.co_qualname):
            _note(kind, _stack(frame))
    elif event == "c_call" and (kind := _kind_of_library_call(argument)):
        _note(kind, _stack(frame))


def _kind_of_library_call(called: Any) -> str:
    name = getattr(called, "__qualname__", "")
    return "work" if name.endswith(_INFERENCE) else _LIBRARY_CALLS.get(name, "")


def _note(kind: str, stack: tuple[CodeType, ...]) -> None:
    _events.append((time.monotonic_ns(), threading.get_ident(), kind, stack))


def _stack(frame: FrameType | None) -> tuple[CodeType, ...]:
    codes = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PROJECT):
            codes.append(frame.f_code)
        frame = frame.f_back
    return tuple(codes)


def _named(code: CodeType) -> str:
    name = code.co_qualname.replace(".<locals>", "").replace(" ", "")
    return f"{code.co_filename[len(_ROOT) + 1 :]}:{name}"


def _write() -> None:
    global _is_armed  # noqa: PLW0603 - read by a function that has no other state
    with (_FOLDER / f"{os.getpid()}.tsv").open("w", buffering=1) as file:
        while True:
            time.sleep(_FLUSH_S)
            _is_armed = (_FOLDER / "armed").exists()
            count = len(_events)
            chunk = _events[:count]
            del _events[:count]
            file.writelines(
                f"{at_ns}\t{thread}\t{kind}\t{' '.join(map(_named, stack))}\n"
                for at_ns, thread, kind, stack in chunk
            )
            file.flush()


def _call_soon_threadsafe(loop: uvloop.Loop, *arguments: Any, **keywords: Any) -> Any:
    if _is_armed:
        _note("handoff", _stack(sys._getframe(1)))  # noqa: SLF001 - there is no other way to the caller
    return _wake(loop, *arguments, **keywords)


# A method of an extension: profiling does not see it called.
_wake = uvloop.Loop.call_soon_threadsafe
uvloop.Loop.call_soon_threadsafe = _call_soon_threadsafe  # type: ignore[method-assign]
threading.Thread(target=_write, daemon=True).start()
threading.setprofile(_record)
sys.setprofile(_record)
