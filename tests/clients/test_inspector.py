"""The MCP Inspector on our server: its strict lint, a call, and the two ways to start its web page."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import requests

from tests.clients.conftest import NPM, Inspector
from tests.clients.wire import ROOT, server_environment
from tests.driving import eventually

SERVER = [sys.executable, str(ROOT / "server.py")]
START_SECONDS = 180.0  # npx downloads the Inspector the first time
TOKEN = "tests"  # noqa: S105 - of a page that lives for seconds


def _inspect(inspector: Inspector, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [inspector.command, "--cli", *SERVER, *arguments, "-q"],
        cwd=folder,
        env={**server_environment(folder), "PATH": inspector.path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_tools_pass_the_strict_lint(inspector: Inspector, tmp_path: Path, era: str) -> None:
    """facts/mcp.md 4: `--strict` ends with 6 when a schema is not portable. Settings pass in front of `--`."""
    settings = ("--WORKDIR_IN", str(tmp_path), "--")
    done = _inspect(
        inspector, tmp_path, *settings, "--protocol-era", era, "--method", "tools/list", "--strict", "--format", "json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"run_code"' in done.stdout


@pytest.mark.docker
def test_run_code_answers(inspector: Inspector, tmp_path: Path) -> None:
    """The server that the Inspector starts gives a real answer of a real container."""
    call = ("--method", "tools/call", "--tool-name", "run_code", "--tool-args-json", '{"code": "6 * 7"}')
    done = _inspect(inspector, tmp_path, *call, "--format", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert _text_of(json.loads(done.stdout)) == "42"


def test_tool_error_is_seen_as_one(inspector: Inspector, tmp_path: Path) -> None:
    """facts/mcp.md 3: exit code 5 is a result with `isError`."""
    call = ("--method", "tools/call", "--tool-name", "run_code", "--tool-args-json", '{"code": " "}')
    done = _inspect(inspector, tmp_path, *call, "--format", "json")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "code is empty" in done.stdout


def _text_of(answer: dict[str, Any]) -> str:
    result = answer.get("result", answer)
    return str(result["content"][0]["text"])


@contextmanager
def _web_page(inspector: Inspector, folder: Path, command: list[str], **environment: str) -> Iterator[int]:
    """Runs a command that opens the Inspector's web page, without a browser; gives its port, ends all of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with open(folder / "page.log", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **server_environment(folder, **environment),
                **NPM,
                "PATH": inspector.path,
                "CLIENT_PORT": str(port),
                "MCP_AUTO_OPEN_ENABLED": "false",
                "MCP_INSPECTOR_SECRET_STORE": "memory",
                "MCP_INSPECTOR_API_TOKEN": TOKEN,
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _served_command(port: int) -> dict[str, Any]:
    """The server that the page will start, once the page is there."""
    found: dict[str, Any] = {}

    def ask() -> bool:
        try:
            answer = requests.get(
                f"http://127.0.0.1:{port}/api/servers", headers={"x-mcp-remote-auth": f"Bearer {TOKEN}"}, timeout=5
            )
        except requests.ConnectionError:
            return False
        found.update(answer.json())
        return True

    async def is_there() -> bool:
        return await anyio.to_thread.run_sync(ask)

    await eventually(is_there, START_SECONDS)
    (server,) = found["mcpServers"].values()
    return dict(server)


@pytest.mark.anyio
async def test_dev_opens_the_page_with_the_settings(inspector: Inspector, tmp_path: Path) -> None:
    """Issue 2: `kernel-server dev --WORKDIR_IN A --WORKDIR_OUT B`; what came by the environment is handed on too."""
    settings = ["--WORKDIR_IN", str(tmp_path), "--WORKDIR_OUT", str(tmp_path / "with space")]
    command = [sys.executable, "-m", "kernel_server", "dev", *settings]
    with _web_page(inspector, tmp_path, command, PY_EXEC_TIMEOUT="77") as port:
        server = await _served_command(port)
    assert [server["command"], *server["args"]] == [sys.executable, "-m", "kernel_server", "serve", *settings]
    assert server["env"]["PY_EXEC_TIMEOUT"] == "77"
    assert server["cwd"] == str(ROOT)


@pytest.mark.anyio
async def test_mcp_dev_opens_the_page(inspector: Inspector, tmp_path: Path) -> None:
    """Issue 2: `mcp dev server.py`, the command of the SDK."""
    if shutil.which("uv", path=inspector.path) is None:
        pytest.skip("`mcp dev` starts the server with uv, and there is none here")
    with _web_page(inspector, tmp_path, ["mcp", "dev", "server.py"]) as port:
        server = await _served_command(port)
    assert server["command"] == "uv"
    assert re.fullmatch(r"run --with mcp==\S+ mcp run server\.py", " ".join(server["args"]))


def test_dev_without_node_says_what_to_install(tmp_path: Path) -> None:
    """Ours: no traceback for a missing program."""
    done = subprocess.run(
        [sys.executable, "-m", "kernel_server", "dev"],
        cwd=tmp_path,
        env={**server_environment(tmp_path), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "kernel-server dev: npx was not found; install Node.js 22.19 or newer\n"
