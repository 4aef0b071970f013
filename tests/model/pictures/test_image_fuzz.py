"""Whatever bytes come, the decoder answers pixels or an error of its own; see ``tests/fuzz_image.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fuzz_image
import pytest

SCRIPT = Path(fuzz_image.__file__)


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])},
    )


@pytest.mark.guarantee("G2")
@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_no_mutant_of_a_picture_gets_anything_but_pixels_or_an_image_error(count: int) -> None:
    done = run(SCRIPT, str(count))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} mutants, nothing found" in done.stdout


def test_a_mutant_is_a_function_of_its_number_and_most_differ() -> None:
    pictures = fuzz_image.seeds()
    mutants = [fuzz_image.mutant(number, pictures) for number in range(200)]
    assert mutants == [fuzz_image.mutant(number, pictures) for number in range(200)]
    assert len({data for _, data in mutants}) > 150


def test_what_kills_a_process_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(SCRIPT.read_text().replace("def check(data: bytes) -> str:", KILLED_AT_THE_SEVENTH))
    done = run(broken, "10", "--workers", "1")
    assert done.returncode == 1
    assert "mutant 6 (of picture " in done.stdout
    assert "ended with -11" in done.stdout


KILLED_AT_THE_SEVENTH = """
calls = iter(range(100))
def check(data: bytes) -> str:
    if next(calls) == 7:  # the first call warms up
        os.kill(os.getpid(), signal.SIGSEGV)
    return "ok"
def unused(data: bytes) -> str:
"""
