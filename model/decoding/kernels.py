"""How numba's kernels are compiled, kept on disk, and spread over threads.

Kernels are serial and release the GIL; rows are shared by a thread pool of ours, because numba's own
threading layers abort or fight with OpenVINO's.
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
"""What numba is not told yet: it is imported when the first kernel is compiled, on a GPU perhaps never."""

_telling = threading.Lock()


@functools.cache
def compiled(kernel: _Function) -> _Function:
    """Return the kernel as machine code: loaded from disk, or compiled on its first call and kept there."""
    import numba  # noqa: PLC0415 - takes a second

    _tell_numba_of_parts()
    # Not a decorator: njit(cache=True) looks for a writable folder at once, and importing must not fail.
    return cast("_Function", numba.njit(nogil=True, cache=True)(kernel))


def part_of_kernel(function: _Function) -> _Function:
    """Mark a function that kernels call."""
    _parts.append(function)
    return function


def _tell_numba_of_parts() -> None:
    from numba.extending import register_jitable  # noqa: PLC0415 - takes a second

    with _telling:
        while _parts:
            # Not inline="always": with numba 0.68.1 that frees arrays which inlined loops still write to.
            register_jitable(_parts.pop(0))


def keep_kernels_in(folder: Path) -> None:
    """Keep compiled kernels in this folder; to be called before the first kernel is used.

    Args:
        folder: machine code is loaded from it: nobody else may write there.
    """
    import numba  # noqa: PLC0415 - takes a second

    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]  # made from the environment


def in_bands(
    work: Callable[[int, int], _Result], size: ImageSize, executor: Executor | None, *, band_pixels: int
) -> list[_Result]:
    """Call ``work(first, last)`` for bands of rows that together are all rows.

    Args:
        work: what is done to rows [first, last).
        size: of the picture.
        executor: its threads share the bands; None: the calling thread does all rows, in bands.
        band_pixels: of one band, about.
    """
    band = max(1, band_pixels // size.width)
    firsts = range(0, size.height, band)
    lasts = [min(first + band, size.height) for first in firsts]
    return list((executor.map if executor else map)(work, firsts, lasts))
