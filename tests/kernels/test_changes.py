"""What a kernel reports of a cell's changes: hostile data, and the line that is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_server.kernels.changes import (
    KEY,
    MAX_LISTED,
    MAX_PATH,
    MAX_TEXT,
    Changes,
    File,
    FileChanges,
    Look,
    Variable,
    VariableChanges,
    changes_of,
    look_of,
)
from kernel_server.tools.summary import change_line


def deep(depth: int) -> Any:
    """JSON that is nested `depth` levels."""
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


def variables(**fields: Any) -> Any:
    """A report of one variable."""
    return {"variables": {"created": [{"name": "x", **fields}]}}


def files(**fields: Any) -> Any:
    """A report of one file."""
    return {"files": {"changed": [{"path": "x", **fields}]}}


BAD: dict[str, Any] = {
    "number": 5,
    "text": "variables",
    "list": [1],
    "variables is a list": {"variables": []},
    "created is a dict": {"variables": {"created": {"name": "x"}}},
    "name is a number": variables(name=1),
    "name is long": variables(name="x" * 201),
    "type is long": variables(type="x" * 201),
    "type is None": variables(type=None),
    "type cannot be encoded": variables(type="\ud800"),
    "value is long": variables(value="x" * 201),
    "shape is a text": variables(shape="33"),
    "shape of texts": variables(shape=["3"]),
    "shape of booleans": variables(shape=[True]),
    "shape is negative": variables(shape=[-1]),
    "shape is beyond JSON": variables(shape=[1 << 53]),
    "shape is long": variables(shape=[1] * 65),
    "shape is deep": variables(shape=deep(900)),
    "path is long": files(path="x" * (MAX_PATH + 1)),
    "path cannot be encoded": files(path="a\udcff"),
    "path is bytes": files(path=b"x"),
    "size is a fraction": files(size=1.5),
    "size is infinite": files(size=float("inf")),
    "many variables": {"variables": {"removed": [{"name": "x"}] * (MAX_LISTED + 1)}},
    "many files": {"files": {"removed": [{"path": "x"}] * (MAX_LISTED + 1)}},
    "more is a list": {"variables": {"more": [1]}},
    "more of something else": {"variables": {"more": {"invented": 1}}},
    "much more": {"variables": {"more": {str(number): number for number in range(10**5)}}},
    "half of it is good": {**files(), "variables": 1},
}


@pytest.mark.parametrize("report", BAD.values(), ids=BAD)
def test_report_of_another_form_is_not_there(report: Any) -> None:
    """DESIGN: everything that comes out of a kernel is hostile data."""
    assert changes_of({KEY: report}) == Changes()


@pytest.mark.parametrize("metadata", [None, 5, "x", [], {}, {KEY: {}}, {"other": 1}], ids=repr)
def test_metadata_without_a_report_is_none(metadata: Any) -> None:
    """Jupyter messaging: any kernel may leave its metadata empty."""
    assert changes_of(metadata) == Changes()


def test_report_is_read() -> None:
    """container/README.md; what later versions add is passed over."""
    report = {
        "variables": {
            "created": [{"name": "a", "type": "ndarray", "shape": [3, 2], "dtype": "float64", "later": 1}],
            "removed": [{"name": "b"}],
            "more": {"created": 7},
        },
        "files": {"changed": [{"path": "f", "size": 1200}]},
        "later": [],
    }
    changes = Changes(
        variables=VariableChanges(
            created=[Variable(name="a", type="ndarray", shape=[3, 2], dtype="float64")],
            removed=[Variable(name="b")],
            more={"created": 7},
        ),
        files=FileChanges(changed=[File(path="f", size=1200)]),
    )
    assert changes_of({KEY: report}) == changes
    line = "variables: new a ndarray float64 (3, 2) and 7 more; removed b. files: changed f (1.2 KB)"
    assert change_line(changes) == line


def test_line_is_one_line_whatever_the_names() -> None:
    """Ours: a file may have any name; the line stays the last one, and bounded."""
    created = [File(path=f"a\nb\x1b[31m\u2028{'x' * 900}{number}", size=0) for number in range(MAX_LISTED)]
    line = change_line(Changes(files=FileChanges(created=created)))
    assert line.splitlines() == [line]
    assert "\x1b" not in line
    assert len(line) < 3_000
    assert line.endswith("and 38 more")


@pytest.mark.parametrize(
    "content",
    [
        {"variables": 5},
        {"variables": [{"name": "x"}] * 1001},
        {"variables": [{"name": "x", "value": 5}]},
        {"text": "x" * (MAX_TEXT + 1)},
        {"error": "x" * (MAX_TEXT + 1)},
        {"text": "\ud800"},
        {"text": 5},
        {"more": -1},
        [],
        None,
    ],
    ids=lambda content: repr(content)[:40],
)
def test_look_of_another_form_is_an_error(content: Any) -> None:
    """DESIGN: everything that comes out of a kernel is hostile data. The model is told, since it asked."""
    assert look_of(content) == Look(error="The kernel's answer cannot be read.")


def test_more_kinds_than_there_are_is_not_there() -> None:
    """Ours: each would be an error with a text of its own, half a second for 300 000 of them."""
    more = {f"kind {number}": 1 for number in range(4)}
    assert changes_of({KEY: {"variables": {"created": [{"name": "x"}], "more": more}}}) == Changes()
