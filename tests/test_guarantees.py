"""The table of guarantees has a test for each row, and notes what became of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import guarantees
import pytest
from guarantees import LastResult, joined, marked_tests, stored_results

MARKED = """
import pytest

@pytest.mark.guarantee("G1")
@pytest.mark.parametrize("number", [1, 2])
def test_with_cases(number):
    assert number == {number}

@pytest.mark.guarantee("G1", "G2")
def test_alone():
    pass

@pytest.mark.guarantee("G2")
def test_without_its_fixture(fails):
    pass

@pytest.fixture
def fails():
    raise OSError

def test_of_no_guarantee():
    pass
"""


def test_every_row_has_a_test_or_says_why_not_and_every_mark_has_a_row() -> None:
    rows = {row.id: row for row in guarantees.guarantees()}
    assert list(rows) == [f"G{number}" for number in range(1, 27)]
    marked = marked_tests()
    assert marked.keys() <= rows.keys()
    without = {name for name, row in rows.items() if name not in marked and not row.not_tested}
    assert not without
    assert all(row.promise for name, row in rows.items() if name in marked)


def test_the_worst_case_is_the_result_of_a_test() -> None:
    outcomes = {"a": ["passed", "failed", "skipped"], "b": ["skipped", "passed"], "c": ["passed"]}
    assert joined(outcomes, "2026-01-01") == {
        "a": LastResult("failed", 3, "2026-01-01"),
        "b": LastResult("skipped", 2, "2026-01-01"),
        "c": LastResult("passed", 1, "2026-01-01"),
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with this module and one file of tests, all of whose results are old."""
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(guarantees.__file__, tests)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = guarantee\n")
    (tests / "test_some.py").write_text(MARKED.format(number=1))
    (tests / "guarantees.json").write_text(
        '{"tests/test_gone.py::test_gone": {"outcome": "passed", "cases": 1, "date": "2001-01-01"},'
        ' "tests/test_some.py::test_alone": {"outcome": "failed", "cases": 1, "date": "2001-01-01"}}'
    )
    return tmp_path


def run(checkout: Path, *arguments: str) -> dict[str, LastResult]:
    command = [sys.executable, "-m", "pytest", "-p", "guarantees", "-m", "guarantee", *arguments]
    subprocess.run(
        command,
        cwd=checkout,
        env={"PYTHONPATH": str(checkout / "tests")},
        check=False,
        stdout=subprocess.DEVNULL,
    )
    return stored_results(checkout / "tests" / "guarantees.json")


def test_a_run_notes_each_marked_test_and_forgets_those_that_are_gone(checkout: Path) -> None:
    results = run(checkout)
    outcomes = {test.partition("::")[2]: (result.outcome, result.cases) for test, result in results.items()}
    assert outcomes == {
        "test_with_cases": ("failed", 2),
        "test_alone": ("passed", 1),
        "test_without_its_fixture": ("failed", 1),
    }
    assert all(result.date > "2026" for result in results.values())


def test_a_run_of_some_leaves_the_results_of_the_others(checkout: Path) -> None:
    results = run(checkout, "-k", "cases")
    assert results["tests/test_some.py::test_alone"] == LastResult("failed", 1, "2001-01-01")
    assert results["tests/test_some.py::test_with_cases"].outcome == "failed"


def test_a_run_of_some_cases_is_no_result(checkout: Path) -> None:
    assert "tests/test_some.py::test_with_cases" not in run(checkout, "-k", "cases and 1")
