"""numba: how kernels are compiled, kept on disk and run by several threads. No other module uses numba.

Kernels are serial and release the GIL. The threads of an executor share the rows, because numba's threading
layers abort, or compete with OpenVINO's threads.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar, cast

from model.pictures.preprocess import ImageSize

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Result = TypeVar("_Result")

_parts: list[Callable[..., Any]] = []
"""Functions that are not registered yet: numba is imported with the first kernel, on a GPU perhaps never."""

_registering = threading.Lock()


@functools.cache
def compiled(kernel: _Function) -> _Function:
    """Return the kernel as machine code: from disk, or compiled at its first call and kept if possible."""
    import numba  # noqa: PLC0415 - takes a second

    _register_parts()
    # Not a decorator: njit(cache=True) looks for a writable folder at once, and an import must not fail.
    try:
        return cast("_Function", numba.njit(nogil=True, cache=True)(kernel))
    except RuntimeError:  # no such folder, in a read-only installation that was not told of one
        return cast("_Function", numba.njit(nogil=True)(kernel))


def part_of_kernel(function: _Function) -> _Function:
    """Mark a function that kernels call."""
    _parts.append(function)
    return function


def _register_parts() -> None:
    from numba.extending import register_jitable  # noqa: PLC0415 - takes a second

    with _registering:
        while _parts:
            # Not inline="always": numba 0.68.1 then frees arrays while inlined loops still write to them.
            register_jitable(_parts.pop(0))


def keep_kernels_in(folder: Path) -> None:
    """Keep compiled kernels in this folder; call it before the first kernel is used.

    Args:
        folder: machine code is loaded from it, so only its owner may be able to write there.

    Source:
        https://numba.readthedocs.io/en/stable/reference/envvars.html#envvar-NUMBA_CACHE_DIR: the variable is
        read once, at the import. Setting the value afterwards is not documented.
    """
    import numba  # noqa: PLC0415 - takes a second

    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]  # numba sets it from the environment


def in_bands(
    work: Callable[[int, int], _Result], size: ImageSize, executor: Executor | None, *, band_pixels: int
) -> list[_Result]:
    """Call ``work(first, last)`` for bands of rows that together are all rows; return the results in order.

    Args:
        work: handles rows [first, last).
        size: of the picture.
        executor: its threads share the bands; None = the calling thread does all bands.
        band_pixels: pixels of one band, approximately.
    """
    band = max(1, band_pixels // size.width)
    firsts = range(0, size.height, band)
    lasts = [min(first + band, size.height) for first in firsts]
    return list((executor.map if executor else map)(work, firsts, lasts))
