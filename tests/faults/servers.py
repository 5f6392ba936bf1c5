"""Servers as processes of their own that leave their sessions to each other."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from mcp.types import CallToolResult

from kernel_server.transcripts.folder import JournalFolder
from tests.clients.wire import ROOT, WireServer, containers_of, wire_server
from tests.driving import Reply, docker_client, eventually

SERVER = [sys.executable, str(ROOT / "server.py"), "--PY_EXEC_PRELOAD", "none"]


@dataclass(frozen=True)
class Server:
    """One of them, and what a client says to it."""

    wire: WireServer

    @property
    def pid(self) -> int:
        return self.wire.process.pid

    async def call(self, tool: str, **arguments: Any) -> Reply:
        return Reply(CallToolResult.model_validate(await self.wire.call(tool, **arguments)))

    async def text(self, tool: str, **arguments: Any) -> str:
        return (await self.call(tool, **arguments)).text

    async def begin(self, code: str) -> str:
        """A new session in which that has run."""
        started = await self.wire.call("init")
        assert not started.get("isError"), f"{started}\n{self.wire.stderr}"
        session_id = str(started["_meta"]["kernel_server/session"]["session_id"])
        await self.run(session_id, code)
        return session_id

    async def run(self, session_id: str, code: str) -> str:
        """What a cell that must succeed puts out."""
        reply = await self.call("run_code", code=code, session_id=session_id)
        assert reply.status == "ok", reply.text
        return reply.output.partition("\n[")[0]

    async def values_of_x(self, session_ids: list[str]) -> list[str]:
        """What it says of `x` in each session."""
        return [await self.text("run_code", code="x", session_id=name) for name in session_ids]

    async def send_cell(self, session_id: str, code: str) -> int:
        """Sends a cell, and does not wait for it."""
        return await self.send("run_code", code=code, session_id=session_id)

    async def begin_long_cell(self, session_id: str, code: str = "time.sleep(600)") -> int:
        """Sends a cell, and waits until it runs."""
        number = await self.send_cell(session_id, f"import time\nstarted = True\n{code}")

        async def has_started() -> bool:
            return "started" in await self.text("list_variables", session_id=session_id)

        await eventually(has_started)
        return number

    async def send(self, tool: str, **arguments: Any) -> int:
        """Sends a call, and does not wait for it."""
        return await self.wire.send("tools/call", {"name": tool, "arguments": arguments})

    async def answer(self, number: int, seconds: float = 60.0) -> Reply:
        """What has come, or comes within that time, of a call that was sent."""
        with anyio.fail_after(seconds):
            answer = await self.wire.answer(number)
        return Reply(CallToolResult.model_validate(answer["result"]))

    async def kill(self) -> None:
        self.wire.process.kill()
        await self.wire.wait()

    async def end_of_stdin(self) -> None:
        assert self.wire.process.stdin is not None
        await self.wire.process.stdin.aclose()


@dataclass
class Servers:
    """Starts servers with the same folders; what any of them leaves is removed at the end."""

    folder: Path
    stack: AsyncExitStack
    pids: list[int] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    async def start(
        self, *, elicitation: dict[str, Any] | None = None, command: Sequence[str] = SERVER, **settings: str
    ) -> Server:
        """A server that has been initialized; the last of them is killed at the end."""
        environment: dict[str, Any] = {"PY_EXEC_ON_EXIT": "keep", "PY_EXEC_POOL": "0", **settings}
        logs = Path(tempfile.mkdtemp(prefix="log", dir=self.folder))
        environment["PY_EXEC_STATE_DIR"] = str(self.state)
        server = Server(
            await self.stack.enter_async_context(wire_server(command, logs, cwd=self.folder, **environment))
        )
        self.pids.append(server.pid)
        capabilities: dict[str, Any] = {} if elicitation is None else {"elicitation": elicitation}
        await server.wire.initialize(**capabilities)
        return server

    def cells(self, session_id: str) -> list[str]:
        """What the journal has of a session."""
        return [str(cell["source"]) for cell in JournalFolder(self.state / "journals").journal(session_id).cells()]

    async def wait_for_cells(self, session_id: str, count: int) -> None:
        """Waits until so many have ended."""
        await eventually(lambda: len(self.cells(session_id)) == count)

    def remove_leftovers(self) -> None:
        with docker_client() as client:
            for container in [found for pid in self.pids for found in containers_of(pid)]:
                with suppress(Exception):  # it is going by itself just now
                    client.remove_container(container["Id"], force=True, v=True)
            for path in (self.state / "volumes").glob("*"):
                with suppress(Exception):  # it was not made yet, or is gone
                    client.remove_volume(path.name, force=True)
