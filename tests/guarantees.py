"""The guarantees of ``guarantees.toml``, the tests that hold them, and how these tests ended last.

A test carries ``@pytest.mark.guarantee("G7")``, with one or more ids. ``make guarantees`` runs these tests
with this module as a plug-in of pytest, which notes outcome and date of each test in ``guarantees.json``.
``make reference`` writes ``docs/reference/guarantees.md`` from all three.
"""

from __future__ import annotations

import ast
import datetime as dt
import json
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
RESULTS = TESTS / "guarantees.json"
MARK = "guarantee"


@dataclass(frozen=True)
class Guarantee:
    """One row of the table.

    Attributes:
        id: the argument of the mark.
        what: subject.
        promise: what the tests check, with its figures.
        not_tested: what no test of this repository checks, and why; empty if nothing is left.
    """

    id: str
    what: str
    promise: str
    not_tested: str = ""


def guarantees() -> list[Guarantee]:
    """Return all rows in their order."""
    rows = tomllib.loads((TESTS / "guarantees.toml").read_text("utf-8"))
    return [Guarantee(name, **fields) for name, fields in rows.items()]


@dataclass(frozen=True)
class LastResult:
    """The last run of a test with all its parameters.

    Attributes:
        outcome: ``passed``, ``failed`` or ``skipped``.
        cases: how many sets of parameters ran.
        date: day of the run, ISO 8601.
    """

    outcome: str
    cases: int
    date: str


# --- the tests --------------------------------------------------------------------------------------------


def marked_tests(folder: Path = TESTS) -> dict[str, list[str]]:
    """Return the ids of the tests of each guarantee, ``path::name``, without importing any."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("test_*.py")):
        for function in ast.parse(path.read_text("utf-8")).body:
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for name in _marks(function):
                    found[name].append(f"{path.relative_to(folder.parent)}::{function.name}")
    return dict(found)


def _marks(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"pytest.mark.{MARK}":
            yield from (ast.literal_eval(argument) for argument in decorator.args)


# --- the results ------------------------------------------------------------------------------------------


def stored_results(path: Path = RESULTS) -> dict[str, LastResult]:
    """Return the last result of each test that ran."""
    plain = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {test: LastResult(**fields) for test, fields in plain.items()}


def store_results(results: Mapping[str, LastResult], path: Path = RESULTS) -> None:
    """Add results to the stored ones; a test that no longer carries the mark is dropped."""
    marked = {test for tests in marked_tests().values() for test in tests}
    merged = {test: result for test, result in {**stored_results(path), **results}.items() if test in marked}
    lines = json.dumps({test: asdict(merged[test]) for test in sorted(merged)}, indent=1)
    path.write_text(lines + "\n", "utf-8")


def joined(outcomes: Mapping[str, list[str]], date: str) -> dict[str, LastResult]:
    """Return the result of each test from the outcomes of its cases: the worst one counts."""
    return {
        test: LastResult(max(cases, key=("passed", "skipped", "failed").index), len(cases), date)
        for test, cases in outcomes.items()
    }


# --- the plug-in of pytest --------------------------------------------------------------------------------


class Recorder:
    """Notes how the tests with the mark end, if all of their cases run."""

    def __init__(self) -> None:
        self._outcomes: dict[str, dict[str, str]] = defaultdict(dict)
        self._incomplete: set[str] = set()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Note which tests run without some of their cases."""
        self._incomplete |= {item.nodeid.partition("[")[0] for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a step of a test: a failure of any step counts."""
        if MARK in report.keywords:
            cases = self._outcomes[report.nodeid.partition("[")[0]]
            if report.outcome != "passed" or report.when == "call":
                cases[report.nodeid] = report.outcome

    def pytest_sessionfinish(self) -> None:
        """Store what was noted."""
        whole = self._outcomes.keys() - self._incomplete
        outcomes = {
            test: list(cases.values()) for test, cases in self._outcomes.items() if cases and test in whole
        }
        store_results(joined(outcomes, dt.datetime.now(dt.UTC).date().isoformat()))


def pytest_configure(config: pytest.Config) -> None:
    """Begin to note."""
    config.pluginmanager.register(Recorder())


# --- the page ---------------------------------------------------------------------------------------------


def page(note: str) -> str:
    """Return the page ``docs/reference/guarantees.md``."""
    marked, results = marked_tests(), stored_results()
    lines = [
        "# Guarantees and their tests",
        "",
        note,
        "",
        "Each row is held by the tests that it names. `make guarantees` runs them and notes result and date",
        'here; `make guarantees ARGS="-k swap"` runs some of them.',
        "",
        "| | guarantee | tests, and how they ended last |",
        "| --- | --- | --- |",
    ]
    for row in guarantees():
        texts = [f"**{row.what}.** {row.promise}".strip()]
        if row.not_tested:
            texts.append(f"*Not tested:* {row.not_tested}")
        tests = [f"`{test}`: {_result(results.get(test))}" for test in marked.get(row.id, [])]
        lines.append(f"| {row.id} | {'<br>'.join(texts)} | {'<br>'.join(tests)} |")
    return "\n".join(lines) + "\n"


def _result(result: LastResult | None) -> str:
    if result is None:
        return "not run yet"
    cases = f" ({result.cases} cases)" if result.cases > 1 else ""
    return f"{result.outcome} on {result.date}{cases}"
