"""list_variables: a look inside a session, also while its code is running. Both engines."""

from __future__ import annotations

import anyio
import pytest

from kernel_server.sessions import runs
from kernel_server.sessions import session as session_module
from tests.driving import Handle, Reply, eventually

pytestmark = pytest.mark.anyio

BUSY = "open('begun', 'w').close()\nimport os, time\nfrom math import pi\nn = 0\nwhile not os.path.exists('go'):\n  n += 1; time.sleep(0.01)"
IDLE = "[nothing is running]"


async def look(session: Handle, peek: str = "") -> Reply:
    """Calls list_variables."""
    return await session.call("list_variables", peek=peek)


async def shown(session: Handle, peek: str = "") -> str:
    """What an idle session shows."""
    reply = await look(session, peek)
    assert not reply.is_error, reply.text
    assert reply.notes == [IDLE]
    return reply.cell_text


# -- variables ---------------------------------------------------------------------------------------------------------


async def test_variables_come_with_type_and_shape(session: Handle) -> None:
    """Issue 3: name, type and shape of the session's own variables. Numbers have their value; a text may be a password."""
    assert await shown(session) == "(no variables)"
    await session.run(
        "import numpy as np, pandas as pd\nfrom math import pi\nfrom typing import List\n"
        "n, f, z, b = 3, 0.5, 2j, True\npassword = 'secret'; text = 'x' * 200; raw = b'secret'\n"
        "rows = [1, 2]; d = {'key': 'secret'}; a = np.zeros((3, 2)); df = pd.DataFrame({'a': [1]}); big = 10 ** 400\n"
        "def func(): pass\nclass C: pass\nc = C(); _private = 1"
    )
    assert await shown(session) == (
        "n int = 3\nf float = 0.5\nz complex = 2j\nb bool = True\npassword str\ntext str (200)\nraw bytes\n"
        "rows list (2)\nd dict (1)\na ndarray float64 (3, 2)\ndf DataFrame (1, 1)\nbig int\nfunc function\nC class\nc C"
    )


async def test_many_variables_are_cut(session: Handle) -> None:
    """Ours: a list that nobody can read is of no use."""
    await session.run("globals().update({f'v{n}': n for n in range(500)})")
    reply = await look(session)
    lines = reply.cell_text.splitlines()
    assert (lines[0], lines[199], lines[200:]) == ("v0 int = 0", "v199 int = 199", [])
    assert reply.notes == [IDLE, "[and 300 more]"]


async def test_looking_runs_no_code_of_the_session(session: Handle) -> None:
    """Ours: what it printed would be nobody's output."""
    await session.run(
        "class Loud:\n  def __getattribute__(self, name): print(name); raise RuntimeError\n"
        "  def __repr__(self): print('repr'); return ''\n  __len__ = __class__ = __repr__\nloud = Loud(); box = [loud]"
    )
    assert await shown(session) == "Loud class\nloud Loud\nbox list (1)"
    assert (await session.run("1")).text == "1"


# -- expressions -------------------------------------------------------------------------------------------------------

EXPRESSIONS = {
    "x + 1": "2",
    " x\n ": "1",
    "[n * x for n in range(3)]": "[0, 1, 2]",
    "text[:3]": "'sec'",
    "df": "   a\n0  1\n\n[1 rows x 1 columns]",
    "None": "None",
    "print('told', x)": "told 1",
    "[print(n) for n in 'ab'] and 5": "a\nb\n5",
    "__import__('sys').stderr.write('oops\\n')": "oops\n5",
    "broken": "[ValueError: no repr]",
    "1 / 0": "[ZeroDivisionError: division by zero]",
    "nope": "[NameError: name 'nope' is not defined]",
    "__import__('sys').exit(3)": "[SystemExit: 3]",
    "raise_it(KeyboardInterrupt)": "[KeyboardInterrupt: ]",
    "x = 1": "[SyntaxError: invalid syntax; peek takes one expression.]",
    "1; 2": "[SyntaxError: invalid syntax; peek takes one expression.]",
    "'\\ud800'": "'\\ud800'",
    "chr(0xd800) + '!'": "'\\ud800!'",
    "Raw()": "a\\ud800b",
}


async def test_value_of_an_expression(session: Handle) -> None:
    """Issue 3: with `peek`, the value of one expression. What it prints or raises stays within the answer."""
    await session.run(
        "import pandas as pd\nx = 1; text = 'secret'; df = pd.DataFrame({'a': [1]})\n"
        "class Broken:\n  def __repr__(self): raise ValueError('no repr')\nbroken = Broken()\n"
        "class Raw:\n  def __repr__(self): return 'a\\ud800b'\n"
        "def raise_it(kind): raise kind"
    )
    for peek, text in EXPRESSIONS.items():
        assert (peek, await shown(session, peek)) == (peek, text)
    reply = await session.run("x")
    assert (reply.text, reply.status) == ("1", "ok")


async def test_long_value_is_cut(session: Handle) -> None:
    """Issue 3: a short value, as in every result."""
    await session.run("class Huge:\n  def __repr__(self): return 'h' * 10**7\nhuge = Huge()")
    for peek in ("'x' * 10**6", "huge", "print('y' * 10**6)"):
        text = await shown(session, peek)
        assert len(text) < 10_300
        assert "look at a part of it" in text


async def test_bad_text_is_refused(session: Handle) -> None:
    """Ours: JSON can carry what is no text."""
    reply = await look(session, "'\ud800'")
    assert reply.is_error
    assert "peek holds a lone surrogate" in reply.text


# -- while a cell is running -------------------------------------------------------------------------------------------


async def test_running_cell_is_told_and_can_be_looked_into(session: Handle) -> None:
    """Issue 3: in the middle of a long loop, which cell runs and for how long, and the variables as they are."""
    await session.run("x = 5")
    await session.run(BUSY, wait=0.1)
    for _ in range(2):
        await session.run("later = 1", wait=0.05)
    await session.wait_for_file("begun")
    reply = await look(session, "x, n > 0")
    (note,) = reply.notes
    assert note.startswith("[running for ")
    assert note.endswith(
        " s: \"open('begun', 'w').close() import os, time from math import pi n = 0 while not …\", 2 more cells waiting]"
    )
    assert reply.cell_text == "(5, True)"
    listed = (await look(session)).cell_text.splitlines()
    assert listed[0] == "x int = 5"
    assert listed[1].startswith("n int = ")
    assert (await look(session, "print('told')")).cell_text == "told"
    await session.call("edit_file", container_path="go", content="")
    assert [(await session.call("wait")).status for _ in range(3)] == ["ok"] * 3
    assert (await session.run("1")).text == "1", "what was printed for a look is not told again"


async def test_looks_that_do_not_end_hold_up_nothing(session: Handle) -> None:
    """Issue 3: answered after 5 s. Until then four of them wait; a list, cells and interrupts go on."""
    await session.run("import threading, time\ndef names(): return [t.name for t in threading.enumerate()]")
    hanging = ["max(0 for _ in iter(int, 1))", *["time.sleep(20)"] * 3]
    replies: list[Reply] = []

    async def hang(peek: str) -> None:
        replies.append(await look(session, peek))

    async def all_are_there() -> bool:
        return (await session.value("names().count('list_variables')")) == "4"

    async with anyio.create_task_group() as tasks:
        for peek in hanging:
            tasks.start_soon(hang, peek)
        await eventually(all_are_there)
        assert await shown(session, "1") == "[4 earlier expressions are still being evaluated.]"
        assert await shown(session) == "names function"
        await session.run("time.sleep(60)", wait=0.1)
        await session.call("interrupt")
        assert (await session.call("wait")).status == "interrupted"
    assert [reply.cell_text for reply in replies] == ["[It did not end within 5 s.]"] * 4

    async def python_code_was_stopped() -> bool:
        return (await session.value("names().count('list_variables')")) == "3"

    await eventually(python_code_was_stopped)
    assert await shown(session, "1 + 1") == "2"
    assert (await session.run("1")).text == "1", "a look that is stopped says nothing"


async def test_kernel_that_cannot_answer_is_told(session: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: native code that holds the interpreter lets no thread run. The answer says what to do."""
    monkeypatch.setattr(session_module, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(runs, "INTERRUPT_SECONDS", (0.2, 0.2))
    await session.run("import itertools; sum(itertools.repeat(1))", wait=0.2)
    reply = await look(session)
    assert reply.is_error
    assert reply.text == session_module.UNREACHABLE
    await session.call("interrupt")
    assert await shown(session) == "(no variables)"


# -- without a kernel --------------------------------------------------------------------------------------------------


async def test_look_that_kills_the_kernel_is_told(session: Handle) -> None:
    """DESIGN, loss: by the look itself, and by the next result."""
    await session.run("x = 1")
    reply = await look(session, "__import__('os')._exit(3)")
    assert reply.is_error
    assert reply.text == "The kernel ended."
    assert await shown(session) == "(no variables)"
    after = await session.run("'x' in globals()")
    assert "exit code 3" in after.text
    assert after.result["generation"] == 2


async def test_look_waits_for_the_next_kernel(session: Handle) -> None:
    """Ours: right after a death there is none."""
    assert (await session.run("x = 1; import os; os._exit(1)")).status == "died"
    assert await shown(session) == "(no variables)"


async def test_look_into_a_closed_session_is_an_error(session: Handle) -> None:
    """Ours: as with every tool."""
    await session.call("close_session")
    reply = await look(session)
    assert reply.is_error
    assert "was closed by close_session" in reply.text
