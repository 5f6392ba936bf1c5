"""A journal as a Jupyter notebook, format 4.5; the only user of nbformat.

Notebooks are never signed, and hold what a session put out, HTML included: Jupyter shows that only when trusted.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable
from typing import Any

from kernel_server.errors import FileError
from kernel_server.text import encodable

_JSON_TYPE = re.compile(r"application/(.*\+)?json")  # as in nbformat.v4.5.schema.json, mimebundle
BINARY_TYPES = ("image/png", "image/jpeg", "image/gif", "application/pdf")


def make_notebook(cells: Iterable[dict[str, Any]], session_id: str, python: str) -> str:
    """The notebook's text.

    Args:
        cells: records of a journal.
        python: version of the kernels' Python, such as `3.13.5`; "" if it is not known.

    Raises:
        FileError: the records do not make a valid notebook.
    """
    import nbformat
    from nbformat import v4

    notebook = v4.new_notebook(
        metadata={
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
    )
    generation = 1
    for number, record in enumerate(cells):
        if record.get("remark"):
            generation = record["generation"]
            notebook.cells.append(v4.new_markdown_cell(encodable(record["source"]), id=f"remark-{number}"))
            continue
        if record["generation"] != generation:
            generation = record["generation"]
            text = f"*A fresh kernel (generation {generation}) starts here: variables of the cells above are gone.*"
            notebook.cells.append(v4.new_markdown_cell(text, id=f"generation-{number}"))
        notebook.cells.append(_code_cell(record, number))
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        raise FileError(f"The transcript does not make a valid notebook: {encodable(str(error))[:300]}") from error
    return str(nbformat.writes(notebook, version=4))


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
            "notes": [encodable(note) for note in record["notes"]],
        },
    }
    return v4.new_code_cell(
        encodable(record["source"]),
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
    match value:
        case float() if not math.isfinite(value):
            return None  # no JSON, though Python writes it: JupyterLab could not open the notebook
        case str():
            return value if value.isascii() else encodable(value)
        case list():
            return [_clean(item) for item in value]
        case dict():
            return {encodable(str(key)): _clean(item) for key, item in value.items()}
    return value
