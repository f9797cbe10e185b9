"""Notebooks run as they are, are stored without outputs, and agree with their paired scripts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.py"))


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_notebooks() -> None:
    assert "tour" in NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pairs_agree_and_hold_no_outputs(name: str) -> None:
    import jupytext

    notebook = jupytext.read(FOLDER / f"{name}.ipynb")
    assert cells(notebook) == cells(jupytext.read(FOLDER / f"{name}.py"))
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # those of the kernel's own machinery; the notebook runs in another process
        import jupytext
        from nbclient import NotebookClient

        notebook = jupytext.read(FOLDER / f"{name}.ipynb")
        NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) >= 5
    assert not any(output.get("name") == "stderr" for output in outputs), "a cell warns"
