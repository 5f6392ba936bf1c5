"""Clients that vanish, read slowly or reset, and a server that is suspended or told to end twice (issue 5, faults)."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import anyio
import pytest

from tests.clients.wire import containers_of, wire_server
from tests.driving import eventually
from tests.faults.containers import Container
from tests.faults.servers import SERVER, Server, Servers

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

REPEATS = 2
LEAVE_SECONDS = 4.0  # 2 s are promised, and this machine is shared
CELL = "for i in range(4):\n    print('line', i)\n    time.sleep(0.2)\nx += 1\nx"
RESULT = "line 0\nline 1\nline 2\nline 3\n42"
LARGE = 1_000_000  # characters; a pipe holds 64 KB


def _close(server: Server, what: int) -> None:
    """Closes the client's end of stdin (0) or stdout (1), as the end of its process does."""
    server.wire.process._process._transport.get_pipe_transport(what).close()  # type: ignore[attr-defined]


async def test_cell_of_a_client_that_vanishes_goes_on(servers: Servers) -> None:
    """Issue 5: in mid-call, with PY_EXEC_ON_EXIT=keep. A client that only stops reading is gone, too."""
    server = await servers.start()
    session_id = await server.begin("x = 41")
    for closed in ([1], [1, 0]):
        await server.begin_long_cell(session_id, CELL)
        await _vanish(server, closed)
        assert "Traceback" not in server.wire.stderr
        server = await servers.start()
        assert (await server.call("wait", session_id=session_id)).output.startswith(RESULT)
        await server.run(session_id, "x = 41")


async def _vanish(server: Server, closed: list[int]) -> None:
    """Closes these ends of the client, and waits for the server's end."""
    for number in closed:
        _close(server, number)
    if 0 not in closed:
        await server.send("list_sessions")
    assert await server.wire.wait(LEAVE_SECONDS) == 0


async def test_cell_of_a_client_that_vanishes_is_stopped_where_nothing_is_kept(servers: Servers) -> None:
    """Issue 5: with PY_EXEC_ON_EXIT=remove, no container is left when the server has ended."""
    for closed in ([1], [1, 0]):
        server = await servers.start(PY_EXEC_ON_EXIT="remove")
        await server.begin_long_cell(await server.begin("x = 41"))
        container = Container.of(server.pid)
        await _vanish(server, closed)
        await eventually(container.has_left_nothing)


async def test_nothing_is_lost_of_what_a_client_reads_late(servers: Servers) -> None:
    """Issue 5: it stops reading while MBs are due. Cells run meanwhile, and all results come."""
    server = await servers.start(PY_EXEC_OUTPUT_BYTES=str(2 * LARGE))
    session_id = await server.begin("import os, time")
    for turn in range(REPEATS):
        calls = [await server.send_cell(session_id, f"print('{n}' * {LARGE})\n{n}") for n in range(4)]
        await server.send_cell(session_id, f"{turn}")
        await servers.wait_for_cells(session_id, 6 * turn + 6)
        for n, call in enumerate(calls):
            assert (await server.answer(call)).text.startswith(f"{n}" * LARGE)
        assert await server.run(session_id, "6 * 7") == "42"


async def test_server_whose_client_does_not_read_ends_in_time(servers: Servers) -> None:
    """Ours: a pipe that is full keeps nobody. What could not be told is told by the next server."""
    first = await servers.start(PY_EXEC_OUTPUT_BYTES=str(2 * LARGE))
    session_id = await first.begin("x = 41")
    for _ in range(3):
        await first.send_cell(session_id, f"print('a' * {LARGE})\nx += 1")
    await servers.wait_for_cells(session_id, 4)
    first.wire.process.send_signal(signal.SIGTERM)
    assert await first.wire.wait(LEAVE_SECONDS) == 128 + signal.SIGTERM
    assert await (await servers.start()).run(session_id, "x") == "44"


async def test_server_that_was_suspended_goes_on(servers: Servers) -> None:
    """Issue 5: as with a machine that sleeps. No session is lost, and no result."""
    server = await servers.start()
    session_id = await server.begin("x = 41")
    for turn, seconds in enumerate((0.5, 2.5)):
        cell = await server.begin_long_cell(session_id, "time.sleep(0.2)\nx += 1\nx")
        server.wire.process.send_signal(signal.SIGSTOP)
        calls = [
            await server.send("init"),
            await server.send("list_packages", session_id=session_id),
            await server.send("list_variables", session_id=session_id),
        ]
        await anyio.sleep(seconds)
        server.wire.process.send_signal(signal.SIGCONT)
        for call in calls:
            assert not (await server.answer(call, 15)).is_error
        assert (await server.answer(cell, 15)).output.startswith(str(42 + turn))


async def test_reset_ends_calls_in_flight_with_the_reason(servers: Servers) -> None:
    """Issue 5: reset while calls run; the next session works."""
    server = await servers.start(PY_EXEC_POOL="1")
    for _ in range(REPEATS):
        busy, other = await server.begin("x = 1"), await server.begin("y = 2")
        calls = [await server.begin_long_cell(busy), await server.begin_long_cell(other)]
        calls += [
            await server.send_cell(busy, "x"),
            await server.send("wait", session_id=other),
            await server.send("list_variables", session_id=other, peek="time.sleep(3)"),
        ]
        reset = await server.send("reset")
        for call in calls:
            answer = await server.answer(call, 10)
            assert answer.is_error
            assert "was closed by reset" in answer.text or "The kernel ended" in answer.text
        assert "ended 2 sessions" in (await server.answer(reset)).text
        assert await server.run(await server.begin("z = 3"), "z") == "3"
        await server.text("reset")
    await eventually(lambda: len(containers_of(server.pid)) == 1)


async def test_server_ends_with_the_process_that_started_it(servers: Servers, tmp_path: Path) -> None:
    """Issue 5: parent gone, while somebody else still holds stdin."""
    command = ["sh", "-c", f"exec 3<&0; {shlex.join(SERVER)} <&3 & echo $! >pid; wait"]
    state = {"PY_EXEC_STATE_DIR": str(servers.state), "PY_EXEC_ON_EXIT": "keep", "PY_EXEC_POOL": "0"}
    async with wire_server(command, tmp_path, cwd=tmp_path, **state) as wire:
        await wire.initialize()
        first = Server(wire)
        session_id = await first.begin("x = 41")
        await first.begin_long_cell(session_id, CELL)
        pid = int((tmp_path / "pid").read_text())
        servers.pids.append(pid)
        wire.process.kill()
        await eventually(lambda: not _runs(pid), LEAVE_SECONDS)
    second = await servers.start()
    assert (await second.call("wait", session_id=session_id)).output.startswith(RESULT)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_second_signal_changes_nothing(servers: Servers) -> None:
    """Issue 5, leaving: impatient clients and people send several. The first one counts, and the session stays."""
    server = await servers.start()
    session_id = await server.begin("x = 41")
    for second in (signal.SIGTERM, signal.SIGINT):
        call = await server.begin_long_cell(session_id, CELL)
        server.wire.process.send_signal(signal.SIGTERM)
        await anyio.sleep(0.05)
        server.wire.process.send_signal(second)
        answer = await server.answer(call, LEAVE_SECONDS)
        assert "the next server with the same settings goes on" in answer.text
        assert await server.wire.wait(LEAVE_SECONDS) == 128 + signal.SIGTERM
        assert "Traceback" not in server.wire.stderr
        server = await servers.start()
        assert (await server.call("wait", session_id=session_id)).output.startswith(RESULT)
        await server.run(session_id, "x = 41")
