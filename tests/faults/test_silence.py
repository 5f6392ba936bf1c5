"""What takes no notice at all: a container that stays paused, an engine that hangs (issue 5, faults)."""

from __future__ import annotations

import signal

import anyio
import pytest

from tests.faults.containers import Container
from tests.faults.engines import EngineProxy
from tests.faults.servers import Servers

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

SILENT_SECONDS = 25.0  # until each call has said so; kernel_server/hosts/control.py: after 12 s
HANG_SECONDS = 25.0  # kernel_server/hosts/engine.py: it has 15 s to say that it is there
LEAVE_SECONDS = 4.0  # 2 s are promised, and this machine is shared


async def test_what_does_not_answer_is_told_within_a_bound(servers: Servers, engine: EngineProxy) -> None:
    """Issue 5: a typed error within a bound, never a hang. Both at once, since they take their time."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stay_paused, servers)
        tasks.start_soon(_hang, servers, engine)


async def _stay_paused(servers: Servers) -> None:
    """Every tool says it; what ran goes on where the container does, and reset helps where not."""
    server = await servers.start()
    (servers.folder / "data.txt").write_text("data")
    busy, idle, stopped = [await server.begin("x = 1") for _ in range(3)]
    result = await server.begin_long_cell(busy, "time.sleep(1)\nx += 1")
    await server.begin_long_cell(stopped)
    container = Container.of(server.pid)
    container.pause()
    silent = [
        await server.send("list_packages", session_id=idle),
        await server.send("cp_in", local_path="data.txt", session_id=idle),
        await server.send("cp_out", container_path="made.txt", session_id=idle),
        await server.send("edit_file", container_path="made.txt", content="made", session_id=idle),
        await server.send("run_file", path="made.py", session_id=idle),
        await server.send("cp_in", local_path="data.txt", container_path="/workspace/shared/data.txt"),
        await server.send("list_variables", session_id=idle),
        await server.send("interrupt", session_id=stopped),
    ]
    running = [
        await server.send("run_code", code="x += 1", session_id=idle, wait=1),
        await server.send("wait", session_id=busy, wait=1),
    ]
    with anyio.fail_after(SILENT_SECONDS):
        for answer in [await server.answer(call) for call in running]:
            assert answer.status == "running"
            assert "does not answer just now: it is paused" in answer.text
        for answer in [await server.answer(call) for call in silent]:
            assert answer.is_error or "did not stop in time" in answer.text
            assert "not answer" in answer.text
    container.unpause()
    assert (await server.answer(result)).status == "ok"
    assert (await server.call("wait", session_id=idle)).status == "ok"
    assert [await server.run(name, "x") for name in (busy, idle)] == ["2", "2"]
    container.pause()
    assert "ended 3 sessions" in await server.text("reset")
    assert not container.is_there()
    assert "was closed by reset" in await server.text("run_code", code="x", session_id=busy)
    assert await server.run(await server.begin("z = 3"), "z") == "3"


async def _hang(servers: Servers, engine: EngineProxy) -> None:
    """Copies and new containers say it. Cells run on, and the server ends in time."""
    server = await servers.start(DOCKER_HOST=engine.address)
    session_id = await server.begin("x = 1\nopen('made.txt', 'w').write('made')")
    (servers.folder / "data.txt").write_text("data")
    engine.hang()
    second = await servers.start(DOCKER_HOST=engine.address, PY_EXEC_MEMORY="3g")
    calls = [
        (second, await second.send("init")),
        (server, await server.send("cp_in", local_path="data.txt", session_id=session_id)),
        (server, await server.send("cp_out", container_path="made.txt", session_id=session_id)),
    ]
    assert await server.run(session_id, "x") == "1"
    assert await server.run(await server.begin("y = 2"), "y") == "2"
    with anyio.fail_after(HANG_SECONDS):
        for asked, call in calls:
            answer = await asked.answer(call)
            assert answer.is_error
            assert "The Docker engine" in answer.text
    for ending in (server, second):
        ending.wire.process.send_signal(signal.SIGTERM)
        assert await ending.wire.wait(LEAVE_SECONDS) == 128 + signal.SIGTERM
    assert await (await servers.start()).run(session_id, "x") == "1"
