"""An engine that goes away, comes back, hangs or is restarted (issue 5, faults). A proxy stands for it: others use it, too."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.clients.wire import containers_of
from tests.driving import eventually
from tests.faults.containers import Container
from tests.faults.engines import EngineProxy, engine_proxy
from tests.faults.servers import SERVER, Server, Servers

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

REPEATS = 2


async def _copy(server: Server, session_id: str) -> list[str]:
    """What a copy in and a copy out say."""
    return [
        await server.text("cp_in", local_path="data.txt", session_id=session_id),
        await server.text("cp_out", container_path="made.txt", session_id=session_id),
    ]


async def test_sessions_go_on_while_the_engine_is_away(servers: Servers, engine: EngineProxy) -> None:
    """Issue 5: away for a while. Only copies need it: they say so, leave nothing half, and work when it is back."""
    server = await servers.start(DOCKER_HOST=engine.address)
    session_id = await server.begin("x = 1\nopen('made.txt', 'w').write('made')")
    (servers.folder / "data.txt").write_text("data")
    for _ in range(REPEATS):
        call = await server.begin_long_cell(session_id, "time.sleep(1)\nx")
        await engine.go()
        assert (await server.answer(call)).output.startswith("1")
        new_id = await server.begin("y = 2")
        assert await server.run(new_id, "y") == "2"
        await server.text("edit_file", container_path="made.txt", content="made", session_id=session_id)
        for said in await _copy(server, session_id):
            assert said.startswith("Nothing was copied. ")
            assert "no Docker engine at" in said
        assert {path.name for path in servers.folder.iterdir() if "kernel-server" in path.name} == set()
        assert not (servers.folder / "made.txt").exists()
        await engine.come()
        assert all(said.startswith("Copied ") for said in await _copy(server, session_id))
        (servers.folder / "made.txt").unlink()


async def test_reset_without_an_engine_leaves_no_container(servers: Servers, engine: EngineProxy) -> None:
    """Ours: kernel_host is told to end, since the engine cannot be; the next call with an engine starts a fresh one."""
    server = await servers.start(DOCKER_HOST=engine.address)
    for _ in range(REPEATS):
        session_id = await server.begin("x = 1")
        await engine.go()
        said = await server.call("reset")
        assert said.is_error
        assert "no Docker engine at" in said.text
        assert "was closed by reset" in await server.text("run_code", code="x", session_id=session_id)
        assert "no Docker engine at" in await server.text("init")
        await eventually(lambda: not containers_of(server.pid))
        await engine.come()
        assert await server.run(await server.begin("y = 2"), "y") == "2"
        await server.text("reset")


async def test_sessions_of_an_engine_that_is_restarted_are_told_as_closed(
    servers: Servers, engine: EngineProxy
) -> None:
    """Issue 5: its containers are gone; the server need not be started anew."""
    server = await servers.start(DOCKER_HOST=engine.address)
    for _ in range(REPEATS):
        session_id = await server.begin("x = 1")
        call = await server.begin_long_cell(session_id)
        container = Container.of(server.pid)
        await engine.go()
        container.kill()
        assert "was closed by the end of its container" in (await server.answer(call, 5)).text
        assert "no Docker engine at" in await server.text("init")
        await engine.come()
        assert await server.run(await server.begin("z = 3"), "z") == "3"
        assert "was closed by" in await server.text("run_code", code="x", session_id=session_id)


async def test_engine_that_is_only_at_the_rootless_address_does_all_of_it(servers: Servers, tmp_path: Path) -> None:
    """Rootless Docker, found without DOCKER_HOST: every request goes there, attaching and archives too.

    The server has a mount namespace of its own, in which nothing listens at the system's address: the control.
    """
    if os.getuid() != 0:
        pytest.skip("needs root, to hide the system's socket")
    hide = "mount --make-rprivate / && mount --bind /dev/null /var/run/docker.sock"
    control = 'import docker; docker.APIClient(base_url="unix:///var/run/docker.sock").ping()'
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as runtime:
        (tmp_path / "input.txt").write_text("in")
        async with engine_proxy(Path(runtime), "docker.sock"):
            command = [
                "unshare",
                "-m",
                "sh",
                "-c",
                f"{hide} && ! {sys.executable} -c '{control}' 2>/dev/null && exec \"$@\"",
                "sh",
            ]
            server = await servers.start(
                command=[*command, *SERVER], XDG_RUNTIME_DIR=runtime, DOCKER_HOST="", PY_EXEC_ON_EXIT="remove"
            )
            session_id = await server.begin("x = 1")
            for tool, arguments in (
                ("cp_in", {"local_path": "input.txt"}),
                ("cp_out", {"container_path": "input.txt", "local_path": "output.txt"}),
                ("close_session", {}),
            ):
                reply = await server.call(tool, session_id=session_id, **arguments)
                assert not reply.is_error, reply.text
            assert (tmp_path / "output.txt").read_text() == "in"
            await server.end_of_stdin()
            await server.wire.wait()
