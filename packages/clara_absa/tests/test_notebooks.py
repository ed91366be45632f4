"""The notebooks run from top to bottom, cell by cell, in a folder of their own."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.mark.parametrize("name", ["test_data_utils", pytest.param("model_train", marks=pytest.mark.slow)])
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    held: dict[str, object] = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"{name} cell {number}", "exec"), held)  # the notebook is ours
