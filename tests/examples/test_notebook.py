"""The notebook runs in a real kernel, whose event loop runs already, and shows its plots."""

import base64
import json
from typing import Any

import nbclient
import nbformat
import pytest

from penstock.runtime.machine.timings import keep
from tests.support.timings import KEPT

from .conftest import EXAMPLES, SECONDS

NOTEBOOK = EXAMPLES / "memory_budgets.ipynb"
FACTS = """
import json, threading
hits = [each.hit_ratio for each in measured]
plan = [row.forecast.hit_ratio for row in planned.curve]
print(json.dumps([hits, plan, len(ticks), [t.name for t in threading.enumerate() if "penstock" in t.name]]))
"""


def outputs(notebook: Any, kind: str) -> list[Any]:
    return [out for cell in notebook.cells for out in cell.get("outputs", ()) if out["output_type"] == kind]


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 4
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_it_runs_and_shows_its_plots(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel has one of its own, which shows plots in the notebook
    keep(KEPT, "auto")  # else planning measures this machine, for some seconds
    notebook = nbformat.read(NOTEBOOK, 4)
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS))
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(EXAMPLES)}}).execute()

    plots = [base64.b64decode(out["data"]["image/png"]) for out in outputs(notebook, "display_data")]
    assert len(plots) == 2
    assert all(plot.startswith(b"\x89PNG") and len(plot) > 4000 for plot in plots)
    printed = "".join(out["text"] for out in outputs(notebook, "stream") if out["name"] == "stdout")
    assert "the old man" in printed
    hits, plan, ticks, threads = json.loads(printed.splitlines()[-1])
    assert len(hits) == 6
    assert hits == sorted(hits)
    assert len(plan) > 4
    assert 0 <= plan[0] < 0.9 < plan[-1] <= 1, plan
    assert ticks > 0
    assert threads == []
