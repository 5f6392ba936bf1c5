"""Kernels that are killed or stopped from outside, and sockets that vanish (issue 5, faults)."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import anyio
import pytest

from tests.driving import eventually
from tests.faults.containers import Container
from tests.faults.servers import Server, Servers

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

REPEATS = 2


async def _signal(server: Server, session_id: str, number: signal.Signals) -> None:
    """Sends a signal to a session's kernel from outside of it."""
    told = await server.text("list_variables", session_id=session_id, peek="__import__('os').getpid()")
    Container.of(server.pid).signal(int(told.splitlines()[0]), number)


async def test_kernel_that_is_killed_is_told_and_followed_by_a_fresh_one(servers: Servers) -> None:
    """Issue 5: SIGKILL, while a cell runs and while none does. Other sessions go on."""
    server = await servers.start()
    session_id, other_id = await server.begin("x = 1"), await server.begin("y = 2")
    for turn in range(REPEATS):
        call = await server.begin_long_cell(session_id, "print('before')\ntime.sleep(600)")
        await _signal(server, session_id, signal.SIGKILL)
        answer = await server.answer(call, 5)
        assert answer.status == "died"
        assert answer.text.startswith("before\n")
        assert "killed by SIGKILL" in answer.text
        assert f"(generation {2 * turn + 2})" in answer.text
        await server.run(session_id, "z = 3")
        await _signal(server, session_id, signal.SIGKILL)
        await eventually(lambda: _is_fresh(server, session_id))
        told = await server.call("run_code", code="'z' in globals()", session_id=session_id)
        assert told.output.startswith("False")
        assert "Since the last call: The kernel was killed by SIGKILL" in told.text
    assert await server.run(other_id, "y") == "2"


async def _is_fresh(server: Server, session_id: str) -> bool:
    looked = await server.call("list_variables", session_id=session_id)
    return not looked.is_error and "z" not in looked.text


async def test_kernel_that_is_stopped_is_waited_for_and_killed_by_an_interrupt(servers: Servers) -> None:
    """Issue 5: SIGSTOP. Its output so far is there; variables say that they cannot be had; a fresh kernel follows."""
    server = await servers.start()
    session_ids = [await server.begin("x = 1") for _ in range(REPEATS)]
    cells = []
    for session_id in session_ids:
        cells.append(await server.begin_long_cell(session_id, "print('before')\ntime.sleep(600)"))
        await _signal(server, session_id, signal.SIGSTOP)
    for call in [await server.send("wait", session_id=name, wait=1) for name in session_ids]:
        answer = await server.answer(call)
        assert answer.status == "running"
        assert answer.text.startswith("before\n")
    look = await server.send("list_variables", session_id=session_ids[0])
    interrupts = [await server.send("interrupt", session_id=name) for name in session_ids]
    with anyio.fail_after(15):
        assert (await server.answer(look)).is_error
        for call in interrupts:
            assert "did not react to being interrupted" in (await server.answer(call)).text
    for session_id, cell in zip(session_ids, cells, strict=True):
        collected = await server.answer(cell)
        assert collected.status == "interrupted"
        assert collected.text.startswith("before\n")
        fresh = await server.call("run_code", code="'x' in globals()", session_id=session_id)
        assert fresh.output.startswith("False")
        assert fresh.result["generation"] == 2


async def test_stopped_kernel_goes_on_where_it_was(servers: Servers) -> None:
    """Ours: stopped and continued, nothing is lost; a cell that was sent meanwhile runs."""
    server = await servers.start()
    session_id = await server.begin("import os, signal\nx = 1")
    for turn in range(REPEATS):
        pid = int(await server.run(session_id, "os.getpid()"))
        await _signal(server, session_id, signal.SIGSTOP)
        call = await server.send_cell(session_id, "x += 1\nx")
        waiting = await server.send("wait", session_id=session_id, wait=1)
        assert (await server.answer(waiting)).status == "running"
        Container.of(server.pid).signal(pid, signal.SIGCONT)
        assert (await server.answer(call)).output.startswith(str(turn + 2))


async def test_sockets_of_a_kernel_that_are_deleted_are_not_missed(servers: Servers) -> None:
    """Issue 5: connections stay; a kernel that follows makes its own anew."""
    server = await servers.start()
    session_id = await server.begin("x = 1")
    for _ in range(REPEATS):
        call = await server.begin_long_cell(session_id, "time.sleep(0.5)\nprint('after')")
        sockets = list(Container.of(server.pid).run_dir.glob("*/s-*"))
        assert len(sockets) >= 4
        for socket in sockets:
            socket.unlink()
        assert (await server.answer(call)).output.startswith("after")
        assert "started" in await server.text("list_variables", session_id=session_id)
        await server.text("run_code", code="import os; os._exit(1)", session_id=session_id)
        assert await server.run(session_id, "6 * 7") == "42"


async def test_control_socket_that_is_deleted_is_missed_by_the_next_server_only(servers: Servers) -> None:
    """Issue 5: all tools go on working; a later server says that it could not go on, and removes what is left."""
    server = await servers.start()
    for _ in range(REPEATS):
        session_id = await server.begin("x = 1")
        container = Container.of(server.pid)
        (container.run_dir / "control").unlink()
        assert await server.run(session_id, "x") == "1"
        assert await server.run(await server.begin("y = 2"), "y") == "2"
        assert not (await server.call("edit_file", container_path="a", content="b", session_id=session_id)).is_error
        await server.kill()
        server = await servers.start()
        said = await server.text("run_code", code="x", session_id=session_id)
        assert "could not be taken over: Nothing answers at its socket" in said
        await eventually(container.has_left_nothing)


async def test_run_folder_that_is_deleted_is_missed_by_new_kernels_only(servers: Servers) -> None:
    """Issue 5, ours: what cleans /tmp takes it. Sessions go on; what does not says so, and reset helps."""
    server = await servers.start()
    for _ in range(REPEATS):
        session_id = await server.begin("x = 1")
        shutil.rmtree(Container.of(server.pid).run_dir.parent)
        assert await server.run(session_id, "x") == "1"
        for failed in (
            await server.call("init"),
            await server.call("edit_file", container_path="a", content="b", session_id=session_id),
        ):
            assert failed.is_error
            assert "has been removed" in failed.text
            assert "reset" in failed.text
        assert await server.run(session_id, "x") == "1"
        assert not (await server.call("reset")).is_error
        assert await server.run(await server.begin("y = 2"), "y") == "2"
    assert Path(Container.of(server.pid).run_dir).exists()
