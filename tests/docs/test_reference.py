"""The pages below ``docs/reference`` say what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("generate_reference", ROOT / ".ci/generate_reference.py")
assert _spec is not None
assert _spec.loader is not None
generate_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate_reference)


@pytest.mark.parametrize("name", ["settings.md", "errors.md", "metrics.md", "python-api.md", "guarantees.md"])
def test_a_reference_page_is_what_the_code_generates(name: str) -> None:
    written = (ROOT / "docs/reference" / name).read_text("utf-8")
    assert written == generate_reference.pages()[name], "run `make reference`"
