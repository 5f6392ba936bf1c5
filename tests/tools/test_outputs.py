"""read_output: the rest of what was cut, page by page or searched."""

from __future__ import annotations

import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_server.tools.outputs import _search
from tests.driving import Handle, Kit

pytestmark = pytest.mark.anyio


async def test_pages_give_the_whole_text(session: Handle) -> None:
    """Issue 3, get the rest: nothing is lost between pages, and the last one says so."""
    cut = await session.run("for i in range(3000): print(f'line {i:05}')")
    call = re.search(r"read_output\(session_id='(\w+)', execution_count=(\d+)\)", cut.text)
    assert call is not None, cut.text
    assert call[1] == session.session_id
    text, offset = "", 0
    while True:
        page = (await session.call("read_output", execution_count=int(call[2]), offset=offset)).text
        body, _, footer = page.rpartition("\n[characters ")
        text += body
        following = re.search(r"offset=(\d+)", footer)
        if following is None:
            assert footer.endswith("the end]")
            break
        offset = int(following[1])
    assert text.splitlines() == [f"line {i:05}" for i in range(3000)]


async def test_search_gives_numbered_lines(session: Handle) -> None:
    """Issue 3, get the rest: plain text, in any case, so that no pattern can stall the server."""
    await session.run("for i in range(3000): print(f'Line {i:05}')")
    assert (await session.call("read_output", pattern="line 0299")).text.splitlines()[0] == "2991: Line 02990"
    assert (await session.call("read_output", pattern="nothing like it")).text == (
        "(no output)\n[no line holds 'nothing like it']"
    )


async def test_value_error_and_image_are_there(session: Handle) -> None:
    """Ours: what is no text is named."""
    png = "iVBORw0KGgo="
    await session.run(
        f"from IPython.display import display\ndisplay({{'image/png': {png!r}}}, raw=True)\nprint(1)\n1/0"
    )
    lines = (await session.call("read_output")).text.splitlines()
    assert lines[:2] == ["[image/png]", "1"]
    assert lines[-1] == "ZeroDivisionError: division by zero"


async def test_output_of_an_ended_session_can_be_read(kit: Kit) -> None:
    """Ours: as its notebook can."""
    session = await kit.init()
    await session.run("'kept'")
    await session.call("close_session")
    assert (await session.call("read_output", execution_count=1)).text == "'kept'"


async def test_what_is_not_there_is_said(session: Handle) -> None:
    """Bad input gets a clear error."""
    assert "Nothing has run" in (await session.call("read_output")).text
    await session.run("1")
    assert "No cell 7" in (await session.call("read_output", execution_count=7)).text
    unknown = await session.kit.call("read_output", session_id="0" * 32)
    assert unknown.is_error
    assert "Unknown session_id" in unknown.text
    past = await session.call("read_output", offset=10_000)
    assert "the end]" in past.text


async def test_very_many_short_outputs_are_cut_as_one_long_text(session: Handle) -> None:
    """Issue 3: PY_EXEC_OUTPUT_BYTES is the most of one result. Of 1000 displays, 1.1 MB were sent."""
    reply = await session.run("from IPython.display import *\nfor n in range(1000): display(Markdown(f'{n:04}' * 250))")
    assert reply.text.startswith("0000")
    assert len(reply.text.encode()) < 11_000
    assert re.search(r"\[… 99\d of 100\d outputs left out, 99\d000 bytes; read_output\(", reply.text)
    assert reply.output.endswith("0999")
    assert reply.result["truncated"]["text_bytes"] > 990_000
    assert "0500" in (await session.call("read_output", pattern="0500")).text


LINES = "ab\n" * 500_000


def test_search_keeps_only_the_page() -> None:
    """A cell may display 16 million lines: as a list of those that were found they took more than 1 GB."""
    tracemalloc.start()
    try:
        page, whole = _search(LINES, "B", 20, 10)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert page == "\n".join(f"{number}: ab" for number in range(1, 9))[20:30]
    assert whole == sum(len(f"{number}: ab\n") for number in range(1, 500_001)) - 1


@given(st.text("ab\r\n\x0b\u2028", max_size=30), st.integers(0, 20), st.integers(1, 20))
def test_page_of_a_search_is_a_part_of_all_that_is_found(text: str, offset: int, limit: int) -> None:
    """Lines are those of `str.splitlines`."""
    found = "\n".join(f"{number}: {line}" for number, line in enumerate(text.splitlines(), 1) if "a" in line)
    assert _search(text, "A", offset, limit) == (found[offset : offset + limit], len(found))
