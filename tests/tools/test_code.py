"""run_code through a real MCP client: what comes back, in which form, and what stays. Both engines."""

from __future__ import annotations

import base64

import pytest

from tests.driving import Handle, Kit, stopwatch
from tests.pictures import PNG, TINY_JPEG

pytestmark = pytest.mark.anyio


async def test_variables_stay_from_cell_to_cell(session: Handle) -> None:
    """DESIGN, tools: run_code runs a cell of the session's kernel."""
    await session.run("answer = 41")
    reply = await session.run("answer + 1")
    assert reply.text == "42"
    assert reply.kinds == ["text"]
    seconds, queued_seconds = reply.result["seconds"], reply.result["queued_seconds"]
    assert 0 <= queued_seconds < seconds
    assert reply.result == {
        "status": "ok",
        "session_id": session.session_id,
        "execution_count": 2,
        "generation": 1,
        "seconds": seconds,
        "queued_seconds": queued_seconds,
    }


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ('{"a": 1}', "{'a': 1}"),
        ("[1, 2]", "[1, 2]"),
        ("null", "NameError"),
        ('"x"', "'x'"),
        ("5", "5"),
        ("true", "NameError"),
    ],
)
async def test_code_that_looks_like_json_runs_as_python(session: Handle, code: str, shown: str) -> None:
    """facts/mcp.md 1: the SDK parses texts as JSON unless a parameter is plain `str`."""
    assert shown in (await session.run(code)).text


async def test_run_tools_return_no_structured_content(session: Handle) -> None:
    """DESIGN, results: clients drop content beside structuredContent. Also none in the error case."""
    await session.call("edit_file", container_path="a.py", content="print(1)")
    for reply in (await session.run("1"), await session.run("1/0"), await session.call("run_file", path="a.py")):
        assert reply.raw.structured_content is None


async def test_text_image_and_error_come_in_order(session: Handle) -> None:
    """DESIGN, results; issue 2: text, images and errors in order."""
    code = (
        "from IPython.display import display, Image\n"
        "print('before')\n"
        f"display(Image(data={_tiny_png()!r}))\n"
        "print('after')\n"
        "1/0"
    )
    reply = await session.run(code)
    assert reply.status == "error"
    assert reply.is_error is False, "what user code does is data"
    assert reply.kinds == ["text", "image", "text"]
    first, _, last = reply.raw.content
    assert first.type == "text"
    assert first.text == "before"
    assert last.type == "text"
    assert last.text.startswith("after\n")
    assert "ZeroDivisionError: division by zero" in last.text
    assert "\x1b" not in last.text


async def test_png_and_jpeg_arrive_as_images(session: Handle) -> None:
    """Issue 2: results carry images, PNG and JPEG. The bytes are what was displayed."""
    code = (
        "from IPython.display import display\n"
        f"display({{'image/png': {base64.b64encode(_tiny_png()).decode()!r}}}, raw=True)\n"
        f"display({{'image/jpeg': {base64.b64encode(TINY_JPEG).decode()!r}}}, raw=True)\n"
    )
    reply = await session.run(code)
    assert [(image.mime_type, base64.b64decode(image.data)) for image in reply.images] == [
        ("image/png", _tiny_png()),
        ("image/jpeg", TINY_JPEG),
    ]


async def test_matplotlib_figure_comes_back_without_show(session: Handle) -> None:
    """The docstring of run_code promises it."""
    reply = await session.run("import matplotlib.pyplot as plt\n_ = plt.plot([1, 2, 3])")
    assert reply.status == "ok", reply.text
    assert [image.mime_type for image in reply.images] == ["image/png"]
    assert base64.b64decode(reply.images[0].data).startswith(PNG)


async def test_dataframe_comes_as_text_not_html(session: Handle) -> None:
    """DESIGN, results: DataFrames as text; no HTML inline. Issue 3: with their shape."""
    reply = await session.run("import pandas as pd\npd.DataFrame({'x': [1, 2]})")
    assert reply.text == "   x\n0  1\n1  2\n\n[2 rows x 1 columns]"


async def test_long_output_keeps_head_and_tail_within_the_limit(session: Handle) -> None:
    """DESIGN, results: text is at most PY_EXEC_OUTPUT_BYTES (10 KB), head and tail, with how to get the rest."""
    reply = await session.run("for i in range(100_000): print('line', i)")
    lines = reply.output.splitlines()
    assert lines[0] == "line 0"
    assert lines[-1] == "line 99999"
    assert len(reply.text.encode()) <= 10_000 + 300, "the note about what is missing may add a line"
    assert "bytes left out" in reply.text
    assert "read_output(session_id=" in reply.text


async def test_error_at_the_end_of_long_output_is_whole(session: Handle) -> None:
    """Ours: the traceback is what the model needs most."""
    reply = await session.run("print('x' * 100_000)\nraise ValueError('the reason')")
    assert reply.text.endswith("ValueError: the reason")
    assert len(reply.text.encode()) <= 10_300


async def test_printing_100_mb_is_cut_and_the_session_goes_on(session: Handle) -> None:
    """Issue 2, bad input: prints 100 MB. The count of what is missing is right."""
    await session.run("kept = 1")
    reply = await session.run("print('a' * 10**8)")
    assert reply.status == "ok"
    assert len(reply.text.encode()) <= 10_300
    assert "of 100000001 bytes left out" in reply.text
    assert await session.value("kept") == "1"


async def test_cell_without_output_says_so(session: Handle) -> None:
    """Ours: an empty content list makes some clients fail."""
    assert (await session.run("import json")).text == "(no output)"


async def test_progress_bar_comes_as_its_last_state(session: Handle) -> None:
    """Ours: carriage returns rewrite the line, as in a terminal."""
    assert (await session.run("for i in range(5): print(f'\\r{i}/4', end='')")).output == "4/4"


async def test_ipython_syntax_works(session: Handle) -> None:
    """The docstring of run_code promises `!ls`, magics and top-level await."""
    assert "in-a-shell" in await session.value("!echo in-a-shell")
    assert await session.value("import asyncio\nawait asyncio.sleep(0, 'awaited')") == "'awaited'"
    assert "loop" in await session.value("%timeit -n1 -r1 pass")


async def test_one_shot_code_needs_no_session(kit: Kit) -> None:
    """DESIGN, tools: no id is a one-shot session; its outputs are in the result, and it is gone afterwards."""
    reply = await kit.call("run_code", code="x = 6\nx * 7")
    assert reply.text == "42"
    assert reply.status == "ok"
    again = await kit.call("run_code", code="x")
    assert "NameError" in again.text
    assert again.result["session_id"] != reply.result["session_id"]
    gone = await kit.call("run_code", code="1", session_id=reply.result["session_id"])
    assert gone.is_error
    assert "one-shot" in gone.text


async def test_call_timeout_stops_the_cell_and_keeps_variables(session: Handle) -> None:
    """DESIGN, tools: `timeout` is the cell's; statuses are data; variables survive an interrupt."""
    await session.run("kept = 5")
    with stopwatch() as seconds:
        reply = await session.run("print('begun', flush=True)\nimport time; time.sleep(60)", timeout=0.5)
        assert seconds() < 10
    assert reply.status == "timeout"
    assert reply.text.startswith("begun")
    assert "timeout" in reply.text.splitlines()[-1]
    assert await session.value("kept") == "5"


def _tiny_png() -> bytes:
    return base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
