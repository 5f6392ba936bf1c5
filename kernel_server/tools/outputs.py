"""The tool that reads the rest of what a cell put out, from the session's journal."""

from __future__ import annotations

from itertools import chain
from typing import Annotated

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from kernel_server.text import blocks_of_lines, counted
from kernel_server.tools.boundary import KernelMCPServer
from kernel_server.tools.notes import session_result
from kernel_server.tools.recorded import cell_text
from kernel_server.tools.services import services

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
    text = await cell_text(services(ctx).registry, session_id, execution_count)
    limit = max(services(ctx).output_bytes * 2 // 3, SHORTEST_PAGE)  # characters may take more than a byte
    if not pattern:
        page = text[offset : offset + limit]
        return session_result(page, [_place(offset, len(page), len(text))])
    readers = services(ctx).registry.readers
    page, whole = await anyio.to_thread.run_sync(_search, text, pattern, offset, limit, limiter=readers)
    return session_result(page, [_place(offset, len(page), whole) if whole else f"no line holds {pattern!r}"])


def _search(text: str, pattern: str, offset: int, limit: int) -> tuple[str, int]:
    """A page of the lines that hold the pattern, numbered, and how many characters they all have.

    Only the page is kept: of 16 million lines each would take fifty times its size.
    """
    wanted = pattern.casefold()
    page: list[str] = []
    whole = 0
    lines = chain.from_iterable(block.splitlines() for block in blocks_of_lines(text))
    for number, line in enumerate(lines, 1):
        if wanted in line.casefold():
            found = f"\n{number}: {line}" if whole else f"{number}: {line}"
            if part := found[max(0, offset - whole) : max(0, offset + limit - whole)]:
                page.append(part)
            whole += len(found)
    return "".join(page), whole


def _place(offset: int, shown: int, whole: int) -> str:
    """Where in a text a page is; "" if it is all of it."""
    if shown == whole:
        return ""
    end = offset + shown
    rest = f"; go on with offset={end}" if end < whole else ", the end"
    return f"characters {offset} to {end} of {counted(whole, 'character')}{rest}"


def register(server: KernelMCPServer) -> None:
    """Adds the tool of this module."""
    annotations = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    server.tool(title="Read the rest of an output", annotations=annotations)(read_output)
