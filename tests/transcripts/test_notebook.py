"""The notebook made of a journal: always valid, whatever a session put out."""

from __future__ import annotations

import base64
import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from kernel_server.kernels.outputs import Display, Error, Output, Outputs, Stream
from kernel_server.transcripts.journal import Journal
from kernel_server.transcripts.notebook import MAX_LINES, make_notebook, notebook_pieces
from tests.transcripts.test_journal import SESSION_ID, cell

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(10)).decode()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def notebook_of(tmp_path: Path, *outputs: Output, **more: Any) -> Any:
    """What a reader makes of a session with one cell of these outputs."""
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(cell(outputs=Outputs(list(outputs)), **more))
    return read(make_notebook(journal.cells(), SESSION_ID, "3.13.5"))


def read(text: str) -> Any:
    """As JupyterLab would: strict JSON, UTF-8, valid nbformat 4.5."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(text.encode().decode(), parse_constant=refuse)
    notebook = nbformat.reads(text, as_version=nbformat.NO_CONVERT)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    return notebook


def test_notebook_has_kernelspec_sources_outputs_and_timings(tmp_path: Path) -> None:
    """Issue 2, notebook: valid nbformat 4.5 with outputs, timings and kernelspec; it opens in JupyterLab."""
    notebook = notebook_of(
        tmp_path,
        Stream("stdout", "printed\n"),
        Display({"image/png": PNG, "text/plain": "<Figure>"}, {}),
        Display({"text/plain": "42"}, {}, 1),
        Error("ValueError", "why", ["Traceback", "ValueError: why"]),
        status="error",
    )
    assert notebook.metadata.kernelspec == {
        "name": "python3",
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
    }
    assert notebook.metadata.language_info.version == "3.13.5"
    (only,) = notebook.cells
    assert (only.cell_type, only.source, only.execution_count) == ("code", "1", 1)
    assert [output.output_type for output in only.outputs] == ["stream", "display_data", "execute_result", "error"]
    assert only.outputs[1].data["image/png"] == PNG
    assert only.metadata.execution["iopub.status.busy"] == "2026-01-01T12:00:00+00:00"
    assert only.metadata.execution["shell.execute_reply"] == "2026-01-01T12:00:01.500000+00:00"
    assert only.metadata.kernel_server == {"status": "error", "generation": 1, "notes": []}
    assert "signature" not in notebook.metadata
    assert "trusted" not in only.metadata


def test_empty_session_makes_a_valid_notebook() -> None:
    """Ours."""
    assert read(make_notebook([], SESSION_ID, "")).cells == []


def test_new_generation_is_marked(tmp_path: Path) -> None:
    """DESIGN, loss: the reader sees where the variables of the cells above are gone."""
    journal = Journal(tmp_path / "j.jsonl")
    for source, generation in (("a", 1), ("b", 1), ("c", 2), ("d", 4)):
        journal.append(cell(source, generation=generation))
    notebook = read(make_notebook(journal.cells(), SESSION_ID, ""))
    shown = [
        one.source if one.cell_type == "code" else one.source.partition("generation ")[2][0] for one in notebook.cells
    ]
    assert shown == ["a", "b", "2", "c", "4", "d"]
    assert len({one.id for one in notebook.cells}) == len(notebook.cells)


HOSTILE_OUTPUTS: dict[str, Output] = {
    "surrogates in text": Stream("stdout", "a\ud800b"),
    "surrogates in a bundle": Display({"text/plain": "\udfff", "text/\ud800": "x"}, {"\ud800": ["\ud800"]}),
    "surrogates in an error": Error("\ud800", "\ud800", ["\ud800"]),
    "control characters": Stream("stdout", "\x00\x1b[31m\x07"),
    "text that is none": Display({"text/plain": {"a": 1}, "text/html": 5, "text/latex": None}, {}),
    "list of lines": Display({"text/plain": ["a\n", "b"]}, {}),
    "list of no lines": Display({"text/plain": ["a", 1]}, {}),
    "image that is no base64": Display({"image/png": "!!!!", "image/jpeg": "A"}, {}),
    "image that is a number": Display({"image/png": 5}, {}),
    "empty type": Display({"": "x", " ": "y", "/": "z"}, {}),
    "json of any kind": Display({"application/json": [1, {"a": None}], "application/vnd.x+json": 5}, {}),
    "json that is none": Display({"text/json": {"a": 1}, "application/xjson": {"a": 1}, "json": [1]}, {}),
    "not a number": Display({"application/json": {"x": math.nan, "y": [math.inf, -math.inf]}}, {"z": math.nan}),
    "huge numbers": Display({"application/json": {"x": 10**300}}, {}),
    "deep json": Display({"application/json": nested(100)}, nested(90)),
    "negative count": Display({"text/plain": "x"}, {}, -1),
    "script": Display({"text/html": "<script>alert(1)</script>", "application/javascript": "alert(1)"}, {}),
    "nothing": Display({}, {}),
}


@pytest.mark.parametrize("output", HOSTILE_OUTPUTS.values(), ids=HOSTILE_OUTPUTS.keys())
def test_hostile_output_makes_a_valid_notebook(tmp_path: Path, output: Output) -> None:
    """facts/security.md H12: one hostile output must not cost the whole transcript."""
    notebook = notebook_of(tmp_path, Stream("stdout", "before"), output)
    (only,) = notebook.cells
    assert only.outputs[0].text == "before"
    assert len(only.outputs) == 2 or isinstance(output, Stream)


def test_good_parts_of_a_hostile_bundle_are_kept(tmp_path: Path) -> None:
    """Ours: the positive control of the table above."""
    bundle = {"image/png": PNG, "text/plain": "shown", "text/html": {"no": "text"}, "application/json": {"a": 1}}
    notebook = notebook_of(tmp_path, Display(bundle, {"kept": True}))
    (output,) = notebook.cells[0].outputs
    assert output.data == {"image/png": PNG, "text/plain": "shown", "application/json": {"a": 1}}
    assert output.metadata == {"kept": True}


@pytest.mark.parametrize(
    "more",
    [
        {"execution_count": -3},
        {"execution_count": 0},
        {"notes": ["\ud800"]},
        {"status": "died", "generation": 5},
    ],
)
def test_hostile_cell_makes_a_valid_notebook(tmp_path: Path, more: dict[str, Any]) -> None:
    """facts/security.md H12: the kernel made up its execution count."""
    notebook_of(tmp_path, **more)


def test_source_with_surrogates_is_valid_utf8(tmp_path: Path) -> None:
    """facts/security.md H12: nbformat.write raises on a lone surrogate, and leaves a file of 0 bytes."""
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(cell("print('\ud800')"))
    assert read(make_notebook(journal.cells(), SESSION_ID, "")).cells[0].source == "print('\ufffd')"


def many(count: int, size: int) -> Iterator[dict[str, Any]]:
    """Records of cells with so many bytes of output each."""
    for number in range(count):
        output = {"output_type": "stream", "name": "stdout", "text": f"{number}" + "x" * size}
        yield {**RECORD, "source": "large", "outputs": [output]}


RECORD = {
    "source": "1",
    "execution_count": 1,
    "status": "ok",
    "generation": 1,
    "begun": "",
    "ended": "",
    "notes": [],
    "outputs": [],
}


def test_text_is_that_of_nbformat(tmp_path: Path) -> None:
    """Ours: written in pieces, it is what Jupyter itself would write, so that saving it there changes nothing."""
    outputs = (
        Stream("stdout", "one\ntwo\r\n\u2028three"),
        Stream("stderr", "ü" * 200_000 + "\n"),
        Display(
            {"image/png": PNG, "text/plain": "a\nb", "image/svg+xml": "<a>\n", "application/json": {"b": [], "a": 1}},
            {},
        ),
        Display({"text/plain": "42"}, {"x": {}, "list": [1, "a", [True, None]]}, 1),
        Error("ValueError", "why", ["a\nb", "c"]),
    )
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(cell("a = 1\nb", outputs=Outputs(list(outputs)), notes=["note"]))
    journal.append(cell("*remark*\nof two lines", remark=True))
    journal.append(cell("", generation=2))
    empty: list[dict[str, Any]] = []
    for records in (empty, journal.cells()):
        text = make_notebook(records, SESSION_ID, "3.13.5")
        assert text == nbformat.writes(nbformat.reads(text, as_version=nbformat.NO_CONVERT))


def test_notebook_takes_the_memory_of_one_cell(tmp_path: Path) -> None:
    """Ours: export_notebook of 12 large cells took 1.2 GB. The control is the notebook as one text."""
    count, size = 12, 2_000_000

    def peak(make: Any) -> int:
        tracemalloc.start()
        try:
            make()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    make_notebook([], SESSION_ID, "")  # what is imported does not count
    assert peak(lambda: sum(map(len, notebook_pieces(many(count, size), SESSION_ID, "")))) < 5 * size
    assert peak(lambda: make_notebook(many(count, size), SESSION_ID, "")) > count * size
    with pytest.raises(OverflowError):
        make_notebook(many(count, size), SESSION_ID, "", limit=3 * size)


def test_text_of_very_many_lines_stays_one_text(tmp_path: Path) -> None:
    """Ours: as a list of lines, a megabyte of line ends would take 50 MB of memory."""
    notebook = make_notebook(
        [{**RECORD, "outputs": [{"output_type": "stream", "name": "stdout", "text": "\r" * (MAX_LINES + 1)}]}],
        SESSION_ID,
        "",
    )
    assert json.loads(notebook)["cells"][0]["outputs"][0]["text"] == "\r" * (MAX_LINES + 1)
    assert read(notebook).cells[0].outputs[0].text == "\r" * (MAX_LINES + 1)
