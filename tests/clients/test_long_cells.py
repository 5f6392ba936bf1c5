"""Cells that outlast their calls, and calls that are given up, through clients on stdio as they are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError, StdioServerParameters

from tests.clients.calls import Caller
from tests.clients.wire import ROOT, server_environment, wire_server
from tests.driving import Reply, eventually

pytestmark = pytest.mark.anyio

SERVER = [sys.executable, str(ROOT / "server.py")]
# Runs until somebody makes the file `go`.
UNTIL_GO = "import os, time\nprint('begun')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('done')\n42"
ENDLESS = "import time\nopen('begun', 'w').close()\nwhile True: time.sleep(0.01)"
EATS_ALL = "print('begun', flush=True)\nx = b'x' * (1 << 30)"


# -- clients that give up --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_client_that_gives_up_later_than_the_call_returns_misses_nothing(mode: Any, tmp_path: Path) -> None:
    """Issue 3: a 100 s cell survives a client that gives up at 50 s, since calls return at 45 s; here in tenths."""
    settings = {"PY_EXEC_ENGINE": "local", "PY_EXEC_PRELOAD": "none", "PY_EXEC_WAIT": "0.5"}
    environment = {**server_environment(tmp_path), **settings}
    parameters = StdioServerParameters(command=SERVER[0], args=SERVER[1:], env=environment, cwd=tmp_path)
    async with Client(parameters, mode=mode, read_timeout_seconds=10) as client:

        async def call(tool: str, **arguments: Any) -> Reply:
            return Reply(await client.call_tool(tool, arguments))

        first = await call("run_code", code=UNTIL_GO)
        assert (first.status, first.text.splitlines()[0]) == ("running", "begun")
        session_id = first.result["session_id"]
        assert (await call("wait", session_id=session_id)).status == "running"
        await call("edit_file", container_path="go", content="", session_id=session_id)
        last = await call("wait", session_id=session_id)
        assert (last.status, last.output) == ("ok", "begun\ndone\n42")


async def test_result_that_came_after_the_client_had_given_up_is_not_lost(caller: Caller) -> None:
    """Issue 3: the request is dropped without a word. The cell ends; its output can be read, and `wait` says how."""
    dropped = await caller.run(UNTIL_GO)
    await caller.call("edit_file", container_path="go", content="")
    assert await caller.value("'next'") == "'next'"
    waited = await caller.call("wait")
    assert waited.raw["isError"]
    assert "read_output has the text of earlier cells" in waited.text
    assert (await caller.call("read_output", execution_count=1)).text == "begun\ndone\n42"
    assert (await dropped.result()).status == "ok"


async def test_cell_whose_call_nobody_listened_to_is_collected_by_wait(caller: Caller) -> None:
    """Issue 3: what the call returned when its time was up is lost on the way; `wait` gets the whole result."""
    await (await caller.run(UNTIL_GO, wait=0.2)).outcome()
    await caller.call("edit_file", container_path="go", content="")
    result = await caller.call("wait")
    assert (result.status, result.text.splitlines()[:3]) == ("ok", ["begun", "done", "42"])


async def test_cancelled_call_leaves_an_idle_kernel_with_its_variables(caller: Caller) -> None:
    """Issue 3, `notifications/cancelled` in both eras: no answer, an idle kernel, variables, and a next cell."""
    await caller.value("kept = 1")
    call = await caller.run(ENDLESS)
    await _begun(caller)
    await call.cancel()
    with anyio.fail_after(10):
        assert await caller.value("kept") == "1"
    assert (await caller.call("list_variables")).text == "kept int = 1\n[kernel-server]\n[nothing is running]"
    assert not caller.server.has_answered(call.number)


async def test_cancelled_wait_leaves_the_cell_alone(caller: Caller) -> None:
    """Ours: only the call that sent the code stops it with itself."""
    assert (await caller.call("run_code", code=UNTIL_GO, wait=0.2)).status == "running"
    waiting = await caller.start("wait")
    await waiting.cancel()
    await caller.call("edit_file", container_path="go", content="")
    assert (await caller.call("wait")).status == "ok"


async def test_official_client_that_times_out_stops_its_cell(tmp_path: Path) -> None:
    """Ours: SDKs cancel what they give up. A `wait` that outlasts the client's own patience costs the cell, no more."""
    environment = server_environment(tmp_path, PY_EXEC_ENGINE="local", PY_EXEC_PRELOAD="none")
    parameters = StdioServerParameters(command=SERVER[0], args=SERVER[1:], env=environment, cwd=tmp_path)
    async with Client(parameters) as client:
        made = Reply(await client.call_tool("init"))
        assert made.raw.meta is not None
        session_id = made.raw.meta["kernel_server/session"]["session_id"]
        with pytest.raises(MCPError):
            await client.call_tool(
                "run_code", {"code": f"kept = 1\n{ENDLESS}", "session_id": session_id}, read_timeout_seconds=1
            )
        with anyio.fail_after(20):
            after = Reply(await client.call_tool("run_code", {"code": "kept", "session_id": session_id}))
    assert after.output == "1"


async def _begun(caller: Caller) -> None:
    async def has_begun() -> bool:
        copied = await caller.call("cp_out", container_path="begun", local_path=f"begun-{caller.session_id}")
        return not copied.raw.get("isError")

    await eventually(has_begun)


# -- deaths ----------------------------------------------------------------------------------------------------------


@pytest.mark.docker
async def test_memory_death_is_told_with_its_cause_and_the_next_cell_runs(tmp_path: Path) -> None:
    """Issue 3: the whole container's limit is reached, which no MemoryError can tell.

    Linux or the container's supervisor kills, whoever comes first.
    """
    async with wire_server(SERVER, tmp_path, PY_EXEC_PRELOAD="none", PY_EXEC_MEMORY="256m") as server:
        await server.initialize()
        async with Caller(server, modern=False).session() as caller:
            await caller.value("kept = 1; open('file', 'w').write('kept')")
            result = await caller.call("run_code", code=EATS_ALL)
            assert result.status == "died", result.text
            assert result.text.startswith("begun\n")
            assert "PY_EXEC_MEMORY" in result.text
            assert "generation 2" in result.text
            assert await caller.value("open('file').read(), 'kept' in globals()") == "('kept', False)"
