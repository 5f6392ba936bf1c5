"""init, close_session, reset, list_packages and the tool list through a real MCP client."""

from __future__ import annotations

import ast
import gc
import re
from pathlib import Path

import pytest
from mcp.types import CallToolRequestParams

from tests.driving import Handle, Kit, serving

pytestmark = pytest.mark.anyio

TOOLS = {
    "init",
    "run_code",
    "run_file",
    "cp_in",
    "cp_out",
    "edit_file",
    "list_packages",
    "close_session",
    "reset",
    "export_notebook",
}


async def test_init_says_what_there_is(kit: Kit) -> None:
    """DESIGN, tools: first line `session_id: <id>`, unguessable; then workspace, TTL, network, limits; the id in _meta."""
    reply = await kit.call("init")
    first, *lines = reply.text.splitlines()
    found = re.fullmatch(r"session_id: ([0-9a-f]{32})", first)
    assert found, first
    said = dict(line.split(": ", 1) for line in lines)
    assert reply.raw.meta is not None
    assert reply.raw.meta["kernel_server/session"] == {
        "session_id": found[1],
        "workspace": said["workspace"].partition(" ")[0],
    }
    assert said["workspace"].partition(" ")[0].endswith(f"/sessions/{found[1]}")
    assert said["expires"].startswith("600 s")
    assert reply.raw.structured_content is None
    if kit.engine == "docker":
        assert said["network"] == "none"
        assert said["limits"] == "4g memory in all, 2g for one process, 8g of files"
    else:
        assert "NONE" in said["isolation"], "DESIGN: local says in every init that there is no isolation"
    await kit.call("close_session", session_id=found[1])


async def test_working_directory_is_the_workspace(session: Handle) -> None:
    """DESIGN, processes: cwd /workspace/sessions/<id>."""
    assert await session.value("import os; os.getcwd()") == repr(session.workspace)
    assert await session.value("os.listdir()") == "[]"


async def test_sessions_do_not_share_variables_or_files(kit: Kit) -> None:
    """README: one kernel with its workspace per session."""
    async with kit.session() as one, kit.session() as other:
        await one.run("x = 1; open('mine', 'w').write('1')")
        assert "NameError" in (await other.run("x")).text
        assert await other.value("import os; os.listdir()") == "[]"
        assert one.session_id != other.session_id


async def test_sessions_do_not_share_random_numbers(kit: Kit) -> None:
    """Ours: forked kernels would otherwise all draw the same ones."""
    code = "import random, numpy, uuid\n[random.random(), float(numpy.random.rand()), str(uuid.uuid4())]"
    async with kit.session() as one, kit.session() as other:
        assert set(ast.literal_eval(await one.value(code))).isdisjoint(ast.literal_eval(await other.value(code)))


async def test_list_packages_says_the_same_twice(session: Handle) -> None:
    """DESIGN, results: listing tools use structured output, saying the same as their text."""
    for reply in (await session.call("list_packages"), await session.kit.call("list_packages")):
        assert reply.raw.structured_content is not None
        packages = reply.raw.structured_content["packages"]
        assert [f"{name}=={version}" for name, version in packages.items()] == reply.text.splitlines()
        assert {"ipykernel", "matplotlib", "pandas"} <= packages.keys()
    assert await session.value("import pandas; print(pandas.__version__)") == packages["pandas"]


async def test_closed_session_is_told_from_an_unknown_one(kit: Kit) -> None:
    """Issue 2, sessions: the error says which of unknown, closed, expired it is, and what to do."""
    handle = await kit.init()
    closed = await kit.call("close_session", session_id=handle.session_id)
    assert not closed.is_error
    for name, more in (
        ("run_code", {"code": "1"}),
        ("run_file", {"path": "x.py"}),
        ("cp_in", {"local_path": "x"}),
        ("cp_out", {"container_path": "x"}),
        ("edit_file", {"container_path": "x", "content": ""}),
        ("list_packages", {}),
        ("close_session", {}),
    ):
        reply = await handle.call(name, **more)
        assert reply.is_error, name
        assert "closed by close_session" in reply.text, name
        assert "Call init" in reply.text, name
        unknown = await kit.call(name, session_id="0" * 32, **more)
        assert unknown.is_error, name
        assert "Unknown session_id" in unknown.text, name
        assert "Call init" in unknown.text, name


async def test_refused_calls_leave_nothing_behind(local_kit: Kit) -> None:
    """Ours: an error that is raised again and again would keep every call that it was raised in, code and all."""
    async with local_kit.session() as handle:
        pass
    code = "'a cell of a session that has ended'"
    for _ in range(3):
        assert (await handle.run(code)).is_error
    gc.collect()
    calls = [thing for thing in gc.get_objects() if type(thing) is CallToolRequestParams]
    assert [call for call in calls if (call.arguments or {}).get("code") == code] == []


async def test_tools_are_the_documented_ones_and_refuse_other_arguments(local_kit: Kit) -> None:
    """DESIGN: every name is fixed; at most 20 tools, descriptions under 2 KB each (facts/mcp.md 5)."""
    tools = {tool.name: tool for tool in (await local_kit.client.list_tools()).tools}
    assert tools.keys() >= TOOLS
    assert len(tools) <= 20
    for tool in tools.values():
        assert tool.description, tool.name
        assert len(tool.description.encode()) < 2000, tool.name
        assert tool.input_schema["additionalProperties"] is False, tool.name
        assert tool.title, tool.name
        for name, schema in tool.input_schema["properties"].items():
            assert "anyOf" not in schema, f"{tool.name}.{name}: a text must be plain `str` (facts/mcp.md 1)"


@pytest.mark.docker
async def test_server_answers_without_touching_docker(
    docker_engine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 2: initialize and tools/list do not touch Docker; the first call that needs it does, and says what is wrong."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    async with serving(tmp_path, "docker") as kit:
        assert len((await kit.client.list_tools()).tools) >= len(TOOLS)
        reply = await kit.call("init")
        assert reply.is_error
        assert "no Docker engine at" in reply.text
        assert "systemctl start docker" in reply.text
        monkeypatch.delenv("DOCKER_HOST")
        again = await kit.call("init")
        assert not again.is_error, "the next call tries again"
