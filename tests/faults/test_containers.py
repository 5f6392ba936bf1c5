"""A container that is killed, stopped or paused under its server (issue 5, faults)."""

from __future__ import annotations

import signal

import anyio
import pytest

from tests.clients.wire import containers_of
from tests.driving import eventually
from tests.faults.containers import Container
from tests.faults.servers import Servers

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

REPEATS = 2
ENDED = "was closed by the end of its container, which was killed or crashed"


async def test_end_of_a_container_is_told_and_the_next_session_gets_a_fresh_one(servers: Servers) -> None:
    """Issue 5: killed, stopped, kernel_host killed. Calls in flight and later ones end with the reason, at once."""
    server = await servers.start(PY_EXEC_POOL="1")
    busy = await server.begin("x = 1")
    for end in (Container.kill, Container.stop, Container.kill_kernel_host) * REPEATS:
        idle = await server.begin("y = 2")
        call = await server.begin_long_cell(busy)
        container = Container.of(server.pid)
        end(container)
        answer = await server.answer(call, 5)
        assert answer.is_error
        assert ENDED in answer.text
        assert ENDED in await server.text("run_code", code="y", session_id=idle)
        assert "1 cell" in await server.text("export_notebook", session_id=idle)
        busy = await server.begin("x = 1")
        await eventually(container.has_left_nothing)
    assert len(containers_of(server.pid)) == 1


async def test_calls_wait_for_a_container_that_is_paused_for_a_moment(servers: Servers) -> None:
    """Issue 5: paused; nothing is lost."""
    server = await servers.start()
    (servers.folder / "data.txt").write_text("data")
    session_id = await server.begin("x = 1\nopen('made.txt', 'w').write('made')")
    container = Container.of(server.pid)
    for turn, seconds in enumerate((0.5, 2.5)):
        cell = await server.begin_long_cell(session_id, "for i in range(3):\n    print(i)\n    time.sleep(0.1)\nx += 1")
        container.pause()
        calls = [
            await server.send("init"),
            await server.send("list_packages", session_id=session_id),
            await server.send("cp_in", session_id=session_id, local_path="data.txt"),
            await server.send("cp_out", session_id=session_id, container_path="made.txt"),
        ]
        await anyio.sleep(seconds)
        container.unpause()
        for call in calls:
            assert not (await server.answer(call)).is_error
        assert (await server.answer(cell)).output.startswith("0\n1\n2")
        assert await server.run(session_id, "x") == str(turn + 2)
    assert (servers.folder / "made.txt").read_text() == "made"


@pytest.mark.parametrize("on_exit", ["keep", "remove"])
async def test_server_of_a_paused_container_ends_in_time(servers: Servers, on_exit: str) -> None:
    """Issue 5, leaving: within 2 s. (4 s here: the machine is shared.) What is to be removed is removed."""
    server = await servers.start(PY_EXEC_ON_EXIT=on_exit)
    session_id, busy = await server.begin("x = 1"), await server.begin("y = 2")
    call = await server.begin_long_cell(busy)
    container = Container.of(server.pid)
    container.pause()
    begun = anyio.current_time()
    server.wire.process.send_signal(signal.SIGTERM)
    assert (await server.answer(call)).is_error
    assert await server.wire.wait() == 128 + signal.SIGTERM
    assert anyio.current_time() - begun < 4
    if on_exit == "remove":
        await eventually(container.has_left_nothing)
    else:
        container.unpause()
        assert await (await servers.start()).run(session_id, "x") == "1"
