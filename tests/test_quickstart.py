"""``examples/quickstart.ipynb``: short, without outputs, and it runs."""

import json
from pathlib import Path

import pytest

from s7jax import s7l

NOTEBOOK = Path(__file__).parent.parent / "examples/quickstart.ipynb"


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_short_and_has_no_outputs():
    cells = code_cells(json.loads(NOTEBOOK.read_text()))
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert sum(len(cell["source"]) for cell in cells) <= 12


@pytest.mark.long(minutes=8)
def test_the_notebook_runs(tmp_path: Path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    cells = code_cells(notebook)
    (plot,) = (cell for cell in cells if "plot" in "".join(cell["source"]))
    shown = plot["outputs"][-1]["data"]["text/html"]
    assert "<svg" in shown
    assert all(f"--c{i}:#" in shown for i in range(4))
    printed = "".join(output.get("text", "") for output in cells[-1]["outputs"])
    assert printed.strip()
    s7l.open(tmp_path / "runs/quickstart/model/moe.s7l").verify()
    assert (tmp_path / "answer.s7p").stat().st_size > 0
