"""What the page weighs in a real browser; ``benchmarks/page.py`` measures what it takes."""

from __future__ import annotations

import pytest
from browser_visit import Visit

playwright_api = pytest.importorskip("playwright.sync_api")
MAX_BYTES = 150_000

WEIGHT = """() => ["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind))
  .reduce((sum, one) => sum + one.transferSize, 0)"""


def test_the_first_visit_of_each_page_takes_few_bytes(visit: Visit, admin: Visit) -> None:
    for page in (visit, admin):
        page.open()
        assert 5_000 < page.page.evaluate(WEIGHT) <= MAX_BYTES


def test_a_second_visit_takes_hardly_any(visit: Visit) -> None:
    visit.open()
    first = visit.page.evaluate(WEIGHT)
    visit.page.reload()
    visit.page.wait_for_load_state("networkidle")
    assert visit.page.evaluate(WEIGHT) < first / 3
