"""The last line of a result: what the cell did to the session's variables and files. Both engines.

Issue 3: one line on files and variables that were created, changed or removed, silent when nothing was. A story in
`changes/` is one session: cells, and the line that each must end with.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kernel_server.tools.summary import MAX_SHOWN
from tests.driving import Handle, Kit, Reply

pytestmark = pytest.mark.anyio

Story = list[tuple[str, str]]


def line_of(reply: Reply) -> str:
    """The line on what the cell changed, "" if there is none."""
    last = reply.text.rpartition("\n")[2]
    return last if last.startswith(("[variables: ", "[files: ")) else ""


async def play(session: Handle, story: Story) -> None:
    """Runs the cells of a story and compares their lines."""
    for cell, line in story:
        assert (cell, line_of(await session.run(cell))) == (cell, line)


def stories(name: str) -> dict[str, Story]:
    """Those of a file in `changes/`, by their titles: `>>>` begins a cell, as in a doctest; below it is its line."""
    text = (Path(__file__).parent / "changes" / f"{name}.txt").read_text(encoding="utf-8")
    parts = [part.partition("\n") for part in re.split(r"^# ", text, flags=re.MULTILINE)[1:]]
    return {title: [_step(step) for step in body.split(">>> ")[1:]] for title, _, body in parts}


def _step(text: str) -> tuple[str, str]:
    first, *lines = text.strip("\n").split("\n")
    cell = [first, *(line[4:] for line in lines if line.startswith("... "))]
    return "\n".join(cell), "".join(line for line in lines if not line.startswith("... "))


VARIABLES = stories("variables") | stories("arrays")
FILES = stories("files")


@pytest.mark.parametrize("title", VARIABLES)
async def test_line_tells_what_happened_to_variables(session: Handle, title: str) -> None:
    """Issue 3. A change that is not told, and one that is told of what was only read, are both wrong."""
    await play(session, VARIABLES[title])


@pytest.mark.docker
async def test_fitted_estimator_is_a_change(docker_session: Handle) -> None:
    """Issue 3; the image has scikit-learn."""
    await play(docker_session, stories("estimators")["estimators"])


@pytest.mark.parametrize("title", FILES)
async def test_line_tells_what_happened_to_files(session: Handle, title: str) -> None:
    """Issue 3: files in the workspace, whoever wrote them; hidden ones are of no interest."""
    await play(session, FILES[title])


async def test_of_many_names_the_first_are_told_and_the_rest_is_counted(session: Handle) -> None:
    """Ours: a line, not a page. `_meta` has more of them."""
    reply = await session.run("globals().update({f'v{n}': n for n in range(60)})")
    shown = ", ".join(f"v{n} int" for n in range(MAX_SHOWN))
    assert line_of(reply) == f"[variables: new {shown} and {60 - MAX_SHOWN} more]"
    assert [one["name"] for one in reply.result["variables"]["created"]] == [f"v{n}" for n in range(40)]
    assert reply.result["variables"]["more"] == {"created": 20}
    reply = await session.run("for n in range(2000): open(f'{n:04}', 'w').close()")
    shown = ", ".join(f"{n:04} (0 bytes)" for n in range(MAX_SHOWN))
    assert line_of(reply) == f"[variables: new n int. files: new {shown} and {2000 - MAX_SHOWN} more]"


async def test_meta_says_the_same_to_programs(session: Handle) -> None:
    """Issue 3: `_meta["kernel_server/result"]`."""
    await session.run("import numpy as np; old = 1; gone = 2; open('gone', 'w').close()")
    reply = await session.run(
        "a = np.zeros((3, 2)); old = 's'; del gone; import os; os.unlink('gone'); open('f', 'w').write('xyz')"
    )
    assert reply.result["variables"] == {
        "created": [{"name": "a", "type": "ndarray", "shape": [3, 2], "dtype": "float64"}],
        "changed": [{"name": "old", "type": "str"}],
        "removed": [{"name": "gone"}],
    }
    assert reply.result["files"] == {"created": [{"path": "f", "size": 3}], "removed": [{"path": "gone"}]}


async def test_nothing_is_in_meta_when_nothing_changed(session: Handle) -> None:
    """Issue 3: keys without a value are left out."""
    assert not {"variables", "files"} & set((await session.run("1 + 1")).result)


async def test_what_is_done_between_cells_is_not_told_by_the_next(session: Handle) -> None:
    """Ours: the tool that did it has told. What a cell does to such a file is a change."""
    await session.run("1")
    (session.kit.input / "in").write_text("x")
    await session.call("cp_in", local_path="in")
    await session.call("edit_file", container_path="e/f.txt", content="x")
    assert (await session.run("2")).text == "2"
    assert line_of(await session.run("open('e/f.txt', 'w').write('yy')")) == "[files: changed e/f.txt (2 bytes)]"
    assert line_of(await session.run("import os; os.unlink('in')")) == "[files: removed in]"


async def test_run_file_tells_too(session: Handle) -> None:
    """Ours: a script's variables are in the session afterwards."""
    script = "from typing import List\nimport os\nrows: List[int] = [1]\nopen('out', 'w').close()\ndef main(): pass"
    await session.call("edit_file", container_path="s.py", content=script)
    reply = await session.call("run_file", path="s.py")
    assert line_of(reply) == "[variables: new rows list (1), main function. files: new out (0 bytes)]"


async def test_interrupted_cell_tells_what_it_had_done(session: Handle) -> None:
    """Ours: so does one that was still running when its call returned."""
    reply = await session.run("a = 1\nimport time; time.sleep(60)\nb = 2", timeout=0.5)
    assert (reply.status, line_of(reply)) == ("timeout", "[variables: new a int]")
    code = "c = 1\nimport os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
    assert line_of(await session.run(code, wait=0.1)) == ""
    await session.call("edit_file", container_path="go", content="")
    assert line_of(await session.call("wait")) == "[variables: new c int. files: new go (0 bytes)]"


async def test_nothing_is_told_of_what_is_gone(session: Handle) -> None:
    """Ours: the variables of a kernel that died are lost, which the text says."""
    reply = await session.run("a = 1; exit()")
    assert reply.status == "died"
    assert line_of(reply) == ""
    assert "variables" not in reply.result
    assert line_of(await session.run("b = 1")) == "[variables: new b int]"


async def test_nothing_is_told_of_a_one_shot_session(kit: Kit) -> None:
    """Ours: its variables and files are gone when the call returns."""
    reply = await kit.call("run_code", code="a = 1; open('f', 'w').close(); a")
    assert reply.text == "1"
    assert not {"variables", "files"} & set(reply.result)


HOSTILE = """
seen = []
class Meta(type):
    def __getattribute__(cls, name):
        seen.append(name); return type.__getattribute__(cls, name)
    def __eq__(cls, other): seen.append('=='); raise RuntimeError
    def __hash__(cls): seen.append('hash'); raise RuntimeError
    def __instancecheck__(cls, other): seen.append('isinstance'); return True
class Hostile(metaclass=Meta):
    def __getattribute__(self, name): seen.append(name); raise RuntimeError
    def __len__(self): seen.append('len'); exit()
    def __repr__(self): seen.append('repr'); return 'x' * 10**9
    def __eq__(self, other): seen.append('=='); return True
    def __hash__(self): seen.append('hash'); return 1
    def __iter__(self): seen.append('iter'); return iter(int, 1)
    @property
    def __class__(self): seen.append('class'); return int
class Short(list):
    def __len__(self): seen.append('len'); return 1
    def __iter__(self): seen.append('iter'); return iter(int, 1)
h, s = object.__new__(Hostile), Short([1, 2])
held = [h, {'h': h}]
del seen[:]
"""


async def test_looking_at_variables_runs_no_code_of_the_session(session: Handle) -> None:
    """Ours: it could print, raise, or never end. `tests/container` has the same for every method."""
    line = (
        "[variables: new seen list (0), Meta class, Hostile class, Short class, h Hostile, s Short (2), held list (2)]"
    )
    await play(session, [(HOSTILE, line), ("1", ""), ("list.append(s, 3)", "[variables: changed s Short (3)]")])
    assert await session.value("seen") == "[]"


async def test_no_variable_is_kept_alive(session: Handle) -> None:
    """Ours: what a session deletes is gone, memory and all."""
    await session.run(
        "import weakref, numpy as np, pandas as pd\nclass C: pass\n"
        "c, box, a, df, st = C(), [C()], np.zeros(9), pd.DataFrame({'x': [1]}), {1}\n"
        "refs = [weakref.ref(one) for one in (c, box[0], a, df, st)]"
    )
    assert await session.value("del c, a, df, st; box.clear(); [ref() for ref in refs]") == str([None] * 5)


FORGED = [
    "5",
    "[1]",
    "{'variables': {'created': 'x'}}",
    "{'variables': {'created': [{'name': 'x', 'type': 'y' * 10**6}]}}",
    "{'variables': {'created': [{'name': 'x', 'type': 'y'}] * 10**5}}",
    "{'variables': {'created': [{'name': 'x', 'shape': [-1]}]}}",
    "{'variables': {'more': {str(n): n for n in range(10**5)}}}",
    "{'files': {'changed': [{'path': 5}]}}",
    "{'files': {'changed': [{'path': 'x', 'size': 1.5}]}}",
    "__import__('functools').reduce(lambda x, _: [x], range(500), 1)",
]


async def test_forged_report_does_not_cost_the_result(session: Handle) -> None:
    """DESIGN: everything that comes out of a kernel is hostile data; one that does not fit is as if it were not there."""
    await session.run(
        "kernel = get_ipython().kernel\nforged = None\n"
        "kernel.finish_metadata = lambda parent, metadata, reply: {**metadata, 'kernel_server': forged}"
    )
    for forged in FORGED:
        reply = await session.run(f"forged = {forged}\n'result'")
        assert (forged, reply.text, reply.status) == (forged, "'result'", "ok")
        assert not {"variables", "files"} & set(reply.result)
