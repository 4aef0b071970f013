"""The notebook of ``examples`` runs as it stands, from a labelled folder to a served mask."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from training.interchange.example import write_example

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/labels_to_mask.ipynb"
CELL_TIMEOUT_S = 900


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook: Any) -> str:
    """Return all that the cells of an executed notebook printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def execute(notebook: Any, folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("BISENET_MODELS__CACHE_FOLDER", str(cache_folder))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return printed(notebook)


def agreement(text: str) -> float:
    """Return the percentage of pixels that the served model labels as the label file does."""
    found = re.search(r"([\d.]+)% of the pixels as labelled", text)
    assert found, text
    return float(found[1])


def test_the_notebook_is_stored_without_outputs(notebook: Any) -> None:
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_notebook_serves_a_mask_after_two_steps_on_eight_pictures_of_ones_own(
    notebook: Any, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_example(tmp_path / "own", splits={"train": 8, "val": 2}, film_s=0).dataset_file
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert re.match(r"STEPS = \d+\b.*\nDATASET_FILE = \"\"", parameters.source)
    parameters.source = f"STEPS = 2\nDATASET_FILE = {str(dataset)!r}"
    monkeypatch.setenv("BISENET_MODELS__PRECISION", "f32")  # "auto" compiles and times several engines first
    text = execute(notebook, tmp_path, shared_cache, monkeypatch)
    assert "streets@1" in text
    assert 0 <= agreement(text) <= 100


@pytest.mark.soak
def test_the_notebook_as_it_stands_serves_a_model_that_knows_the_streets(
    notebook: Any, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert agreement(execute(notebook, tmp_path, shared_cache, monkeypatch)) > 90
