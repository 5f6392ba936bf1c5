"""A server under test, and the real MCP client that drives it in memory. Nothing here is a mock."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from mcp import Client
from mcp.types import CallToolResult, ImageContent, TextContent

from kernel_server.app import create_server
from kernel_server.config import load_settings
from kernel_server.hosts import containers, docker
from kernel_server.hosts.engine import ContainerSpec
from kernel_server.tools.notes import MARK

T = TypeVar("T")

CALL_SECONDS = 90.0  # no tool call of a test may take longer, the first one with its container included
POLL_SECONDS = 0.01
SERVER_PID_LABEL = "kernel_server.server_pid"


@dataclass(frozen=True)
class Reply:
    """A tool's result, with short names for what tests look at."""

    raw: CallToolResult

    @property
    def text(self) -> str:
        """All text blocks, without the mark at the beginning of the server's own."""
        texts = [block.text for block in self.raw.content if isinstance(block, TextContent)]
        return "\n".join([*texts[:-1], texts[-1].removeprefix(f"{MARK}\n")] if texts else [])

    @property
    def cell_text(self) -> str:
        """The text blocks that are the session's."""
        blocks = self.raw.content[:-1] if self.notes else self.raw.content
        return "\n".join(block.text for block in blocks if isinstance(block, TextContent))

    @property
    def notes(self) -> list[str]:
        """The lines of the server's own block, which is the last one; none if there is no such block."""
        last = self.raw.content[-1]
        mark, *lines = last.text.split("\n") if isinstance(last, TextContent) else [""]
        return lines if mark == MARK else []

    @property
    def output(self) -> str:
        """The text without its last line on what the cell changed."""
        head, _, last = self.text.rpartition("\n")
        return head if last.startswith(("[variables: ", "[files: ")) else self.text

    @property
    def images(self) -> list[ImageContent]:
        """All images."""
        return [block for block in self.raw.content if isinstance(block, ImageContent)]

    @property
    def kinds(self) -> list[str]:
        """The types of the blocks in order."""
        return [block.type for block in self.raw.content]

    @property
    def is_error(self) -> bool:
        """The tool refused or failed; what user code does is never that."""
        return bool(self.raw.is_error)

    @property
    def result(self) -> dict[str, Any]:
        """`_meta["kernel_server/result"]` of a tool that ran code."""
        assert self.raw.meta is not None, self.text
        return dict(self.raw.meta["kernel_server/result"])

    @property
    def status(self) -> str:
        """How the cell went; the whole result is shown where it is no cell's."""
        assert not self.is_error, self.text
        return str(self.result["status"])


@dataclass(frozen=True)
class Handle:
    """A session as its user sees it: an id to pass to every call."""

    kit: Kit
    session_id: str
    workspace: str

    async def call(self, name: str, **arguments: Any) -> Reply:
        """Calls a tool with this session's id."""
        return await self.kit.call(name, session_id=self.session_id, **arguments)

    async def run(self, code: str, **arguments: Any) -> Reply:
        """Calls run_code."""
        return await self.call("run_code", code=code, **arguments)

    async def value(self, code: str) -> str:
        """What a cell that must succeed puts out."""
        reply = await self.run(code)
        assert reply.status == "ok", reply.text
        return reply.output

    async def wait_for_file(self, name: str) -> None:
        """Waits until a cell of this session has made a file: the sign that it runs."""
        await eventually(lambda: self._has(name))

    async def _has(self, name: str) -> bool:
        return not (await self.call("cp_out", container_path=name, local_path="_seen")).is_error


@dataclass(frozen=True)
class Kit:
    """A running server: its client and its folders."""

    client: Client
    engine: str
    input: Path
    output: Path
    state: Path

    async def call(self, name: str, **arguments: Any) -> Reply:
        """Calls a tool; no call may hang."""
        with anyio.fail_after(CALL_SECONDS):
            return Reply(await self.client.call_tool(name, arguments))

    async def init(self) -> Handle:
        """A new session; the caller closes it, or leaves it to the end of the server."""
        reply = await self.call("init")
        assert not reply.is_error, reply.text
        assert reply.raw.meta is not None
        made = reply.raw.meta["kernel_server/session"]
        return Handle(self, made["session_id"], made["workspace"])

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Handle]:
        """A session for the length of the block."""
        handle = await self.init()
        try:
            yield handle
        finally:
            with anyio.CancelScope(shield=True):
                await self.call("close_session", session_id=handle.session_id)


@asynccontextmanager
async def serving(folder: Path, engine: str, **settings: str) -> AsyncIterator[Kit]:
    """A server with folders of its own beneath `folder`, and a client that is connected to it."""
    kit_folders = {name: folder / name for name in ("input", "output", "state")}
    for path in kit_folders.values():
        path.mkdir(parents=True, exist_ok=True)
    given = {
        "WORKDIR_IN": str(kit_folders["input"]),
        "WORKDIR_OUT": str(kit_folders["output"]),
        "PY_EXEC_STATE_DIR": str(kit_folders["state"]),
        "PY_EXEC_ENGINE": engine,
        "PY_EXEC_LOG_LEVEL": "WARNING",
        "PY_EXEC_ON_EXIT": "remove",
        **settings,
    }
    async with Client(create_server(load_settings(given))) as client:
        yield Kit(client, engine, **kit_folders)


@contextmanager
def kernel_host_given(changes: dict[str, Any]) -> Iterator[None]:
    """Containers that are started in the block have another configuration of kernel_host: without one of its layers, say."""
    made = containers.container_spec

    def spec(*arguments: Any) -> ContainerSpec:
        usual = made(*arguments)
        config = json.loads(usual.environment["KERNEL_HOST_CONFIG"]) | changes
        return replace(usual, environment={"KERNEL_HOST_CONFIG": json.dumps(config)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker, "container_spec", spec)
        yield


@asynccontextmanager
async def in_own_task(manager: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Enters and leaves `manager` in a task of its own.

    Fixtures of different scopes need not end in the reverse order of their beginning, which anyio's cancel scopes
    demand within one task.
    """
    entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def hold() -> None:
        try:
            async with manager as value:
                entered.set_result(value)
                await leave.wait()
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    task = asyncio.create_task(hold())
    try:
        yield await entered
    finally:
        leave.set()
        await task


async def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Waits until `condition`, a function or coroutine function, is true.

    Raises:
        TimeoutError: it was not within `seconds`.
    """
    with anyio.fail_after(seconds):
        while True:
            value = condition()
            if hasattr(value, "__await__"):
                value = await value
            if value:
                return
            await anyio.sleep(POLL_SECONDS)


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Gives a function that says how many seconds have passed."""
    started = time.monotonic()
    yield lambda: time.monotonic() - started


def containers_of_this_process() -> list[str]:
    """Ids of the containers that servers in this process have made and not yet removed."""
    with docker_client() as client:
        label = f"{SERVER_PID_LABEL}={os.getpid()}"
        return [str(found["Id"]) for found in client.containers(all=True, filters={"label": label})]


@contextmanager
def docker_client() -> Iterator[Any]:
    """The engine, as somebody else on this machine reaches it."""
    import docker

    client = docker.APIClient(**docker.utils.kwargs_from_env())
    try:
        yield client
    finally:
        client.close()
