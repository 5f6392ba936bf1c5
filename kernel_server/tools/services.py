"""What the tools have in common: the lifespan's value, and the form of a plain result."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anyio
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel

from kernel_server.files.rules import Rules
from kernel_server.hosts.base import KernelHost
from kernel_server.sessions.fleet import OnWait
from kernel_server.sessions.installs import Installer
from kernel_server.sessions.registry import Registry
from kernel_server.sessions.session import Session
from kernel_server.tools.decoding import Decoder


@dataclass(frozen=True)
class Services:
    """The running parts, and the slice of the settings that tools need.

    Attributes:
        timeout: default for cells in seconds; 0 is never.
        wait: default for how long a call waits for its cell, in seconds.
        output_bytes: budget for the text of one result.
        rules: what sessions may write to the output folder.
        decoder: finds out which pictures can be sent.
        renderers: how many results are made at a time, each in a thread.
    """

    registry: Registry
    installer: Installer
    input_folder: Path
    output_folder: Path
    timeout: float
    wait: float
    output_bytes: int
    decoder: Decoder
    renderers: anyio.CapacityLimiter
    rules: Rules = field(default_factory=Rules)


def services(ctx: Context) -> Services:
    """The services of the server that serves this request."""
    return cast(Services, ctx.request_context.lifespan_context)


def reporting(ctx: Context) -> OnWait:
    """Tells the client what is going on while a call waits for the container."""
    ticks = 0

    async def report(line: str) -> None:
        nonlocal ticks
        ticks += 1
        await ctx.report_progress(ticks, None, line)

    return report


async def find_host(ctx: Context, session_id: str) -> tuple[KernelHost, Session | None]:
    """The session if an id was given, and its kernel host, else any.

    Raises:
        SessionError: the id is unknown, closed or expired.
    """
    registry = services(ctx).registry
    if session_id:
        session = await registry.find(session_id)
        return session.host, session
    return await registry.host(reporting(ctx)), None


def in_use(session: Session | None, *, changes: bool = False) -> AbstractAsyncContextManager[None]:
    """Keeps a session, if there is one, from expiring for the length of the block; raises as `Session.in_use`."""
    return session.in_use(changes=changes) if session else nullcontext()


def text_result(text: str, structured: BaseModel | None = None, meta: dict[str, Any] | None = None) -> CallToolResult:
    """A result of one text; `structured` says the same to programs."""
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=structured.model_dump() if structured else None,
        _meta=meta,
    )
