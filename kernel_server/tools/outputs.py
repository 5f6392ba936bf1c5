"""The tool that reads the rest of what a cell put out, from the session's journal."""

from __future__ import annotations

from typing import Annotated, Any

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field

from kernel_server.errors import RequestError
from kernel_server.text import counted
from kernel_server.tools.boundary import KernelMCPServer
from kernel_server.tools.render import recorded_text
from kernel_server.tools.services import services
from kernel_server.transcripts.journal import Journal

SHORTEST_PAGE = 500  # characters; for a very small PY_EXEC_OUTPUT_BYTES


async def read_output(
    session_id: Annotated[str, Field(description="The id that init returned; also of a session that has ended.")],
    ctx: Context,
    execution_count: Annotated[int, Field(ge=0, description="Number of the cell, as in Cell In[3]; 0: the last.")] = 0,
    pattern: Annotated[str, Field(description="Plain text: only lines that hold it, in any case, numbered.")] = "",
    offset: Annotated[int, Field(ge=0, description="Character to start at, as the last page said.")] = 0,
) -> CallToolResult:
    """Read the text that a cell put out, page by page, or search it. For results that were cut in the middle.

    Images are named, not shown. Of several cells with the same number the last one counts.
    """
    registry = services(ctx).registry
    journal = registry.journals.find(session_id)
    if journal is None:
        registry.get(session_id)  # raises if the id is not one of a session
        raise RequestError(f"Nothing has run in session {session_id} so far.")
    record = await anyio.to_thread.run_sync(_find, journal, execution_count)
    if record is None:
        raise RequestError(f"No cell {execution_count} has run in session {session_id}; 0 is the last one.")
    text = await anyio.to_thread.run_sync(recorded_text, record["outputs"])
    if pattern:
        text = _matching_lines(text, pattern)
    limit = max(services(ctx).output_bytes * 2 // 3, SHORTEST_PAGE)  # characters may take more than a byte
    return _text(_page(text, offset, limit))


def _find(journal: Journal, execution_count: int) -> dict[str, Any] | None:
    found = None
    for record in journal.cells():
        if execution_count in (0, record["execution_count"]):
            found = record
    return found


def _matching_lines(text: str, pattern: str) -> str:
    wanted = pattern.casefold()
    lines = [f"{number}: {line}" for number, line in enumerate(text.splitlines(), 1) if wanted in line.casefold()]
    return "\n".join(lines) or f"[no line holds {pattern!r}]"


def _page(text: str, offset: int, limit: int) -> str:
    if not text:
        return "(no output)"
    page = text[offset : offset + limit]
    end = offset + len(page)
    if offset == 0 and end == len(text):
        return page
    rest = f"; go on with offset={end}" if end < len(text) else ", the end"
    return f"{page}\n[characters {offset} to {end} of {counted(len(text), 'character')}{rest}]"


def _text(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)])


def register(server: KernelMCPServer) -> None:
    """Adds the tool of this module."""
    annotations = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    server.tool(title="Read the rest of an output", annotations=annotations)(read_output)
