"""checkpoint, rollback and branch_session through a real MCP client, on live kernels."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from kernel_host import landlock

from tests.driving import Handle, Kit, Reply, containers_of_this_process, eventually, serving

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        sys.version_info < (3, 11), reason="local kernels have ipykernel 6 here: see test_branching_old"
    ),
]

STATE = """
import os, random
import numpy as np
random.seed(7), np.random.seed(7)
generator = np.random.default_rng(7)
kept = ["loaded"]
def double(x): return 2 * x
class Point:
    x = 3
point = Point()
os.makedirs("sub", exist_ok=True)
open("a.txt", "w").write("one"), open("sub/b.txt", "w").write("two")
os.chdir("sub")
"""
DRAWN = "(random.random(), np.random.random(), generator.random())"
PROCESS = "import subprocess\nsleeping = subprocess.Popen(['sleep', '1000'])"
SLEEPS = "sleeping.poll() is None"


def names(reply: Reply) -> list[str]:
    """The ids that branch_session returned, which are in its lines as init has them."""
    assert not reply.is_error, reply.text
    found = re.findall(r"^session_id: (\w+)$", reply.text, re.MULTILINE)
    assert reply.raw.meta is not None
    assert reply.raw.meta["kernel_server/branches"]["session_ids"] == found
    return found


async def branches(session: Handle, count: int = 1, checkpoint: str = "") -> list[Handle]:
    """New sessions from one."""
    ids = names(await session.call("branch_session", count=count, checkpoint=checkpoint))
    assert len(ids) == count
    return [Handle(session.kit, name, f"{session.workspace.rpartition('/')[0]}/{name}") for name in ids]


async def close(*sessions: Handle) -> None:
    """Ends them."""
    for session in sessions:
        assert not (await session.call("close_session")).is_error


async def test_branch_has_what_its_parent_has_and_goes_its_own_way(session: Handle) -> None:
    """Issue 7: variables, imports, functions, In/Out, execution count, cwd, random state, files; independent changes."""
    await session.run(STATE)
    (branch,) = await branches(session)
    assert (await branch.run("1")).result["execution_count"] == 2
    assert await branch.value("kept, double(point.x), 'np.random.seed' in In[1], os.getcwd()") == repr(
        (["loaded"], 6, True, f"{branch.workspace}/sub")
    )
    drawn = await session.value(DRAWN)
    assert await branch.value(DRAWN) == drawn
    await branch.run("kept.append('branch'); open('b.txt', 'w').write('branch'); os.remove('../a.txt')")
    await session.run("kept.append('parent'); open('c.txt', 'w').write('parent')")
    look = "kept, open('b.txt').read(), os.path.exists('../a.txt'), os.path.exists('c.txt')"
    assert await branch.value(look) == "(['loaded', 'branch'], 'branch', False, False)"
    assert await session.value(look) == "(['loaded', 'parent'], 'two', True, True)"
    await close(branch)


async def test_branch_is_a_session_like_any_other(session: Handle) -> None:
    """Issue 7: outputs, images, errors, threads' late output, programs, await, interrupts and deaths are as ever."""
    (branch,) = await branches(session)
    reply = await branch.run("import matplotlib.pyplot as plt\nprint('text')\n_ = plt.plot([1, 2])\n!echo program")
    assert (reply.status, len(reply.images)) == ("ok", 1)
    assert {"text", "program"} <= set(reply.output.split())
    assert (await branch.run("1/0")).status == "error"
    assert await branch.value("import asyncio\nawait asyncio.sleep(0, 'awaited')") == "'awaited'"
    await branch.run("import threading\nthreading.Timer(0.1, print, ['late']).start()")
    await anyio.sleep(0.5)
    assert "late" in (await branch.run("None")).text
    assert (await branch.run("import time\ntime.sleep(100)", timeout=0.3)).status == "timeout"
    died = await branch.run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert (died.status, died.result["generation"]) == ("died", 1)
    assert await branch.value("'kept' in dir()") == "False"
    assert (await session.run("1")).result["generation"] == 1
    await close(branch)


async def test_branches_of_branches_outlive_what_they_come_from(kit: Kit) -> None:
    """Issue 7: branch of a branch; closing the parent leaves the branches alive, with their files and processes."""
    parent = await kit.init()
    await parent.run("level = [0]; open('file', 'w').write('0')")
    (first,) = await branches(parent)
    await first.run("level.append(1)\n" + PROCESS)
    (other,) = await branches(parent)
    await other.run(PROCESS)
    await close(other)
    assert await first.value(SLEEPS) == "True", "closing one ends its own processes only"
    await first.run("sleeping.kill(), sleeping.wait()")
    (second,) = await branches(first)
    await second.run("level.append(2)\n" + PROCESS)
    await close(parent)
    await close(first)
    assert await second.value("level, open('file').read(), sleeping.poll()") == "([0, 1, 2], '0', None)"
    await close(second)


async def test_branch_writes_to_its_own_copy_of_an_open_file(session: Handle) -> None:
    """Ours: a log that was opened before; each side goes on in its own, at the place where it was."""
    await session.run("log = open('log', 'a', buffering=1); _ = log.write('both\\n'); lines = open('log'); next(lines)")
    (branch,) = await branches(session)
    await branch.run("_ = log.write('branch\\n')")
    await session.run("_ = log.write('parent\\n')")
    assert await branch.value("next(lines), open('log').read()") == r"('branch\n', 'both\nbranch\n')"
    assert await session.value("next(lines), open('log').read()") == r"('parent\n', 'both\nparent\n')"
    await close(branch)


async def test_rollback_twice_to_one_checkpoint(session: Handle) -> None:
    """Issue 7: same session id, new generation, files restored; a checkpoint can be used again."""
    await session.run(STATE)
    made = await session.call("checkpoint", label="data loaded")
    assert made.text.startswith("checkpoint: c1\n")
    drawn = await session.value(DRAWN)
    for generation, wanted in ((2, "c1"), (3, "data loaded")):
        await session.run(
            "kept.clear(); del point; open('../a.txt', 'w').write('x'); open('new', 'w'); os.remove('b.txt')"
        )
        back = await session.call("rollback", checkpoint=wanted)
        assert f"session_id: {session.session_id}" in back.text
        assert "after In [1]" in back.text
        assert re.search(r"brought back a\.txt; made again sub/b\.txt; removed sub/new", back.text)
        reply = await session.run("kept, point.x, open('../a.txt').read(), sorted(os.listdir('.'))")
        assert (reply.output, reply.result["generation"]) == ("(['loaded'], 3, 'one', ['b.txt'])", generation)
        assert reply.result["execution_count"] == 2
        assert await session.value(DRAWN) == drawn


async def test_what_a_kernel_had_comes_back_after_its_death(session: Handle) -> None:
    """Issue 7, ours: the result that tells of the death says how."""
    await session.run("kept = 5")
    await session.call("checkpoint")
    died = await session.run("import os\nos._exit(3)")
    assert died.status == "died"
    assert "rollback(session_id, 'c1')" in died.text
    assert not (await session.call("rollback")).is_error
    assert await session.value("kept") == "5"
    assert "Since the last call" not in (await session.run("1")).text


async def test_notebooks_tell_the_story(kit: Kit) -> None:
    """Issue 7: that of a branch starts with its parent's cells and says where it branched; rollbacks are told."""
    parent = await kit.init()
    await parent.run("x = 1")
    made = await parent.call("checkpoint", label="begun")
    assert not made.is_error, made.text
    await parent.run("x = 2")
    back = await parent.call("rollback")
    assert not back.is_error, back.text
    await parent.run("x")
    (branch,) = await branches(parent, checkpoint="c1")
    await branch.run("x + 10")
    assert f"branched from {parent.session_id} after In [1]" in (await kit.call("list_sessions")).text
    cells = [await notebook(one, kit) for one in (parent, branch)]
    assert [kind for kind, _ in cells[0]] == ["code", "code", "markdown", "code"]
    assert "Rolled back to checkpoint c1 'begun' (after In [1])" in cells[0][2][1]
    assert [source for kind, source in cells[1] if kind == "code"] == ["x = 1", "x + 10"]
    assert f"Branched from session `{parent.session_id}`, after In [1]" in cells[1][1][1]
    await close(parent, branch)


async def notebook(session: Handle, kit: Kit) -> list[tuple[str, str]]:
    """Type and source of the cells of a session's notebook."""
    await session.call("export_notebook", local_path="told.ipynb")
    document = json.loads((kit.output / "told.ipynb").read_text())
    return [(cell["cell_type"], "".join(cell["source"])) for cell in document["cells"]]


async def test_unknown_checkpoints_and_too_many(session: Handle) -> None:
    """Ours: the errors say what there is, and nothing happens."""
    assert "no checkpoints" in (await session.call("rollback")).text
    await session.call("checkpoint", label="begun")
    wrong = await session.call("rollback", checkpoint="c9")
    assert wrong.is_error
    assert "c1 'begun' (before the first cell)" in wrong.text
    assert "as it is" not in (await session.call("branch_session", checkpoint="nowhere")).text
    assert (await session.call("branch_session", count=0)).is_error
    many = await session.call("branch_session", count=60)
    assert many.is_error
    assert "PY_EXEC_SESSION_MAX" in many.text
    assert (await session.run("1")).result["generation"] == 1


async def test_checkpoints_of_a_session_are_few(tmp_path: Path) -> None:
    """Ours, PY_EXEC_CHECKPOINTS: the oldest goes, and the result says so."""
    async with serving(tmp_path, "local", PY_EXEC_CHECKPOINTS="2", PY_EXEC_PRELOAD="none") as kit:
        session = await kit.init()
        texts = [(await session.call("checkpoint")).text for _ in range(3)]
        assert ["dropped" in text for text in texts] == [False, False, True]
        assert "c1 (before the first cell) was dropped" in texts[2]
        assert (await session.call("rollback", checkpoint="c1")).is_error
        assert not (await session.call("rollback", checkpoint="c2")).is_error


async def test_automatic_checkpoints(tmp_path: Path) -> None:
    """Issue 7: before each cell, the last N; rollback to a cell number brings back what was before it."""
    settings = {"PY_EXEC_AUTO_CHECKPOINTS": "3", "PY_EXEC_PRELOAD": "none"}
    async with serving(tmp_path, "local", **settings) as kit:
        session = await kit.init()
        for number in range(1, 6):
            await session.run(f"x = {number}")
        for wanted, x in (("5", "4"), ("In [4]", "3"), ("in3", "2")):
            assert not (await session.call("rollback", checkpoint=wanted)).is_error
            assert (await session.call("list_variables", peek="x")).cell_text == x
        gone = await session.call("rollback", checkpoint="1")
        assert gone.is_error
        assert "in3" in gone.text
        threaded = await session.run(
            "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
        )
        assert "no checkpoint" not in threaded.text
        assert "no checkpoint before this cell" in (await session.run("x")).text
        assert "no checkpoint" not in (await session.run("x")).text, "told once"


async def test_automatic_checkpoints_know_what_came_between_two_cells(tmp_path: Path) -> None:
    """Ours: they are made after a cell, while nobody waits; files and variables may be changed before the next."""
    settings = {"PY_EXEC_AUTO_CHECKPOINTS": "3", "PY_EXEC_PRELOAD": "none"}
    async with serving(tmp_path, "local", **settings) as kit:
        session = await kit.init()
        await session.run("x = [1]")
        await eventually(lambda: _lists(kit, "in2"))
        assert not (await session.call("edit_file", container_path="a.txt", content="one")).is_error
        await session.run("open('a.txt', 'w').write('two')")
        assert (await session.call("list_variables", peek="x.append(2)")).text
        await session.run("x.append(3)")
        assert not (await session.call("rollback", checkpoint="3")).is_error
        assert await session.value("x, open('a.txt').read()") == "([1, 2], 'two')"
        assert not (await session.call("rollback", checkpoint="2")).is_error
        assert await session.value("x, open('a.txt').read()") == "([1], 'one')"
        await eventually(lambda: _lists(kit, "in3"))
        assert "rollback(session_id, 'in3')" in (await session.run("import os; os._exit(1)")).text
        assert not (await session.call("rollback", checkpoint="3")).is_error
        assert await session.value("x") == "[1]"


async def _lists(kit: Kit, checkpoint: str) -> bool:
    return checkpoint in (await kit.call("list_sessions")).text


async def test_while_a_cell_runs(tmp_path: Path) -> None:
    """Ours: a checkpoint is made between two cells; it waits for its turn, not for ever."""
    async with serving(tmp_path, "local", PY_EXEC_WAIT="0.5", PY_EXEC_PRELOAD="none") as kit:
        session = await kit.init()
        await session.run("import time\ntime.sleep(1.2); x = 1")
        early = await session.call("checkpoint")
        assert early.is_error
        assert "Call wait for it, or interrupt it" in early.text
        await session.call("wait", wait=5)
        assert not (await session.call("checkpoint")).is_error


CLIENTS = """
import _socket, os, stat
def peers():
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                one = _socket.socket(fileno=os.dup(number))
                yield one.getpeername()
        except OSError: pass
[peer for peer in peers() if isinstance(peer, str) and "/s-" in peer]
"""


async def test_a_kernel_is_no_client_of_its_own(session: Handle) -> None:
    """A connection of ipykernel's debugger that came late was refused as one of the session's."""
    assert await session.value(CLIENTS) == "[]"
    (branch,) = await branches(session)
    assert await branch.value(CLIENTS) == "[]"
    await close(branch)


# -- what does not survive a fork --------------------------------------------------------------------------------------

OBSTACLES = {
    "thread": (
        "import threading\nend = threading.Event(); thread = threading.Thread(target=end.wait); thread.start()",
        "thread",
        "end.set(); thread.join()",
    ),
    "program": (PROCESS, "sleep", "sleeping.kill(); sleeping.wait()"),
    "task": (
        "import asyncio\nasync def forever(): await asyncio.sleep(1000)\ntask = asyncio.create_task(forever())",
        "forever",
        "task.cancel(); await asyncio.sleep(0)",
    ),
    "socket": ("import socket\npair = socket.socketpair()", "sockets", "[one.close() for one in pair]"),
    "queue": ("import multiprocessing\nqueue = multiprocessing.Queue()", "Queue", "queue.close(); del queue"),
    "shared memory": (
        "import mmap\nshared = mmap.mmap(-1, 4096)",
        "memory",
        "shared.close(); del shared",
    ),
    "mapped file": (
        "import numpy as np\nmapped = np.memmap('mapped', 'int8', 'w+', shape=10)",
        "mapped",
        "mapped = mapped.copy()",
    ),
    "database": (
        "import sqlite3\nbase = sqlite3.connect('base.db'); base.execute('create table t (x)'); base.commit()",
        "base.db",
        "base.close()",
    ),
}


@pytest.mark.parametrize("what", list(OBSTACLES))
async def test_what_would_not_survive_is_refused(session: Handle, what: str) -> None:
    """Issue 7: detect, name, refuse, with what to do; done so, it works."""
    code, named, remedy = OBSTACLES[what]
    assert (await session.run("kept = 1\n" + code)).status == "ok"
    for tool in ("checkpoint", "branch_session"):
        refused = await session.call(tool)
        assert refused.is_error, refused.text
        assert named in refused.text
        assert re.search(r"close|end|cancel|copy|wait|await|delete", refused.text)
    assert await session.value("kept") == "1"
    assert (await session.run(remedy)).status == "ok"
    (branch,) = await branches(session)
    assert await branch.value("kept") == "1"
    await close(branch)


WORK = {
    "numpy": "import numpy as np\na = np.random.default_rng(1).random((700, 700)); float(np.linalg.svd(a @ a)[1][0].round(3))",
    "pandas": "import pandas as pd\nint(pd.DataFrame({'a': range(100_000)}).groupby(lambda i: i % 7).a.sum().max())",
    "matplotlib": "import matplotlib.pyplot as plt\nfigure = plt.figure(); _ = plt.plot([1, 2]); plt.close(); 1",
    "sqlite": (
        "import sqlite3\nbase = globals().get('base') or sqlite3.connect(':memory:')\n"
        "base.execute('create table if not exists t (x)'); base.execute('select count(*) from t').fetchone()"
    ),
    "sklearn": (
        "from sklearn.cluster import KMeans\nfrom sklearn.ensemble import HistGradientBoostingClassifier\n"
        "import numpy as np\nX = np.random.default_rng(1).random((5_000, 10)); y = X[:, 0] > 0.5\n"
        "KMeans(3, n_init=2, random_state=0).fit(X)\n"
        "round(float(HistGradientBoostingClassifier(max_iter=10).fit(X, y).score(X, y)), 3)"
    ),
}


@pytest.mark.docker
@pytest.mark.parametrize("library", list(WORK))
async def test_libraries_work_before_and_after(docker_kit: Kit, library: str) -> None:
    """Issue 7, known-good: in the parent, in a branch, and after a rollback."""
    async with docker_kit.session() as session:
        value = await session.value(WORK[library])
        assert not (await session.call("checkpoint")).is_error
        (branch,) = await branches(session)
        assert await branch.value(WORK[library]) == value
        assert await session.value(WORK[library]) == value
        assert not (await session.call("rollback")).is_error
        assert await session.value(WORK[library]) == value
        await close(branch)


# -- in containers -----------------------------------------------------------------------------------------------------


@pytest.mark.docker
async def test_eight_branches_work_at_once(docker_kit: Kit) -> None:
    """Issue 7: each computes with what was loaded once."""
    async with docker_kit.session() as session:
        await session.run("import numpy as np\ndata = np.arange(1_000_000)")
        found: dict[int, str] = {}
        all_branches = await branches(session, count=8)

        async def work(number: int) -> None:
            found[number] = await all_branches[number].value(f"int((data * {number}).sum())")

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(work, number)
        assert found == {number: str(number * 499999500000) for number in range(8)}
        await close(*all_branches)


@pytest.mark.docker
async def test_family_in_a_container_of_its_own(tmp_path: Path) -> None:
    """Issue 7: with a container for each session, branches are in that of their parent, which goes with the last."""
    settings = {"PY_EXEC_SESSIONS_PER_CONTAINER": "1", "PY_EXEC_POOL": "0", "PY_EXEC_PRELOAD": "none"}
    before = set(containers_of_this_process())
    async with serving(tmp_path, "docker", **settings) as kit:
        parent = await kit.init()
        await parent.run("x = 1")
        (branch,) = await branches(parent)
        await close(parent)
        assert await branch.value("x") == "1"
        assert len(set(containers_of_this_process()) - before) == 1
        await close(branch)
        await eventually(lambda: not set(containers_of_this_process()) - before)


@pytest.fixture
async def family(docker_kit: Kit) -> AsyncIterator[tuple[Handle, Handle]]:
    """A session and a branch of it."""
    async with docker_kit.session() as parent:
        await parent.run("import os, signal, tempfile\nopen('secret', 'w').write('s'); scratch = tempfile.mkdtemp()")
        await parent.run(f"place, pid = {parent.workspace!r}, os.getpid()")
        (branch,) = await branches(parent)
        yield parent, branch
        await close(branch)


REACH = {
    "read": "open(f'{place}/secret').read()",
    "write": "open(f'{place}/other', 'w')",
    "temporary": "os.rmdir(scratch)",
    "signal": "os.kill(pid, signal.SIGKILL)",
}


@pytest.mark.docker
@pytest.mark.skipif(landlock.abi() < landlock.SCOPES_ABI, reason="this Linux has no Landlock for signals")
@pytest.mark.parametrize("what", list(REACH))
async def test_branch_cannot_reach_its_parent(family: tuple[Handle, Handle], what: str) -> None:
    """Issue 7, the same walls: by accident or not. The control: the parent's own code can."""
    parent, branch = family
    denied = await branch.run(REACH[what])
    assert re.search(r"PermissionError|Operation not permitted|Permission denied", denied.text), denied.text
    assert (await parent.run(REACH[what])).status in ("ok", "died")
