"""Makes the C library return freed memory to the system, and the garbage collector leave old objects alone.

glibc asks the kernel for what is larger than a threshold and returns it as soon as it is freed. But each time
it raises the threshold to that size, up to 32 MiB; from then on large buffers are cut from heaps, of which
every thread has one, and stay there: 330 MB after 1,358 small hostile pictures. Fixed limits cost no time, as
long as heaps keep enough for the buffers of usual pictures: a new page takes 2 us.
Elsewhere (musl, macOS) there is nothing to set, and this module does nothing.

Source:
    mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_MIB = 1 << 20
_LIMITS = {
    _M_MMAP_THRESHOLD: 4 * _MIB,
    _M_TRIM_THRESHOLD: 16 * _MIB,  # what stays at the end of each heap
    _M_ARENA_MAX: 2,  # heaps: eight a core are the default
}


def limit_heaps() -> None:
    """Fix the limits; to be called once, before there are threads."""
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "mallopt"):
        for parameter, value in _LIMITS.items():
            c_library.mallopt(parameter, value)


@contextmanager
def frozen_objects() -> Iterator[None]:
    """Have the garbage collector leave alone what is alive now; what is counted down to 0 still goes.

    To be entered when everything is loaded: a full run over the 165,000 objects that a service imports would
    stop all its threads for 75 ms, now and then under load. To enter takes as long, once.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def release_free_memory() -> None:
    """Return what is free now; takes milliseconds, so it is for the end of something large."""
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "malloc_trim"):
        c_library.malloc_trim(0)
