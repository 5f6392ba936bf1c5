"""Tools that list sessions and files: structured output that says the same as the text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import Annotated

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import BaseModel, Field

from kernel_server.errors import KernelServerError
from kernel_server.files.paths import container_path
from kernel_server.hosts.base import FoundFile, Usage
from kernel_server.sessions.session import Session
from kernel_server.text import clean, human_size, one_line
from kernel_server.tools.boundary import KernelMCPServer
from kernel_server.tools.notes import session_result
from kernel_server.tools.services import find_host, in_use, services, text_result

LOOKS_AT_A_TIME = 4  # each forks a helper; interrupts and new kernels must not wait for those of 32 sessions
LATEST = 253_402_300_799  # the end of the year 9999: a session sets its files' times as it likes


class CheckpointInfo(BaseModel):
    """A checkpoint of a session."""

    checkpoint: str
    label: str
    execution_count: int = Field(description="number of the last cell before it")


class SessionInfo(BaseModel):
    """One session."""

    session_id: str
    age: float = Field(description="seconds since init")
    idle: float = Field(description="seconds since its last use; 0 while it is in use")
    memory: int | None = Field(description="bytes that its processes use; shared ones in parts")
    cpu: float | None = Field(description="seconds of CPU time so far")
    processes: int | None
    running: str = Field(description="the code that is running; empty: none")
    running_seconds: float = Field(description="for how long")
    waiting: int = Field(description="cells that wait for their turn")
    parent: str = Field(description="the session that it was branched from; empty: none")
    branched_after: int = Field(description="number of the parent's last cell before that")
    checkpoints: list[CheckpointInfo]


class SessionList(BaseModel):
    """What list_sessions found."""

    sessions: list[SessionInfo]
    notes: list[str] = Field(description="what was removed since the last call")


class FileInfo(BaseModel):
    """One file, or a folder that is empty (its path ends with a slash)."""

    path: str
    size: int = Field(description="bytes")
    modified: float = Field(description="seconds since 1970, UTC")


class FileList(BaseModel):
    """What list_files found."""

    files: list[FileInfo]
    more: int = Field(description="files that are not listed, because there are too many")


async def list_sessions(ctx: Context) -> Annotated[CallToolResult, SessionList]:
    """List the sessions that there are: age, how long unused, memory, CPU time, and what each is running.

    Branches are listed below the session that they come from, each session with its checkpoints.
    """
    sessions = await services(ctx).registry.all()
    news = await anyio.to_thread.run_sync(services(ctx).registry.journals.take_news)
    notes = [news] if news else []
    if not sessions:
        return text_result(
            "\n".join(["There are no sessions.", *_remarks(notes)]), SessionList(sessions=[], notes=notes)
        )
    infos: dict[str, SessionInfo] = {}
    limiter = anyio.CapacityLimiter(LOOKS_AT_A_TIME)
    async with anyio.create_task_group() as tasks:

        async def look(session: Session) -> None:
            async with limiter:
                infos[session.session_id] = await _look(session)

        for session in sessions:
            tasks.start_soon(look, session)
    tree = list(_tree([infos[session.session_id] for session in sessions]))
    lines = [f"{'  ' * depth}{_session_line(info)}" for depth, info in tree]
    found = SessionList(sessions=[info for _, info in tree], notes=notes)
    return text_result("\n".join([*lines, *_remarks(notes)]), found)


def _remarks(notes: list[str]) -> list[str]:
    return [f"[{note}]" for note in notes]


def _tree(infos: list[SessionInfo]) -> Iterator[tuple[int, SessionInfo]]:
    """Each session, with its depth, before those that were branched from it."""
    present = {info.session_id for info in infos}
    waiting = [(0, info) for info in reversed(infos) if info.parent not in present]
    while waiting:
        depth, info = waiting.pop()
        yield depth, info
        waiting += [(depth + 1, branch) for branch in reversed(infos) if branch.parent == info.session_id]


async def _look(session: Session) -> SessionInfo:
    usage: Usage | None = None
    with suppress(KernelServerError):  # it is ending, or just beginning
        usage = await session.usage()
    job = session.running_job
    return SessionInfo(
        session_id=session.session_id,
        age=round(time.monotonic() - session.begun, 1),
        idle=round(session.idle_seconds, 1),
        memory=usage.memory if usage else None,
        cpu=round(usage.cpu_seconds, 2) if usage else None,
        processes=usage.processes if usage else None,
        running=job.title if job else "",
        running_seconds=round(job.seconds, 1) if job else 0.0,
        waiting=session.waiting_jobs,
        parent=session.origin.session_id if session.origin else "",
        branched_after=session.origin.execution_count if session.origin else 0,
        checkpoints=[
            CheckpointInfo(checkpoint=one.name, label=one.label, execution_count=one.execution_count)
            for one in session.checkpoints
        ],
    )


def _session_line(info: SessionInfo) -> str:
    parts = [info.session_id, f"age {info.age:.0f} s", f"unused for {info.idle:.0f} s" if info.idle else "in use"]
    if info.memory is not None:
        parts += [f"memory {human_size(info.memory)}", f"CPU {info.cpu:.1f} s"]
    if info.running:
        parts.append(f"running for {info.running_seconds:.0f} s: {info.running!r}")
    if info.waiting:
        parts.append(f"{info.waiting} waiting")
    if info.parent:
        parts.append(f"branched from {info.parent} after In [{info.branched_after}]")
    if info.checkpoints:
        named = (f"{one.checkpoint}{f' {one.label!r}' if one.label else ''}" for one in info.checkpoints)
        parts.append(f"checkpoints {' '.join(named)}")
    return ", ".join(parts)


async def list_files(
    ctx: Context,
    session_id: Annotated[
        str, Field(description="The id that init returned. Empty: only /workspace/shared can be listed.")
    ] = "",
    path: Annotated[str, Field(description="A folder, relative to the workspace. Empty: the whole workspace.")] = "",
) -> Annotated[CallToolResult, FileList]:
    """List the files of the workspace with size and time of change, also in folders. Hidden files are left out."""
    host, session = await find_host(ctx, session_id)
    wanted = container_path(path or ".", "path", session.workspace if session else "")
    owner = session.session_id if session and not wanted.shared else ""
    async with in_use(session):
        found, more = await host.list_files(owner, wanted.relative)
    listed = FileList(files=[FileInfo(path=clean(f.path), size=f.size, modified=f.modified) for f in found], more=more)
    text = "\n".join(_file_line(file) for file in found) or "(no files)"
    return session_result(text, [f"and {more} more; list a folder in it" if more else ""], listed)


def _file_line(file: FoundFile) -> str:
    changed = datetime.fromtimestamp(min(max(file.modified, 0), LATEST), timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    return f"{changed}  {human_size(file.size):>9}  {one_line(file.path, 300)}"


def register(server: KernelMCPServer) -> None:
    """Adds the tools of this module."""
    annotations = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    server.tool(title="List sessions", annotations=annotations)(list_sessions)
    server.tool(title="List files", annotations=annotations)(list_files)
