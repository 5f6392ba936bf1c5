"""Tracebacks: what a model gets of what IPython sends. `tracebacks.json` holds what real kernels have sent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kernel_server.kernels.outputs import MAX_ERROR_BYTES, Error
from kernel_server.tools.tracebacks import HINTS, brief
from tests.driving import Handle, stopwatch

pytestmark = pytest.mark.anyio

RECORDED = json.loads((Path(__file__).parent / "tracebacks.json").read_text(encoding="utf-8"))
IPYTHON_9, IPYTHON_8 = "IPython 9.18, Python 3.13", "IPython 8.39, Python 3.10"


def recorded(name: str, version: str = IPYTHON_9) -> str:
    """The text for a recorded error."""
    (found,) = [item for item in RECORDED if (item["name"], item["version"]) == (name, version)]
    return brief(Error(found["ename"], found["evalue"], found["traceback"]))


@pytest.mark.parametrize("item", RECORDED, ids=lambda item: f"{item['name']}, {item['version'].partition(',')[0]}")
def test_recorded_error_is_short_and_ends_with_its_reason(item: dict[str, Any]) -> None:
    """Issue 3: tracebacks without colour codes, cut to the frames that help."""
    text = brief(Error(item["ename"], item["evalue"], item["traceback"]))
    assert item["ename"] in text
    assert item["evalue"].partition("\n")[0].partition(" (")[0] in text
    assert len(text) <= 2_000
    assert len(text) <= len("\n".join(item["traceback"]))
    for noise in ("\x1b", "-----------------------------------", "site-packages", "ipykernel", "IPython/", "<ipython-"):
        assert noise not in text.replace("+---------------- ", "").replace("+------------------------------------", "")


def test_frames_of_the_session_have_their_lines() -> None:
    """Issue 3: the user's code first; two lines around the one that ran."""
    assert recorded("nested") == (
        "Traceback (most recent call last):\n"
        "Cell In[2], line 12\n"
        "      9     b = 2\n"
        "     10     return inner(x)\n"
        "---> 12 outer(3)\n"
        "Cell In[2], line 10, in outer(x)\n"
        "      8 a = 1\n"
        "      9 b = 2\n"
        "---> 10 return inner(x)\n"
        "Cell In[2], line 3, in inner(x)\n"
        "      1 def inner(x):\n"
        "      2     y = x + 1\n"
        "----> 3     z = y / 0\n"
        "      4     return z\n"
        "ZeroDivisionError: division by zero"
    )


@pytest.mark.parametrize(("version", "line"), [(IPYTHON_9, 3823), (IPYTHON_8, 3819)])
def test_of_a_library_the_place_that_raised_is_left(version: str, line: int) -> None:
    """Issue 3: pandas raises this KeyError from another one, with the same message and none of the session's frames."""
    assert recorded("key in pandas", version) == (
        "Traceback (most recent call last):\n"
        "Cell In[3], line 3\n"
        "      1 import pandas as pd\n"
        "      2 df = pd.DataFrame({'a': [1]})\n"
        "----> 3 df['b']\n"
        "    … 1 frame in pandas …\n"
        f"File pandas/core/indexes/base.py:{line}, in Index.get_loc\n"
        f"-> {line}     raise KeyError(key) from err\n"
        "KeyError: 'b'"
    )


def test_library_between_frames_of_the_session_is_one_line() -> None:
    """Ours: what the session's own function did wrong is the last frame."""
    assert recorded("called by pandas").splitlines()[2:] == [
        "----> 1 pd.Series([1, 2]).apply(lambda v: 1 / (v - 1))",
        "    … 6 frames in pandas …",
        "Cell In[4], line 1, in <lambda>(v)",
        "----> 1 pd.Series([1, 2]).apply(lambda v: 1 / (v - 1))",
        "ZeroDivisionError: division by zero",
    ]


def test_standard_library_is_told_from_files_of_the_workspace() -> None:
    """Ours: both may have a `json`; the workspace's files are named as the tools take them."""
    lines = recorded("script").splitlines()
    assert "File script.py:3, in g()" in lines
    assert "File python3.13/json/decoder.py:361, in JSONDecoder.raw_decode" in lines


def test_chain_keeps_frames_of_the_session_and_every_message() -> None:
    """Issue 3: chained exceptions stay readable."""
    assert recorded("while handling") == (
        "Traceback (most recent call last):\n"
        "Cell In[7], line 4\n"
        "      3 try:\n"
        "----> 4     load()\n"
        "      5 except KeyError:\n"
        "Cell In[7], line 2, in load()\n"
        "      1 def load():\n"
        "----> 2     return {}['k']\n"
        "KeyError: 'k'\n"
        "\n"
        "During handling of the above exception, another exception occurred:\n"
        "\n"
        "Traceback (most recent call last):\n"
        "Cell In[7], line 6\n"
        "      4     load()\n"
        "      5 except KeyError:\n"
        "----> 6     int('x')\n"
        "ValueError: invalid literal for int() with base 10: 'x'"
    )


def test_error_of_another_process_shows_what_it_ran() -> None:
    """Ours: multiprocessing hands on the other process's traceback as text."""
    assert recorded("pool").splitlines()[:7] == [
        "RemoteTraceback: ",
        '"""',
        "Traceback (most recent call last):",
        "  Cell In[28], line 3, in work",
        "    return 1 / i",
        "           ~~^~~",
        "ZeroDivisionError: division by zero",
    ]


def test_group_keeps_its_tree() -> None:
    """Issue 3: Python's own form for exception groups, without frames of IPython."""
    assert recorded("task group").splitlines()[:12] == [
        "  + Exception Group Traceback (most recent call last):",
        "  |   Cell In[10], line 4",
        "  |     async with asyncio.TaskGroup() as tasks:",
        "  |                ~~~~~~~~~~~~~~~~~^^",
        "  |       … 1 frame in asyncio …",
        "  |   File python3.13/asyncio/taskgroups.py:173, in _aexit",
        "  |     raise BaseExceptionGroup(",
        "  | ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)",
        "  +-+---------------- 1 ----------------",
        "    | Traceback (most recent call last):",
        "    |   Cell In[10], line 3, in bad",
        "    |     raise ValueError(n)",
    ]


@pytest.mark.parametrize(("version", "count"), [(IPYTHON_9, 966), (IPYTHON_8, 960)])
def test_recursion_is_one_frame_and_a_count(version: str, count: int) -> None:
    """Issue 3: a thousand frames would hide the reason."""
    assert recorded("recursion", version).splitlines()[5:] == [
        "Cell In[11], line 2, in again(n)",
        "      1 def again(n):",
        "----> 2     return again(n + 1)",
        f"    … the same frame {count} more times …",
        "RecursionError: maximum recursion depth exceeded",
    ]


@pytest.mark.parametrize("version", [IPYTHON_9, IPYTHON_8])
def test_interrupt_shows_only_frames_of_the_session(version: str) -> None:
    """Issue 3: where in a library a KeyboardInterrupt came is chance."""
    assert recorded("interrupt", version) == (
        "Traceback (most recent call last):\n"
        "Cell In[14], line 2\n"
        "      1 import subprocess\n"
        "----> 2 subprocess.run(['sleep', '60'])\n"
        "KeyboardInterrupt"
    )


def test_what_has_no_frames_is_its_message() -> None:
    """Issue 3: syntax errors, exits, errors of magics."""
    assert recorded("exit") == "SystemExit: 3"
    assert recorded("magic") == "UsageError: Line magic function `%no_such_magic` not found."
    assert recorded("syntax") == "  Cell In[16], line 1\n    def f(:\n          ^\nSyntaxError: invalid syntax"
    assert brief(Error("UsageError", "unknown", [])) == "UsageError: unknown"
    assert brief(Error("E", "why", ["-" * 75, "E      Traceback (most recent call last)"])) == "E: why"


def test_message_stays_as_it_is() -> None:
    """Ours: also one that looks like a frame, and one of many lines."""
    assert recorded("many lines").endswith("ValueError: line 1\nline 2\n\nCell In[3], line 1")
    assert recorded("notes").endswith("ValueError: x\na note")


def test_many_frames_and_many_exceptions_are_cut() -> None:
    """Ours: alternating calls are no repetition, and a loop can raise while it handles."""
    head = ["-" * 75, "E           Traceback (most recent call last)"]
    frames = [f"Cell In[1], line {number}, in f{number}()\n----> {number} f()\n" for number in range(1, 500)]
    text = brief(Error("E", "", [*head, *frames, "E: the end"]))
    assert len(text.splitlines()) == 35
    assert "    … 483 more frames …" in text.splitlines()
    link = "\nDuring handling of the above exception, another exception occurred:\n"
    text = brief(Error("E", "", [item for number in range(50) for item in (f"E: error {number}", link)] + ["E: last"]))
    assert [line for line in text.splitlines() if line and not line.startswith("During")] == [
        "E: error 0",
        "… 46 more exceptions …",
        "E: error 47",
        "E: error 48",
        "E: error 49",
        "E: last",
    ]


def test_traceback_that_was_cut_is_still_read() -> None:
    """Ours: what is too large to be kept comes as one text with its middle missing (kernels.outputs)."""
    frame = "Cell In[1], line 2, in again(n)\n      1 def again(n):\n----> 2     return again(n + 1)\n"
    items = ["RecursionError      Traceback (most recent call last)", *[frame] * 50, "RecursionError: too deep"]
    text = brief(Error("RecursionError", "too deep", ["\n".join(items)]))
    assert "the same frame 49 more times" in text
    assert text.endswith("RecursionError: too deep")
    assert len(text.splitlines()) == 6


@pytest.mark.parametrize(
    "piece",
    [
        "Cell In[1], line ",
        "File a:1 ",
        "File ",
        '  File "',
        '  | File "/lib/python3.',
        '  |   File "x", line 1, in f\n',
        "----> 1 ",
        "\x1b[0;31m",
        "\x1b[",
        "The above exception was the direct cause ",
        "During handling of the above exception\n",
        "    [... skipping similar frames: f at line 2 (9 times)]\n",
        " ",
        "\n",
        "\n\n",
        "a Traceback (most recent call last)\n",
        "/site-packages/",
        "\ud800",
        "<frozen ",
        "-",
    ],
)
def test_hostile_texts_take_linear_time(piece: str) -> None:
    """DESIGN: every byte of a kernel is hostile. A second is a hundred times what it takes."""
    count = MAX_ERROR_BYTES // len(piece)
    with stopwatch() as seconds:
        for items in (
            [piece * count],
            [piece] * count,
            [piece * count + "\nx"],
            ["Cell In[1], line 1\n" + piece * count],
        ):
            brief(Error("E", "v", items))
            brief(Error("E", "v", ["E Traceback (most recent call last)", *items]))
        assert seconds() < 8


async def test_line_of_an_exception_that_was_handled_is_the_one_that_raised(session: Handle) -> None:
    """Ours: with ipykernel's names for cells, IPython 9 shows the line that ran last in both."""
    text = (await session.run("try:\n    {}['k']\nexcept KeyError:\n    int('x')")).text
    assert text == (
        "Traceback (most recent call last):\n"
        "Cell In[1], line 2\n"
        "      1 try:\n"
        "----> 2     {}['k']\n"
        "      3 except KeyError:\n"
        "KeyError: 'k'\n"
        "\n"
        "During handling of the above exception, another exception occurred:\n"
        "\n"
        "Traceback (most recent call last):\n"
        "Cell In[1], line 4\n"
        "      2     {}['k']\n"
        "      3 except KeyError:\n"
        "----> 4     int('x')\n"
        "ValueError: invalid literal for int() with base 10: 'x'"
    )


async def test_result_is_brief_and_notebook_whole(session: Handle) -> None:
    """Issue 3: journal and notebook keep the full traceback."""
    text = (await session.run("import json\njson.loads('{')")).text
    assert re.search(r"\n    … 2 frames in json …\nFile python3\.\d+/json/decoder\.py:\d+, in JSONDecoder", text)
    await session.call("export_notebook", local_path="whole.ipynb")
    notebook = json.loads((session.kit.output / "whole.ipynb").read_text())
    (output,) = notebook["cells"][-1]["outputs"]
    assert sum("json/" in frame for frame in output["traceback"]) == 3


async def test_wrong_magic_is_told_once(session: Handle) -> None:
    """Ours: IPython prints it, and ipykernel's reply holds it as well."""
    assert (await session.run("%no_such_magic")).text == "UsageError: Line magic function `%no_such_magic` not found."


async def test_exit_comes_without_advice_for_a_keyboard(session: Handle) -> None:
    """Ours: IPython says to use Ctrl-D."""
    assert (await session.run("import sys\nsys.exit('no data')")).text == "SystemExit: no data"


async def test_input_says_what_to_do_instead(session: Handle) -> None:
    """Ours: errors say what to do next."""
    reply = await session.run("input()")
    assert reply.notes == [f"[{HINTS['StdinNotImplementedError']}]"]
    assert not [line for line in reply.text.splitlines() if "ipykernel" in line]


async def test_warnings_and_threads_name_their_cell(session: Handle) -> None:
    """Ours: ipykernel would name a file that does not exist."""
    assert (await session.value("import warnings\nwarnings.warn('careful')")).startswith("<ipython-input-1-")
    thread = "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()"
    assert 'File "<ipython-input-2-' in await session.value(thread)


@pytest.mark.docker
async def test_group_comes_as_an_error(docker_session: Handle) -> None:
    """Ours: IPython prints groups on stderr. Python 3.10 has none, so not with the local engine."""
    await docker_session.run("raise ExceptionGroup('many', [ValueError('a'), TypeError('b')])")
    await docker_session.call("export_notebook", local_path="group.ipynb")
    notebook = json.loads((docker_session.kit.output / "group.ipynb").read_text())
    (output,) = notebook["cells"][-1]["outputs"]
    assert (output["output_type"], output["ename"]) == ("error", "ExceptionGroup")
    text = (await docker_session.run("raise ExceptionGroup('many', [ValueError('a'), TypeError('b')])")).text
    assert text.splitlines()[:4] == [
        "  + Exception Group Traceback (most recent call last):",
        "  |   Cell In[2], line 1",
        "  |     raise ExceptionGroup('many', [ValueError('a'), TypeError('b')])",
        "  | ExceptionGroup: many (2 sub-exceptions)",
    ]
