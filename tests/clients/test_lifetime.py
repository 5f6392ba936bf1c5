"""With PY_EXEC_ON_EXIT=remove: however the server ends, its container ends as well, at the latest with its lease."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.clients.wire import ROOT, WireServer, containers_of, wire_server
from tests.driving import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

SERVER = [sys.executable, str(ROOT / "server.py"), "--PY_EXEC_PRELOAD", "none"]
LEASE_SECONDS = 10.0  # kernel_server/hosts/docker.py: how long a container outlives a server that was killed
REMOVAL_SECONDS = 5.0


async def _start_a_session(server: WireServer) -> str:
    await server.initialize()
    started = await server.call("init")
    assert not started.get("isError"), f"{started}\n{server.stderr}"
    session_id = started["_meta"]["kernel_server/session"]["session_id"]
    assert len(containers_of(server.process.pid)) == 1
    return str(session_id)


async def _start_a_long_cell(server: WireServer, marker: str) -> int:
    """Sends a cell that runs for minutes, and returns the request's number when it is under way."""
    session_id = await _start_a_session(server)
    code = f"import time; open({marker!r}, 'w').close(); time.sleep(600)"
    number = await server.send(
        "tools/call", {"name": "run_code", "arguments": {"code": code, "session_id": session_id}}
    )

    async def has_started() -> bool:
        result = await server.call("cp_out", container_path=marker, session_id=session_id)
        return not result.get("isError")

    await eventually(has_started)
    return number


async def test_end_of_stdin_ends_server_and_container(tmp_path: Path) -> None:
    """MCP, stdio shutdown: the client closes stdin; exit code 0."""
    async with wire_server(SERVER, tmp_path) as server:
        await _start_a_session(server)
        assert server.process.stdin is not None
        await server.process.stdin.aclose()
        assert await server.wait() == 0
        await eventually(lambda: not containers_of(server.process.pid), LEASE_SECONDS + REMOVAL_SECONDS)
    assert "Traceback" not in server.stderr


async def test_end_of_stdin_while_a_cell_runs(tmp_path: Path) -> None:
    """Ours: a client that goes away does not wait for its cells, and neither do we."""
    async with wire_server(SERVER, tmp_path) as server:
        await _start_a_long_cell(server, "started")
        assert server.process.stdin is not None
        await server.process.stdin.aclose()
        assert await server.wait() == 0
        await eventually(lambda: not containers_of(server.process.pid), LEASE_SECONDS + REMOVAL_SECONDS)
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_server_and_container(number: signal.Signals, tmp_path: Path) -> None:
    """facts/mcp.md 1: the SDK would leave the container (SIGTERM) or hang (SIGINT). The shell's exit code: 128 + n."""
    async with wire_server(SERVER, tmp_path) as server:
        await _start_a_long_cell(server, "started")
        server.process.send_signal(number)
        assert await server.wait() == 128 + number
        await eventually(lambda: not containers_of(server.process.pid), LEASE_SECONDS + REMOVAL_SECONDS)
    assert "Traceback" not in server.stderr


async def test_signal_before_any_container(tmp_path: Path) -> None:
    """Ours: nothing to clean up, the same exit code."""
    async with wire_server(SERVER, tmp_path) as server:
        await server.initialize()
        server.process.send_signal(signal.SIGTERM)
        assert await server.wait() == 128 + signal.SIGTERM


async def test_killed_server_leaves_no_container_for_long(tmp_path: Path) -> None:
    """DESIGN, lifetime: the container is never an orphan; kernel_host leaves when nobody holds its control socket."""
    async with wire_server(SERVER, tmp_path) as server:
        await _start_a_long_cell(server, "started")
        server.process.kill()
        assert await server.wait() == -signal.SIGKILL
    assert len(containers_of(server.process.pid)) == 1
    await eventually(lambda: not containers_of(server.process.pid), LEASE_SECONDS + REMOVAL_SECONDS)


async def test_signal_while_the_container_starts(tmp_path: Path) -> None:
    """Ours: the moment in which a half-made container could be forgotten."""
    async with wire_server(SERVER, tmp_path) as server:
        await server.initialize()
        await server.send("tools/call", {"name": "init", "arguments": {}})
        await eventually(lambda: containers_of(server.process.pid))
        server.process.send_signal(signal.SIGTERM)
        assert await server.wait() == 128 + signal.SIGTERM
        await eventually(lambda: not containers_of(server.process.pid), LEASE_SECONDS + REMOVAL_SECONDS)
