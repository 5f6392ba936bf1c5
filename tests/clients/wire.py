"""A server as a process of its own, spoken to line by line: what a client library would hide is seen here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.driving import docker_client

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent  # of the virtual environment that runs the tests
ANSWER_SECONDS = 90.0  # the first call may have to wait for a container on a busy machine
MAX_LINE_BYTES = 16 << 20
RUN_DIR_LABEL = "kernel_server.run_dir"
SERVER_PID_LABEL = "kernel_server.server_pid"
CLIENT_INFO = {"name": "tests", "version": "1"}
MODERN = "2026-07-28"


@dataclass
class WireServer:
    """A running server process."""

    process: Process
    stderr_file: Path
    _lines: BufferedByteReceiveStream
    _last_id: int = 0
    _answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    _asked: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, method: str, params: dict[str, Any] | None = None, *, notification: bool = False) -> int:
        """Sends a request or a notification; returns the request's id."""
        message: dict[str, Any] = {"method": method, "params": params or {}}
        if not notification:
            self._last_id += 1
            message["id"] = self._last_id
        await self._write(message)
        return self._last_id

    async def reply(self, asked: dict[str, Any], **outcome: Any) -> None:
        """Answers a request of the server's own with `result=` or `error=`."""
        await self._write({"id": asked["id"], **outcome})

    async def answer(self, number: int) -> dict[str, Any]:
        """The answer to request `number`; what else comes meanwhile is kept."""
        with anyio.fail_after(ANSWER_SECONDS):
            while number not in self._answers:
                await self._read()
        return self._answers.pop(number)

    def has_answered(self, number: int) -> bool:
        """Whether an answer to request `number` has been seen and not been taken yet."""
        return number in self._answers

    async def asked(self, method: str) -> dict[str, Any]:
        """The next request or notification with this method that the server sends."""
        with anyio.fail_after(ANSWER_SECONDS):
            while True:
                for message in self._asked:
                    if message["method"] == method:
                        self._asked.remove(message)
                        return message
                await self._read()

    async def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def _read(self) -> None:
        try:
            line = await self._lines.receive_until(b"\n", MAX_LINE_BYTES)
        except (anyio.EndOfStream, anyio.IncompleteRead):
            raise AssertionError(f"the server ended; its stderr:\n{self.stderr}") from None
        message: dict[str, Any] = json.loads(line)  # any other byte on stdout is a failure
        if "method" in message:
            self._asked.append(message)
        else:
            self._answers[message["id"]] = message

    async def request(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sends a request and returns its result."""
        message = await self.answer(await self.send(method, params))
        assert "result" in message, message
        return dict(message["result"])

    async def initialize(self, version: str = "2025-11-25", **capabilities: Any) -> dict[str, Any]:
        """The handshake of all protocol versions before 2026."""
        result = await self.request(
            "initialize", {"protocolVersion": version, "capabilities": capabilities, "clientInfo": CLIENT_INFO}
        )
        await self.send("notifications/initialized", notification=True)
        return result

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Calls a tool."""
        return await self.request("tools/call", {"name": tool, "arguments": arguments})

    async def wait(self, seconds: float = 30.0) -> int:
        """Its exit code, when it has ended."""
        with anyio.fail_after(seconds):
            return await self.process.wait()

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self.stderr_file.read_text(errors="replace")


def envelope(**capabilities: Any) -> dict[str, Any]:
    """The `_meta` of each request from 2026-07-28 on."""
    return {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": CLIENT_INFO,
        "io.modelcontextprotocol/clientCapabilities": capabilities,
    }


@asynccontextmanager
async def wire_server(
    command: Sequence[str], folder: Path, *, cwd: Path | None = None, **environment: str
) -> AsyncIterator[WireServer]:
    """Starts a server in a process group of its own; kills it at the end if it still runs."""
    stderr_file = folder / "stderr.log"
    with stderr_file.open("wb") as stderr:
        process = await anyio.open_process(
            [*command], stderr=stderr, cwd=cwd or folder, env=server_environment(folder, **environment)
        )
    async with process:
        assert process.stdout is not None
        try:
            yield WireServer(process, stderr_file, BufferedByteReceiveStream(process.stdout))
        finally:
            if process.returncode is None:
                process.kill()


def server_environment(folder: Path, **more: str) -> dict[str, str]:
    """This process's environment without settings of whoever runs the tests, with a state folder of its own."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PY_EXEC_SESSION", "PY_EXEC_WAIT"))
    }
    return {**inherited, "PY_EXEC_STATE_DIR": str(folder / "state"), "PY_EXEC_ON_EXIT": "remove", **more}


def containers(**labels: str) -> list[dict[str, Any]]:
    """Containers of kernel servers that have these labels, whatever their state."""
    wanted = [RUN_DIR_LABEL, *(f"{name}={value}" for name, value in labels.items())]
    with docker_client() as client:
        return list(client.containers(all=True, filters={"label": wanted}))


def containers_of(pid: int) -> list[dict[str, Any]]:
    """Containers of the server with that process id."""
    return containers(**{SERVER_PID_LABEL: str(pid)})


def run_command(
    command: Sequence[str], folder: Path, *, seconds: float = 60.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, with nothing on its standard input."""
    return subprocess.run(
        [*command],
        cwd=folder,
        env=server_environment(folder, **environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
