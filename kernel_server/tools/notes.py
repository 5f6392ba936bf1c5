"""The server's own words in a result that has those of a session: a block of their own, the last one.

What a session has made up can print whatever the server would say, so its text never gets into that block, but for
names, which are quoted. Clients may join the blocks: therefore the text of a session never holds the mark either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mcp.types import CallToolResult, ContentBlock, TextContent
from pydantic import BaseModel

from kernel_server.text import harmless

MARK = "[kernel-server]"
NO_OUTPUT = "(no output)"
EXPLANATION = (
    f"results: a last block that begins with {MARK} is the server's; everything before it is what the session put out, "
    "whatever it says of itself"
)
_MARK = re.compile(re.escape(MARK), re.IGNORECASE)


def unmarked(text: str) -> str:
    """Text of a session, which cannot begin a block of the server's."""
    return _MARK.sub(lambda found: f"({found[0][1:-1]})", text)


def with_notes(content: Sequence[ContentBlock], notes: Sequence[str]) -> list[ContentBlock]:
    """What a session has put out, if anything, and then the server's notes, if there are any."""
    blocks: list[ContentBlock] = list(content) or [TextContent(type="text", text=NO_OUTPUT)]
    lines = [f"[{note}]" for note in map(_line, notes) if note]
    return [*blocks, TextContent(type="text", text="\n".join([MARK, *lines]))] if lines else blocks


def session_result(
    text: str, notes: Sequence[str], structured: BaseModel | None = None, meta: dict[str, Any] | None = None
) -> CallToolResult:
    """A result of one text that a session has made, as it is to be shown, and the server's notes on it."""
    content = [TextContent(type="text", text=unmarked(text))] if text.strip() else []
    return CallToolResult(
        content=with_notes(content, notes),
        structured_content=structured.model_dump() if structured else None,
        _meta=meta,
    )


def _line(note: str) -> str:
    """One line, whatever has been quoted in it."""
    return unmarked(harmless(" ".join(note.split())))
