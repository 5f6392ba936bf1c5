"""Servers that are killed, and a client that lives on: what is in flight at a kill gets no answer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import anyio
from anyio.abc import Process, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp.types import CallToolResult

from tests.clients.wire import CLIENT_INFO, MAX_LINE_BYTES, ROOT
from tests.driving import Reply, eventually

CALL_SECONDS = 60.0
END_SECONDS = 10.0
ELSEWHERE = "Another server of yours that runs now has it"
ELSEWHERE_SECONDS = 20.0  # a server that was killed may hold its locks for some milliseconds
POLL_SECONDS = 0.01


class Gone(Exception):
    """The server was killed before it answered."""


@dataclass
class _Call:
    what: str
    over: anyio.Event = field(default_factory=anyio.Event)
    answer: dict[str, Any] | None = None


class Server:
    """A server process; `run` is its task.

    Attributes:
        begun: when it was started (monotonic seconds).
        ready: set when it has answered `initialize`.
        gone: set when it has ended.
        wrong: what it has done that it must not, such as to end by itself.
    """

    def __init__(self, process: Process) -> None:
        self.begun = time.monotonic()
        self.ready = anyio.Event()
        self.gone = anyio.Event()
        self.killed = False
        self.wrong = ""
        self._process = process
        self._calls: dict[int, _Call] = {}
        self._last_id = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not (self.killed or self.gone.is_set())

    @property
    def in_flight(self) -> list[str]:
        """The tools that are being called."""
        return [call.what for call in self._calls.values()]

    async def run(self) -> None:
        """Speaks with it until it ends."""
        async with self._process, anyio.create_task_group() as tasks:
            tasks.start_soon(self._shake_hands)
            await self._read()
            await self._process.wait()
            self.gone.set()
            for call in self._calls.values():
                call.over.set()

    async def _shake_hands(self) -> None:
        given = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": CLIENT_INFO}
        try:
            await self._request("initialize", "initialize", given)
            await self._write({"method": "notifications/initialized"})
        except Gone:
            return
        self.ready.set()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        lines = BufferedByteReceiveStream(self._process.stdout)
        while True:
            try:
                line = await lines.receive_until(b"\n", MAX_LINE_BYTES)
            except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
                break
            message = json.loads(line)
            if call := self._calls.get(message.get("id", -1)):
                call.answer = message
                call.over.set()
        if not self.killed:
            self.wrong = f"the server {self.pid} ended by itself"

    async def call(self, tool: str, **arguments: Any) -> Reply:
        """Calls a tool.

        Raises:
            Gone: it was killed meanwhile.
            TimeoutError: it hangs.
        """
        result = await self._request(tool, "tools/call", {"name": tool, "arguments": arguments})
        return Reply(CallToolResult.model_validate(result))

    async def _request(self, what: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._last_id += 1
        number, call = self._last_id, _Call(what)
        self._calls[number] = call
        try:
            with anyio.fail_after(CALL_SECONDS):
                await self._write({"id": number, "method": method, "params": params})
                await call.over.wait()
        except TimeoutError:
            raise TimeoutError(f"{what} got no answer within {CALL_SECONDS:g} s") from None
        finally:
            del self._calls[number]
        if call.answer is None:
            raise Gone
        return dict(call.answer["result"])

    async def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        if not self.alive:
            raise Gone
        try:
            await self._process.stdin.send(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise Gone from error

    def kill(self) -> None:
        """Now, and without a word."""
        self.killed = True
        self._process.kill()

    async def end(self) -> None:
        """As a client ends it."""
        self.killed = True  # it is expected to go
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        with anyio.move_on_after(END_SECONDS):
            await self.gone.wait()
        if not self.gone.is_set():
            self.wrong = f"the server {self.pid} goes on after the end of its standard input"
            self._process.kill()


class Servers:
    """All servers of a run, one or two at a time.

    Attributes:
        all: also those that are gone.
        called: how often each tool was called.
        on_call: told of each call before it is sent.
    """

    def __init__(
        self, tasks: TaskGroup, folder: Path, log: BinaryIO, environment: dict[str, str], rng: random.Random
    ) -> None:
        self.all: list[Server] = []
        self.called: Counter[str] = Counter()
        self.on_call: Callable[[str, Server], None] = lambda *_: None
        self._tasks = tasks
        self._folder = folder
        self._log = log
        self._environment = environment
        self._rng = rng

    @property
    def alive(self) -> list[Server]:
        return [server for server in self.all if server.alive]

    async def start(self, **settings: str) -> Server:
        """One more."""
        process = await anyio.open_process(
            [sys.executable, str(ROOT / "server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self._folder,
            env={**self._environment, **settings},
        )
        server = Server(process)
        self.all.append(server)
        self._tasks.start_soon(server.run)
        return server

    async def any(self) -> Server:
        """One that answers; waits for it."""
        found: list[Server] = []

        def is_there() -> bool:
            found[:] = [server for server in self.alive if server.ready.is_set()]
            return bool(found)

        await eventually(is_there, CALL_SECONDS)
        return self._rng.choice(found)

    async def call(self, server: Server, tool: str, **arguments: Any) -> Reply:
        """Calls a tool; raises as `Server.call`."""
        self.called[tool] += 1
        self.on_call(tool, server)
        return await server.call(tool, **arguments)


class Place:
    """Where a session is: with the server that answered last, or the one that goes on with it."""

    def __init__(self, servers: Servers) -> None:
        self.server: Server | None = None
        self._servers = servers

    async def call(self, tool: str, **arguments: Any) -> Reply:
        """Calls a tool there, or on another server where that is gone; raises as `Server.call`."""
        until = time.monotonic() + ELSEWHERE_SECONDS
        while True:
            server = self.server if self.server and self.server.alive else await self._servers.any()
            reply = await self._servers.call(server, tool, **arguments)
            if not (reply.is_error and ELSEWHERE in reply.text) or time.monotonic() > until:
                self.server = server
                return reply
            self.server = None
            await anyio.sleep(POLL_SECONDS)


async def until_answered(call: Callable[[], Awaitable[Reply]]) -> tuple[Reply, int]:
    """The answer to a call that may be made again, and how often it was in flight at a kill."""
    killed = 0
    while True:
        try:
            return await call(), killed
        except Gone:
            killed += 1
