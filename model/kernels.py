"""How numba's kernels are compiled, kept on disk, and spread over threads.

Kernels are serial and release the GIL; rows are shared by a thread pool of ours, because numba's own
threading layers abort or fight with OpenVINO's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.extending import register_jitable

from model.preprocess import ImageSize

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Result = TypeVar("_Result")


@functools.cache
def compiled(kernel: _Function) -> _Function:
    """Return the kernel as machine code: loaded from disk, or compiled on its first call and kept there."""
    # Not a decorator: njit(cache=True) looks for a writable folder at once, and importing must not fail.
    return cast("_Function", numba.njit(nogil=True, cache=True)(kernel))


def part_of_kernel(function: _Function) -> _Function:
    """Mark a function that kernels call."""
    # Not inline="always": with numba 0.68.1 that frees arrays which inlined loops still write to.
    return register_jitable(function)


def keep_kernels_in(folder: Path) -> None:
    """Keep compiled kernels in this folder; to be called before the first kernel is used.

    Args:
        folder: machine code is loaded from it: nobody else may write there.
    """
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
