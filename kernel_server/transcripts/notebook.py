"""A journal as a Jupyter notebook, format 4.5; the only user of nbformat.

Notebooks are never signed, and hold what a session put out, HTML included: Jupyter shows that only when trusted.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from kernel_server.errors import FileError
from kernel_server.text import encodable
from kernel_server.transcripts.pieces import json_pieces

_JSON_TYPE = re.compile(r"application/(.*\+)?json")  # as in nbformat.v4.5.schema.json, mimebundle
SPLIT_TYPES = ("application/javascript", "image/svg+xml")  # beside text/*: as in nbformat.v4.rwbase
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # where str.splitlines splits
MAX_LINES = 100_000
BINARY_TYPES = ("image/png", "image/jpeg", "image/gif", "application/pdf")


def notebook_pieces(cells: Iterable[dict[str, Any]], session_id: str, python: str) -> Iterator[bytes]:
    """The notebook's text, as `nbformat.write` gives it, with no more than one cell in memory.

    Args:
        cells: records of a journal.
        python: version of the kernels' Python, such as `3.13.5`; "" if it is not known.

    Raises:
        FileError: the records do not make a valid notebook.
    """
    separator = b"\n  "
    yield b'{\n "cells": ['
    for cell in _notebook_cells(cells):
        yield separator
        yield from _encoded(cell, 2)
        separator = b",\n  "
    yield b"]" if separator == b"\n  " else b"\n ]"
    for name, value in sorted(_empty_notebook(session_id, python).items()):
        if name != "cells":
            yield f',\n "{name}": '.encode()
            yield from _encoded(value, 1)
    yield b"\n}"


def make_notebook(cells: Iterable[dict[str, Any]], session_id: str, python: str, limit: float = math.inf) -> str:
    """The whole of it as one text; raises as `notebook_pieces`.

    Raises:
        OverflowError: it has more than `limit` bytes.
    """
    pieces, size = [], 0
    for piece in notebook_pieces(cells, session_id, python):
        size += len(piece)
        if size > limit:
            raise OverflowError
        pieces.append(piece)
    return b"".join(pieces).decode()


def _encoded(value: Any, indent: int) -> Iterator[bytes]:
    for piece in json_pieces(value, indent):
        yield encodable(piece).encode()


def _empty_notebook(session_id: str, python: str) -> dict[str, Any]:
    from nbformat import v4

    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
        "language_info": {
            "name": "python",
            "version": python,
            "mimetype": "text/x-python",
            "file_extension": ".py",
            "pygments_lexer": "ipython3",
            "nbconvert_exporter": "python",
            "codemirror_mode": {"name": "ipython", "version": 3},
        },
        "kernel_server": {"session_id": session_id},
    }
    return dict(v4.new_notebook(metadata=metadata))


def _notebook_cells(cells: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The cells, each of which is valid by itself; ids are made of numbers, and so none comes twice."""
    from nbformat import ValidationError, v4

    generation = 1
    for number, record in enumerate(cells):
        try:
            if record.get("remark"):
                generation = record["generation"]
                yield _split(v4.new_markdown_cell(record["source"], id=f"remark-{number}"))
                continue
            if record["generation"] != generation:
                generation = record["generation"]
                text = f"*A fresh kernel (generation {generation}) starts here: variables of the cells above are gone.*"
                yield _split(v4.new_markdown_cell(text, id=f"generation-{number}"))
            yield _split(_code_cell(record, number))
        except ValidationError as error:
            raise FileError(f"The transcript does not make a valid notebook: {encodable(str(error))[:300]}") from error


def _split(cell: Any) -> dict[str, Any]:
    """With long texts as lists of lines, as `nbformat.write` has them."""
    cell["source"] = _lines(cell["source"])
    for output in cell.get("outputs", ()):
        if output["output_type"] == "stream":
            output["text"] = _lines(output["text"])
        data = output.get("data", {})
        for mime_type, value in data.items():
            if isinstance(value, str) and (mime_type.startswith("text/") or mime_type in SPLIT_TYPES):
                data[mime_type] = _lines(value)
    return dict(cell)


def _lines(text: str) -> list[str] | str:
    """The schema takes a text whole, too: as a list, one of very many lines would take fifty times its size."""
    return text.splitlines(keepends=True) if sum(map(text.count, LINE_ENDS)) <= MAX_LINES else text


def _code_cell(record: dict[str, Any], number: int) -> Any:
    from nbformat import v4

    metadata = {
        # What JupyterLab shows as a cell's timing: https://jupyterlab.readthedocs.io, "execution" in cell metadata.
        "execution": {
            "iopub.status.busy": record["begun"],
            "iopub.execute_input": record["begun"],
            "iopub.status.idle": record["ended"],
            "shell.execute_reply": record["ended"],
        },
        "kernel_server": {
            "status": record["status"],
            "generation": record["generation"],
            "notes": record["notes"],
        },
    }
    return v4.new_code_cell(
        record["source"],
        id=f"cell-{number}",
        execution_count=max(record["execution_count"], 0) or None,
        metadata=metadata,
        outputs=[_output(output) for output in record["outputs"]],
    )


def _output(output: dict[str, Any]) -> Any:
    from nbformat import from_dict

    cleaned = _clean(output)
    if (cleaned.get("execution_count") or 0) < 0:
        cleaned["execution_count"] = None
    if "data" in cleaned:
        cleaned["data"] = {key: value for key, value in cleaned["data"].items() if _acceptable(key, value)}
    return from_dict(cleaned)


def _acceptable(mime_type: str, value: Any) -> bool:
    """Whether nbformat's schema takes the value: text for all but JSON types; base64 where bytes are meant."""
    if _JSON_TYPE.fullmatch(mime_type):
        return True
    if not isinstance(value, str):
        return False
    if mime_type in BINARY_TYPES:
        try:
            base64.b64decode(value, validate=False)
        except (binascii.Error, ValueError):
            return False
    return True


def _clean(value: Any) -> Any:
    """Lone surrogates in texts are replaced when these are written, in pieces."""
    match value:
        case float() if not math.isfinite(value):
            return None  # no JSON, though Python writes it: JupyterLab could not open the notebook
        case list():
            return [_clean(item) for item in value]
        case dict():
            return {encodable(str(key)): _clean(item) for key, item in value.items()}
    return value
