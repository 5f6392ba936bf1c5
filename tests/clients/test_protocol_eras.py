"""One server speaks every version of the protocol; the first request decides (facts/mcp.md, 2)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from tests.clients.wire import MODERN, ROOT, WireServer, envelope, server_environment, wire_server

pytestmark = pytest.mark.anyio

SERVER = [sys.executable, str(ROOT / "server.py")]
ENVELOPE = envelope()


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_legacy_client_gets_the_version_it_asks_for(version: str, tmp_path: Path) -> None:
    """MCP, lifecycle: the server echoes a version that it supports; tools and their errors work in it."""
    async with wire_server(SERVER, tmp_path) as server:
        result = await server.initialize(version)
        assert result["protocolVersion"] == version
        assert result["serverInfo"]["name"] == "kernel-server"
        tools = await server.request("tools/list")
        refused = await server.call("run_code", cod="1")
    await _check(tools, refused)


async def test_modern_client_needs_no_handshake(tmp_path: Path) -> None:
    """MCP 2026-07-28: each request carries its version in `_meta`."""
    async with wire_server(SERVER, tmp_path) as server:
        tools = await server.request("tools/list", {"_meta": ENVELOPE})
        arguments = {"name": "run_code", "arguments": {"cod": "1"}, "_meta": ENVELOPE}
        refused = await server.request("tools/call", arguments)
    await _check(tools, refused)


async def _check(tools: dict[str, Any], refused: dict[str, Any]) -> None:
    assert "run_code" in {tool["name"] for tool in tools["tools"]}
    assert refused["isError"] is True
    assert "Did you mean 'code'?" in refused["content"][0]["text"]


@pytest.mark.parametrize(("mode", "version"), [("legacy", "2025-11-25"), ("auto", MODERN)])
async def test_sdk_client_connects_in_both_eras(mode: Any, version: str, tmp_path: Path) -> None:
    """Ours: the official client, told to be an old one and a new one."""
    parameters = StdioServerParameters(command=SERVER[0], args=SERVER[1:], env=server_environment(tmp_path))
    async with Client(parameters, mode=mode) as client:
        assert client.protocol_version == version
        assert "init" in {tool.name for tool in (await client.list_tools()).tools}


async def test_unknown_version_is_answered_with_a_known_one(tmp_path: Path) -> None:
    """MCP, lifecycle: otherwise the server names one that it supports."""
    async with wire_server(SERVER, tmp_path) as server:
        assert (await server.initialize("1999-01-01"))["protocolVersion"] == "2025-11-25"


@pytest.mark.docker
@pytest.mark.parametrize("modern", [False, True], ids=["legacy", "modern"])
async def test_session_lives_through_the_connection_of_either_era(modern: bool, tmp_path: Path) -> None:
    """DESIGN, tools: the session_id, not the connection, is what holds a session together."""
    async with wire_server(SERVER, tmp_path, PY_EXEC_PRELOAD="none") as server:
        if not modern:
            await server.initialize()
        session_id = (await _call(server, modern, "init"))["_meta"]["kernel_server/session"]["session_id"]
        await _call(server, modern, "run_code", code="x = 20", session_id=session_id)
        result = await _call(server, modern, "run_code", code="x + 1", session_id=session_id)
        assert [block["text"] for block in result["content"]] == ["21"]
        assert "structuredContent" not in result
        uri = f"kernel://sessions/{session_id}/outputs/2"
        assert (await _read(server, modern, uri))["result"]["contents"][0]["text"] == "21"


@pytest.mark.parametrize("modern", [False, True], ids=["legacy", "modern"])
async def test_resource_that_is_not_there_is_an_error_in_either_era(modern: bool, tmp_path: Path) -> None:
    """MCP, resources: -32602 with the URI; the message is for who reads it."""
    async with wire_server(SERVER, tmp_path) as server:
        if not modern:
            await server.initialize()
        uri = f"kernel://sessions/{'0' * 32}/notebook.ipynb"
        error = (await _read(server, modern, uri))["error"]
    assert (error["code"], error["data"]) == (-32602, {"uri": uri})
    assert "Unknown session_id" in error["message"]


async def _read(server: WireServer, modern: bool, uri: str) -> dict[str, Any]:
    meta = {"_meta": ENVELOPE} if modern else {}
    return await server.answer(await server.send("resources/read", {"uri": uri, **meta}))


async def _call(server: WireServer, modern: bool, tool: str, **arguments: Any) -> dict[str, Any]:
    meta = {"_meta": ENVELOPE} if modern else {}
    result = await server.request("tools/call", {"name": tool, "arguments": arguments, **meta})
    assert not result.get("isError"), result
    return result
