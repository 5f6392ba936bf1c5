"""Tools that make, end and describe sessions."""

from __future__ import annotations

from typing import Annotated

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import BaseModel, Field

from kernel_server.hosts.base import HostDescription
from kernel_server.text import counted, one_line
from kernel_server.tools.boundary import KernelMCPServer
from kernel_server.tools.notes import EXPLANATION, session_result
from kernel_server.tools.services import find_host, in_use, reporting, services, text_result

MAX_NAME = 100  # characters of a package's name or version
THE_REST = "importlib.metadata.version('NAME') in a cell says whether one is there"
SESSION_META = "kernel_server/session"


class Packages(BaseModel):
    """What list_packages found."""

    packages: dict[str, str] = Field(description="Version of each package by name; as many as are in the text.")


async def init(ctx: Context) -> CallToolResult:
    """Start a Python session and return its session_id. Call it once, and pass the id to every other tool.

    A session is one IPython kernel with a folder of its own (its workspace). Variables and files stay from call to
    call, until close_session, or until nobody has used the session for a while; the text says how long, and which
    network, limits and imported packages there are. Sessions do not see each other; for work that must not mix,
    start another one.
    """
    registry = services(ctx).registry
    session = await registry.open(reporting(ctx))
    text = _describe(session.session_id, session.workspace, session.host.description, registry.limits.ttl)
    meta = {SESSION_META: {"session_id": session.session_id, "workspace": session.workspace}}
    return text_result(text, meta=meta)


def _describe(session_id: str, workspace: str, host: HostDescription, ttl: float) -> str:
    lines = [
        f"session_id: {session_id}",
        f"workspace: {workspace} (the working directory; relative paths are in it)",
        f"python: {host.python}" + (f", already imported: {', '.join(host.preloaded)}" if host.preloaded else ""),
        f"expires: {ttl:g} s after its last use",
        f"network: {host.network}",
    ]
    if host.limits:
        lines.append(f"limits: {host.limits}")
    lines += [f"isolation: {host.isolation}", EXPLANATION]
    return "\n".join(lines)


async def close_session(
    session_id: Annotated[str, Field(description="The id that init returned.")], ctx: Context
) -> CallToolResult:
    """End a session: its kernel and everything it started stop, its variables and its workspace are gone.

    Before that, copy out the files that somebody wants to keep (cp_out). export_notebook still works afterwards.
    """
    if leftovers := await services(ctx).registry.close(session_id):
        return text_result(
            f"Session {session_id} is closed and cannot be used any more, but not all that it had is removed yet: {one_line(leftovers)}. "
            "That is tried again until it is; no other session gets its user id or sees its files meanwhile."
        )
    return text_result(f"Session {session_id} is closed; its variables and workspace are gone.")


async def reset(ctx: Context) -> CallToolResult:
    """Throw away the container with ALL sessions and their files, and start a fresh one.

    Only for when something is broken beyond one session: it ends other people's sessions too, and cannot be undone.
    close_session ends a single one.
    """
    registry = services(ctx).registry
    ended = await registry.reset(reporting(ctx))
    return text_result(f"The container is new; ended {counted(ended, 'session')}. Call init for a new session.")


async def list_packages(
    ctx: Context,
    session_id: Annotated[
        str,
        Field(
            description="The id that init returned: with what that session has installed. Empty: what every session has."
        ),
    ] = "",
) -> Annotated[CallToolResult, Packages]:
    """List the Python packages that code can import, each as name==version."""
    host, session = await find_host(ctx, session_id)
    async with in_use(session):
        found = await host.packages(session_id)
    listed = Packages(packages={})
    lines: list[str] = []
    room = services(ctx).output_bytes
    for name, version in ((one_line(name, MAX_NAME), one_line(version, MAX_NAME)) for name, version in found):
        room -= len(f"{name}=={version}\n".encode())
        if room < 0:
            break
        lines.append(f"{name}=={version}")
        listed.packages[name] = version
    more = f"and {len(found) - len(lines)} more; {THE_REST}" if len(lines) < len(found) else ""
    return session_result("\n".join(lines), [more], listed)


def register(server: KernelMCPServer) -> None:
    """Adds the tools that a session begins with."""
    starting = ToolAnnotations(destructive_hint=False, open_world_hint=False)
    looking = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    server.tool(title="Start a session", annotations=starting)(init)
    server.tool(title="List packages", annotations=looking)(list_packages)


def register_endings(server: KernelMCPServer) -> None:
    """Adds the tools that end sessions; clients and people see them last."""
    ending = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
    server.tool(title="Close a session", annotations=ending)(close_session)
    server.tool(title="Reset everything", annotations=ending)(reset)
