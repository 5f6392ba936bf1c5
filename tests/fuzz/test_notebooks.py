"""Random outputs through the journal into a notebook: always valid, never trusted or signed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nbformat import ValidationError, validate, writes
from nbformat.v4 import new_code_cell, new_notebook

from kernel_server.files.beneath import opened_folder
from kernel_server.files.transfer import write_text
from kernel_server.kernels.outputs import Outputs
from kernel_server.transcripts.journal import Journal
from kernel_server.transcripts.notebook import make_notebook
from tests.fuzz.hostile import messages, numbers, texts
from tests.fuzz.profiles import EXAMPLES, SLOW_EXAMPLES
from tests.transcripts.test_journal import SESSION_ID, cell
from tests.transcripts.test_notebook import read

OLD = b"the notebook that was there"
counts = st.integers(0, (1 << 53) - 1)
torn = st.sampled_from([b"", b"{", b"null\n", b"[1]\n", b'{"begins": 1}\n', b"\xff\xfe\n", b"[" * 50_000 + b"\n"])


def is_trusted(notebook: Any) -> bool:
    """Jupyter keeps trust in the metadata of code cells, and signatures were in that of the notebook."""
    cells_trusted = any("trusted" in found.metadata for found in notebook.cells)
    return cells_trusted or any(key in notebook.metadata for key in ("signature", "trusted"))


@settings(max_examples=EXAMPLES // 2)
@given(st.lists(st.tuples(st.lists(messages, max_size=6), texts, texts, counts), max_size=3), torn)
@example(
    [
        (
            [("display_data", {"data": {"application/json": [float("nan")]}, "metadata": {"\ud800": -float("inf")}})],
            "",
            "",
            1,
        )
    ],
    b"",
)
def test_notebook_of_any_outputs_is_valid_and_not_trusted(
    ran: list[tuple[list[tuple[str, Any]], str, str, int]], tail: bytes
) -> None:
    """Issue 6: notebooks are never trusted or signed; nbformat takes each of them."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, "j.jsonl"))
        for sent, source, note, count in ran:
            outputs = Outputs()
            for msg_type, content in sent:
                outputs.fold(msg_type, content)
            journal.append(cell(outputs=outputs, source=source, notes=[note], execution_count=count))
        with open(journal.path, "ab") as file:
            file.write(tail)
        journal.last()
        notebook = read(make_notebook(journal.cells(), SESSION_ID, "3.13.5"))
        assert len([found for found in notebook.cells if found.cell_type == "code"]) == len(ran)
        assert not is_trusted(notebook)


@settings(max_examples=SLOW_EXAMPLES)
@given(texts, st.sampled_from(["old.ipynb", "old.ipynb/x", "folder", "x" * 256, "new/old.ipynb"]))
def test_old_notebook_is_whole_or_replaced(text: str, path: str) -> None:
    """facts, T7: the old file is intact on each error; a lone surrogate made nbformat leave an empty one."""
    with tempfile.TemporaryDirectory() as base:
        old = Path(base, "old.ipynb")
        old.write_bytes(OLD)
        Path(base, "folder").mkdir()
        with opened_folder(Path(base), "WORKDIR_OUT") as folder:
            try:
                write_text(folder, path, text, "new.ipynb")
            except Exception:
                assert old.read_bytes() == OLD
        assert old.read_bytes() in (OLD, text.encode("utf-8", "replace"))


@given(numbers | texts)
def test_checks_of_a_notebook_can_fail(value: Any) -> None:
    """The control: what a session says, taken as it is."""
    notebook = new_notebook(cells=[new_code_cell("1", id="a", metadata={"trusted": True})])
    assert is_trusted(notebook)
    notebook.cells[0].outputs = [{"output_type": "stream", "name": value}]
    with pytest.raises(ValidationError):
        validate(notebook)


def test_nan_is_written_as_no_json() -> None:
    """The control: nbformat writes what JupyterLab cannot read."""
    notebook = new_notebook(metadata={"x": float("nan")})
    assert "NaN" in writes(notebook)
    with pytest.raises(AssertionError):
        read(writes(notebook))
    json.loads(writes(new_notebook()))
