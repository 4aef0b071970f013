from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from model.decoding.kernels import compiled, in_bands
from model.pictures.preprocess import ImageSize


@given(height=st.integers(1, 50), width=st.integers(1, 50), band_pixels=st.integers(1, 400))
def test_bands_are_all_rows_once_in_order_and_not_much_larger_than_asked_for(
    height: int, width: int, band_pixels: int
) -> None:
    size = ImageSize(height, width)
    bands = in_bands(lambda first, last: (first, last), size, None, band_pixels=band_pixels)
    assert [row for band in bands for row in range(*band)] == list(range(height))
    assert all(last - first == 1 or (last - first) * width <= band_pixels for first, last in bands)
    with ThreadPoolExecutor(2) as executor:
        shared = in_bands(lambda first, last: (first, last), size, executor, band_pixels=band_pixels)
    assert shared == bands


def test_a_kernel_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    names: dict[str, Callable[[int], int]] = {}
    exec("def double(number): return 2 * number", names)  # of no file, so that there is no folder beside it
    assert compiled(names["double"])(21) == 42


def test_numba_is_imported_with_the_first_kernel_and_not_before() -> None:
    program = """
import sys
sys.modules["numba"] = None
from model.decoding import decode
from model.evaluation import resampling, score_sums
try:
    decode.warm_up()
except ImportError:
    print("needed now")
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "needed now\n"
