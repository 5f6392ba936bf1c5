"""Tools that go back to an earlier state of a session, and that try several things from one state."""

from __future__ import annotations

from typing import Annotated

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from kernel_server.hosts.base import Restored
from kernel_server.sessions.checkpoints import Checkpoint
from kernel_server.text import counted, human_size, quoted
from kernel_server.tools.boundary import KernelMCPServer
from kernel_server.tools.services import services, text_result

MAX_SHOWN = 12  # files of each kind; the rest is counted
BRANCH_META = "kernel_server/branches"
CHECKPOINT_META = "kernel_server/checkpoint"

SessionId = Annotated[str, Field(description="The id that init returned.")]


async def checkpoint(
    session_id: SessionId,
    ctx: Context,
    label: Annotated[
        str, Field(description="A few words by which you will know it again, such as 'data loaded'.")
    ] = "",
) -> CallToolResult:
    """Remember a session as it is now, so that rollback can bring it back and branch_session can start from it.

    That is all variables, imports, functions and the files of the workspace. It takes some milliseconds, also with
    gigabytes in memory: nothing is copied until it changes. Make one before a step that may break what you have loaded.
    """
    session = await services(ctx).registry.find(session_id)
    made, kept, dropped = await session.checkpoint(label, services(ctx).wait)
    copied = f" ({human_size(kept.bytes_copied)} copied)" if kept.bytes_copied else ""
    lines = [
        f"checkpoint: {made.name}",
        f"It has the session {_place(made)}, with {counted(kept.files, 'file')}{copied}.",
        f"rollback(session_id, {made.name!r}) makes the session that again, as often as you like.",
        f"branch_session(session_id, {made.name!r}) starts others from it.",
    ]
    lines += [f"[{old.described} was dropped: a session keeps {_limit(ctx)} (PY_EXEC_CHECKPOINTS).]" for old in dropped]
    meta = {CHECKPOINT_META: {"checkpoint": made.name, "session_id": session_id, "files": kept.files}}
    return text_result("\n".join(lines), meta=meta)


def _limit(ctx: Context) -> str:
    return counted(services(ctx).registry.limits.checkpoints, "checkpoint")


def _place(made: Checkpoint) -> str:
    return f"as it was after In [{made.execution_count}]" if made.execution_count else "as it was before its first cell"


async def rollback(
    session_id: SessionId,
    ctx: Context,
    checkpoint: Annotated[
        str,
        Field(
            description="What checkpoint returned, such as c1, or its label; the number of a cell, such as 5, for the state "
            "before it, where automatic checkpoints are on. Empty: the newest."
        ),
    ] = "",
) -> CallToolResult:
    """Make a session what it was at a checkpoint: variables, imports, working directory, random state and files.

    What it did since is gone, but for its notebook; branch_session keeps both. The session_id stays, and the
    checkpoint can be used again. Works also after the kernel has died.
    """
    session = await services(ctx).registry.find(session_id)
    point, restored = await session.roll_back(checkpoint, services(ctx).wait)
    lines = [
        f"session_id: {session_id}",
        f"checkpoint: {point.name}",
        f"The session is {_place(point)} again (generation {session.generation}).",
        _files(restored),
    ]
    lines += [
        f"[{quoted(path)} was open then and is not there any more: reading it gives nothing.]"
        for path in restored.lost[:MAX_SHOWN]
    ]
    meta = {
        CHECKPOINT_META: {
            "checkpoint": point.name,
            "session_id": session_id,
            "generation": session.generation,
            "files": restored.count,
        }
    }
    return text_result("\n".join(lines), meta=meta)


def _files(restored: Restored) -> str:
    kinds = (("brought back", restored.changed), ("made again", restored.created), ("removed", restored.removed))
    parts = [f"{word} {_listed(paths)}" for word, paths in kinds if paths]
    more = restored.count - sum(len(paths) for _, paths in kinds)
    if not parts:
        return "Variables, imports and random state are those of then; no file had changed."
    rest = f"; {more} more" if more > 0 else ""
    return f"Variables, imports and random state are those of then. Files: {'; '.join(parts)}{rest}."


def _listed(paths: list[str]) -> str:
    shown = ", ".join(quoted(path) for path in paths[:MAX_SHOWN])
    return f"{shown} and {len(paths) - MAX_SHOWN} more" if len(paths) > MAX_SHOWN else shown


async def branch_session(
    session_id: SessionId,
    ctx: Context,
    checkpoint: Annotated[
        str, Field(description="From what: see rollback. Empty: from the session as it is now.")
    ] = "",
    count: Annotated[int, Field(ge=1, le=64, description="How many new sessions.")] = 1,
) -> CallToolResult:
    """Start new sessions that have what this one has: variables, imports, functions, files. Then each goes its own way.

    For trying several approaches from one loaded state, also at the same time. Nothing is loaded again, and memory is
    shared until it changes. This session stays as it is. Paths in variables that begin with this session's workspace
    do not work in a branch: use relative ones.
    """
    registry = services(ctx).registry
    point, branches = await registry.branch(session_id, checkpoint, count, services(ctx).wait)
    lines = [f"session_id: {branch.session_id}" for branch in branches]
    what = "Each has" if count > 1 else "It has"
    lines.append(
        f"{what} what session {session_id} had {_place(point).removeprefix('as it was ')}: variables, imports, and a copy of "
        "its workspace as the working directory."
    )
    meta = {
        BRANCH_META: {
            "session_ids": [branch.session_id for branch in branches],
            "parent": session_id,
            "execution_count": point.execution_count,
        }
    }
    return text_result("\n".join(lines), meta=meta)


def register(server: KernelMCPServer) -> None:
    """Adds the tools of this module."""
    adding = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
    replacing = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
    server.tool(title="Make a checkpoint", annotations=adding)(checkpoint)
    server.tool(title="Go back to a checkpoint", annotations=replacing)(rollback)
    server.tool(title="Branch a session", annotations=adding)(branch_session)
