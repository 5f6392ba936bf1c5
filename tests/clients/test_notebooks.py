"""The example notebooks run from top to bottom, with the python3 kernel of this environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.clients.wire import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_SECONDS = 120


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    """Ours: outputs belong to a run; kept in git they would grow old and fill every diff."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [None] * len(code)
    assert [cell.outputs for cell in code] == [[]] * len(code)


EXPECTED = {
    "branches.ipynb": (
        0,
        (
            "checkpoint: c1\n",
            "The session is as it was after In [1] again (generation 2).",
            "(426, 31)",
            "logistic regression: 0.9",
            "random forest: 0.9",
            "gradient boosting: 0.9",
            ", checkpoints c1 'data loaded'",
            " after In [2]",
            "Wrote a notebook of 7 cells to 'best.ipynb'",
        ),
    ),
    "quickstart.ipynb": (
        1,
        (
            "session_id: ",
            "[variables: new tides DataFrame (25, 1)]",
            "[variables: new ax Axes. files: new tides.png (",
            "ValueError: could not convert string to float: 'high tide'",
            "tides DataFrame (25, 1)\nax Axes\n[kernel-server]\n[nothing is running]",
            "203 bytes  tides.csv",
            "; this is the output so far. Call wait(",
            "[running for ",
            "Interrupted after ",
            "KeyboardInterrupt\n[kernel-server]\n[The cell was interrupted.]\n[variables: new step int]",
            " bytes left out; read_output(session_id=",
            "4322: hour 4321: 0.73 m",
            "above 3.0 m in 7 of 25 hours",
            "above 2.5 m in 10 hours",
            "['tides.ipynb', 'tides.png']",
            "A fresh kernel is ready (generation 2)",
        ),
    ),
}


@pytest.mark.docker
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 2: a test executes the quickstart. A cell that raises fails it."""
    # The kernelspec python3 of the environment that runs the tests, not of another one on this machine.
    monkeypatch.setenv("JUPYTER_PATH", os.path.join(sys.prefix, "share", "jupyter"))
    monkeypatch.setenv("PY_EXEC_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    texts = "".join(
        str(output.get("text", output.get("data", {}).get("text/plain", "")))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    images = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    pictures, wanted = EXPECTED[path.name]
    assert len(images) == pictures
    for expected in wanted:
        assert expected in texts
