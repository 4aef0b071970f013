"""The stack on which the kernel runs a thread's signal handlers, as ``sigaltstack(2)`` tells it."""

from __future__ import annotations

import ctypes


class _Stack(ctypes.Structure):
    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int, int]:
    """Return address and size in bytes of the calling thread's stack for signals; zeros if it has none."""
    stack = _Stack()
    if ctypes.CDLL(None, use_errno=True).sigaltstack(None, ctypes.byref(stack)):
        raise OSError(ctypes.get_errno(), "sigaltstack")
    return stack.pointer or 0, stack.size
