"""What a kernel says of itself in replies: changes, variables, its last cell, smaller pictures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kernel_server.kernels.changes import Changes, Look, changes_of, look_of
from kernel_server.kernels.executions import Execution, Input
from kernel_server.kernels.previews import PREVIEW_TYPES, preview_of
from kernel_server.kernels.replays import LastCell, last_cell_of
from kernel_server.text import human_size
from kernel_server.tools.summary import change_line
from kernel_server.tools.variables import _table, _text
from tests.fuzz.hostile import changes, json_values, last_cells, looks, mostly, objects, previews, record, replies

MAX_LINE = 20_000


@given(mostly(record(kernel_server=changes)))
def test_changes_are_of_their_form_or_not_there(metadata: Any) -> None:
    """container/README.md: what is not of this form is not there."""
    found = changes_of(metadata)
    found.model_dump_json()
    line = change_line(found)
    line.encode()
    assert "\n" not in line
    assert len(line) < MAX_LINE


@given(looks | objects)
def test_look_is_shown_or_an_error(content: Any) -> None:
    """The same of `list_variables`."""
    look = look_of(content)
    for text in (_text(look), _table(look)):
        text.encode()
    look.model_dump_json()


@given(mostly(last_cells) | objects, replies | objects, objects)
def test_last_cell_can_be_gone_on_with(content: Any, reply: Any, metadata: Any) -> None:
    """A kernel that served another server before may say anything of its last cell."""
    cell = last_cell_of(content) if isinstance(content, dict) else None
    execution = Execution("x", input=Input())
    if cell is not None:
        assert all(0 <= (cell.number(name, 0, 9) or 0) <= 9 for name in ("timeout", "seconds"))
        if cell.asks:
            Input().ask(cell.asks)
        if cell.reply is not None:
            execution.take_reply(cell.reply, cell.reply_metadata)
            assert execution.replied.is_set()
    execution.take_reply(reply, metadata)
    assert execution.reply is not None
    assert 0 <= execution.reply.execution_count < 1 << 53


@given(previews | json_values)
def test_preview_names_only_pictures_of_the_workspace(note: Any) -> None:
    """previews.py: a note may come from somebody who claims to be kernel_host."""
    preview = preview_of(note)
    if preview:
        assert preview.mime_type in ("", *PREVIEW_TYPES)
        assert not preview.original or preview.original.startswith("images/")
        assert ".." not in preview.original.split("/")
        assert min(preview.width, preview.height) >= 0


@given(st.integers(0, (1 << 53) - 1))
def test_any_size_is_short(size: int) -> None:
    """Sizes are a session's, too."""
    assert len(human_size(size)) < 20


def test_models_alone_raise() -> None:
    """The control: the same without the guard."""
    for model, content in ((Changes, {"variables": 1}), (Look, {"variables": [{"name": "\ud800"}]}), (Look, [])):
        with pytest.raises(ValidationError):
            model.model_validate(content)
    with pytest.raises(AttributeError):
        LastCell("x", "", about=None).number("timeout", 0, 1)  # type: ignore[arg-type]  # what last_cell_of prevents
