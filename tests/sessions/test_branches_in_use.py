"""What people do in branches, and what they had before them: see also test_branching."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from kernel_host import landlock
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.types import ElicitRequestParams, ElicitResult

from kernel_server.app import create_server
from kernel_server.config import load_settings
from kernel_server.hosts.base import Launched, Restored
from kernel_server.hosts.controlled import ControlledHost
from tests.driving import Handle, Kit, Reply, serving
from tests.sessions.test_branching import branches, close

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        sys.version_info < (3, 11), reason="local kernels have ipykernel 6 here: see test_branching_old"
    ),
]


async def test_figure_that_was_begun_before_goes_on_in_each(session: Handle) -> None:
    """Issue 7: matplotlib's figures are part of the state, each side adds to its own."""
    await session.run(
        "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\n_ = axes.plot([1, 2])\nplt.close()"
    )
    (branch,) = await branches(session)
    for one, lines in ((branch, 3), (session, 2)):
        reply = await one.run(f"for _ in range({lines - 1}): axes.plot([2, 1])\ndisplay(figure)\nlen(axes.lines)")
        assert (reply.status, len(reply.images)) == ("ok", 1)
        assert reply.output.splitlines()[-1] == str(lines)
    await close(branch)


async def test_functions_see_the_variables_of_their_own_side(session: Handle) -> None:
    """Issue 7: functions, closures, generators, modules that were changed."""
    await session.run(
        "import math\nmath.mark = ['before']\ndef counter():\n    number = 0\n    while True:\n        number += 1; yield number\n"
        "counts = counter(); next(counts)\nfactor = 2\ndef scaled(x): return factor * x"
    )
    (branch,) = await branches(session)
    await branch.run("factor = 10; math.mark.append('branch'); next(counts)")
    assert await branch.value("scaled(3), math.mark, next(counts)") == "(30, ['before', 'branch'], 3)"
    assert await session.value("scaled(3), math.mark, next(counts)") == "(6, ['before'], 2)"
    await close(branch)


async def test_history_of_a_branch_goes_on_from_its_parent(session: Handle) -> None:
    """Issue 7, In/Out and execution count, in both, and after a rollback."""
    await session.run("40 + 2")
    await session.call("checkpoint")
    (branch,) = await branches(session)
    for one, cell in ((branch, "'branch'"), (session, "'parent'")):
        reply = await one.run(cell)
        assert reply.result["execution_count"] == 2
        assert await one.value("In[1], Out[1], Out[2], _2") == repr(("40 + 2", 42, cell[1:-1], cell[1:-1]))
    await session.call("rollback")
    assert await session.value("len(In), sorted(Out)") == "(3, [1])"
    await close(branch)


async def test_interrupt_stops_a_cell_of_the_branch_only(session: Handle) -> None:
    """Issue 3, interrupt, in a branch; the parent's cell that runs at the same time goes on."""
    await session.run("kept = 1")
    (branch,) = await branches(session)
    wait = "import os, time\nopen('begun', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)\n'done'"
    replies: dict[str, Reply] = {}

    async def run(one: Handle) -> None:
        replies[one.session_id] = await one.run(wait)

    async with anyio.create_task_group() as tasks:
        for one in (session, branch):
            tasks.start_soon(run, one)
            await one.wait_for_file("begun")
        assert (await branch.call("interrupt")).text.startswith("Interrupted after")
        await session.call("edit_file", container_path="go", content="")
    assert replies[branch.session_id].status == "interrupted"
    assert (replies[session.session_id].status, replies[session.session_id].output) == ("ok", "'done'")
    assert await branch.value("kept") == "1"
    await close(branch)


async def test_cancelled_call_stops_its_cell_in_a_branch(session: Handle) -> None:
    """DESIGN, cancelling: as in any session."""
    (branch,) = await branches(session)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(branch.run, "open('begun', 'w').close()\nimport time; time.sleep(60)")
        await branch.wait_for_file("begun")
        tasks.cancel_scope.cancel()
    assert (await branch.run("'goes on'")).result["generation"] == 1
    await close(branch)


async def test_death_of_a_branch_is_told_in_the_branch_only(session: Handle) -> None:
    """DESIGN, loss: it has its own checkpoints, and those of the parent are not for it."""
    await session.run("x = 1")
    await session.call("checkpoint", label="of the parent")
    first, second = await branches(session, count=2)
    await first.call("checkpoint", label="of the branch")
    await first.run("x = 2")
    died = await first.run("import os\nos.kill(os.getpid(), 9)")
    assert died.status == "died"
    assert "rollback(session_id, 'c1')" in died.text
    for other in (session, second):
        reply = await other.run("x")
        assert (reply.text.splitlines()[0], reply.result["generation"]) == ("1", 1)
        assert "Since the last call" not in reply.text
    assert (await second.call("rollback")).is_error, "it has none of its own"
    back = await first.call("rollback")
    assert "checkpoint: c1\n" in back.text
    assert await first.value("x") == "1"
    await close(first, second)


async def test_input_of_a_branch_is_put_to_a_person(anyio_backend: str, tmp_path: Path) -> None:
    """Issue 3, input(): in the parent, in its branch, and after a rollback."""

    async def answer(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(
            action="accept", content={"value": params.message.splitlines()[0].rpartition(" ")[2].strip("'")}
        )

    folder = str(tmp_path)
    given = {"WORKDIR": folder, "PY_EXEC_STATE_DIR": folder, "PY_EXEC_ENGINE": "local", "PY_EXEC_PRELOAD": "none"}
    given |= {"PY_EXEC_ON_EXIT": "remove", "PY_EXEC_LOG_LEVEL": "WARNING"}
    async with Client(create_server(load_settings(given)), elicitation_callback=answer) as client:

        async def call(tool: str, session_id: str = "", **arguments: str) -> Reply:
            arguments |= {"session_id": session_id} if session_id else {}
            with anyio.fail_after(60):
                return Reply(await client.call_tool(tool, arguments))

        parent = re.findall(r"session_id: (\w+)", (await call("init")).text)[0]
        await call("checkpoint", parent)
        (branch,) = re.findall(r"^session_id: (\w+)", (await call("branch_session", parent)).text, re.MULTILINE)
        for session_id in (parent, branch):
            reply = await call("run_code", session_id, code=f"input('{session_id[:4]}') * 2")
            assert reply.output.splitlines()[-1] == repr(session_id[:4] * 2)
        assert not (await call("rollback", parent)).is_error
        reply = await call("run_code", parent, code="input('again') * 2")
        assert reply.output.splitlines()[-1] == "'againagain'"


async def test_rollback_of_what_was_branched_before(session: Handle) -> None:
    """Ours: a branch of a checkpoint is a copy: what becomes of the parent and of the checkpoint is nothing to it."""
    await session.run("x = [1]; _ = open('file', 'w').write('1')")
    await session.call("checkpoint")
    (branch,) = await branches(session, checkpoint="c1")
    await session.run("x.append(2); _ = open('file', 'w').write('2')")
    await session.call("rollback")
    await branch.run("x.append(3); _ = open('file', 'w').write('3')")
    assert await session.value("x, open('file').read()") == "([1], '1')"
    assert await branch.value("x, open('file').read()") == "([1, 3], '3')"
    (again,) = await branches(session, checkpoint="c1")
    assert await again.value("x, open('file').read()") == "([1], '1')"
    await close(branch, again)


async def test_as_many_branches_as_there_is_room_for_or_none(tmp_path: Path) -> None:
    """DESIGN, PY_EXEC_SESSION_MAX: nothing is evicted, and no branch is made that would not be told of."""
    async with serving(tmp_path, "local", PY_EXEC_SESSION_MAX="3", PY_EXEC_POOL="0", PY_EXEC_PRELOAD="none") as kit:
        session = await kit.init()
        refused = await session.call("branch_session", count=3)
        assert refused.is_error
        assert "All 3 sessions are in use (PY_EXEC_SESSION_MAX)" in refused.text
        assert (await kit.call("list_sessions")).text.count("age") == 1
        first, _ = await branches(session, count=2)
        assert (await kit.call("init")).is_error
        await close(first)
        await branches(session)


@pytest.mark.docker
async def test_rollback_after_memory_ran_out(docker_kit: Kit) -> None:
    """Issue 7, after a death: first a MemoryError, which leaves the state half-done, then the end of the kernel."""
    async with docker_kit.session() as session:
        await session.run("import os\nrows = list(range(1000))")
        await session.call("checkpoint")
        failed = await session.run("rows.clear()\nrows = bytearray(10**11)")
        assert "MemoryError" in failed.text
        assert await session.value("len(rows)") == "0"
        assert not (await session.call("rollback")).is_error
        assert await session.value("len(rows)") == "1000"
        assert (await session.run("os.abort()")).status == "died"
        assert not (await session.call("rollback")).is_error
        assert await session.value("len(rows)") == "1000"


OBSTACLES = {
    "shared memory": (
        "from multiprocessing.shared_memory import SharedMemory\nblock = SharedMemory(create=True, size=4096)",
        "shared memory",
        "block.close(); block.unlink(); del block",
    ),
    "file in /tmp": ("file = open('/tmp/written', 'w'); _ = file.write('x')", "/tmp/written", "file.close()"),
    "process of multiprocessing": (
        "import multiprocessing, time\nmade = multiprocessing.get_context('fork').Process(target=time.sleep, args=(1000,)); made.start()",
        "process",
        "made.terminate(); made.join(); made.close()",
    ),
    "pipe": ("import os\nends = os.pipe()", "pipe", "_ = [os.close(end) for end in ends]"),
}


@pytest.mark.docker
@pytest.mark.parametrize("what", OBSTACLES)
async def test_more_that_would_be_common_to_both_is_refused(docker_kit: Kit, what: str) -> None:
    """Issue 7: detect, name, refuse, with what to do; done so, the same session can be branched."""
    code, named, remedy = OBSTACLES[what]
    async with docker_kit.session() as session:
        assert (await session.run("kept = 1\n" + code)).status == "ok"
        refused = await session.call("branch_session")
        assert refused.is_error, refused.text
        assert named in refused.text.lower()
        assert (await session.run(remedy)).status == "ok"
        (branch,) = await branches(session)
        assert await branch.value("kept") == "1"
        await close(branch)


async def test_rollback_waits_until_nothing_is_being_ended_any_more(
    session: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by repeating it: what ends the session's processes ended the fork that came back, too (3 of 100 in a container);
    or the answer to `kill` waited for the end of that, for a minute. Here that answer is late.
    """
    kill, rollback = ControlledHost.kill, ControlledHost.rollback
    told: list[str] = []

    async def kill_slowly(self: ControlledHost, session_id: str) -> None:
        await kill(self, session_id)
        await anyio.sleep(0.3)
        told.append("killed")

    async def note_rollback(self: ControlledHost, session_id: str, name: str) -> tuple[Launched, Restored]:
        told.append("rollback")
        return await rollback(self, session_id, name)

    await session.run("kept = 1")
    await session.call("checkpoint")
    monkeypatch.setattr(ControlledHost, "kill", kill_slowly)
    monkeypatch.setattr(ControlledHost, "rollback", note_rollback)
    assert not (await session.call("rollback")).is_error
    assert told == ["killed", "rollback"]
    assert await session.value("kept") == "1"


@pytest.mark.docker
async def test_deepest_branch_says_that_it_is(docker_kit: Kit) -> None:
    """Ours: Landlock has 16 layers, a branch has one more than its parent. (Found as `OSError: Argument list too long`.)"""
    if not landlock.abi():
        pytest.skip("this Linux has no Landlock")
    async with docker_kit.session() as parent:
        await parent.run("x = 1")
        made = [parent]
        for _ in range(15):
            made += await branches(made[-1])
        deepest = made[-1]
        refused = await deepest.call("branch_session")
        assert refused.is_error
        assert "branch from a session that it comes from" in refused.text
        assert not (await deepest.call("checkpoint")).is_error
        assert not (await deepest.call("rollback")).is_error
        assert await deepest.value("x") == "1"
        await close(*made[1:])


async def test_calls_about_checkpoints_that_are_cancelled_leave_the_session_as_it_was(session: Handle) -> None:
    """DESIGN, cancelling: whatever was on its way is given up or finished. (What was finished just then may be there.)"""
    await session.run("x = [0]")
    await session.call("checkpoint")
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        ("branch_session", {"count": 2}),
        ("checkpoint", {}),
        ("rollback", {"checkpoint": "c1"}),
    )
    for tool, arguments in calls:
        for milliseconds in (1, 3, 6, 10, 15, 25, 40):
            with anyio.move_on_after(milliseconds / 1000):
                await session.call(tool, **arguments)
            assert await session.value("x") == "[0]"
    listed = (await session.kit.call("list_sessions")).text
    made = re.findall(rf"^ *(\w+), .*branched from {session.session_id}", listed, re.MULTILINE)
    await close(*(Handle(session.kit, name, "") for name in made))
