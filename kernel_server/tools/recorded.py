"""What ran in a session, from its journal: also of a session that has ended, for as long as its journal is kept."""

from __future__ import annotations

from typing import Any

import anyio.to_thread

from kernel_server.errors import RequestError
from kernel_server.sessions.registry import Registry
from kernel_server.tools.render import recorded_text
from kernel_server.transcripts.journal import Journal


async def cell_text(registry: Registry, session_id: str, execution_count: int) -> str:
    """All text that a cell put out; of several cells with the same number the last one counts, 0 is the last of all.

    Raises:
        RequestError: no such cell has run.
        SessionError: as `Registry.find_journal`.
    """
    journal = await registry.find_journal(session_id)
    record = await anyio.to_thread.run_sync(_find, journal, execution_count, limiter=registry.readers)
    if record is None and not execution_count:
        raise RequestError(f"Nothing has run in session {session_id} so far.")
    if record is None:
        raise RequestError(f"No cell {execution_count} has run in session {session_id}; 0 is the last one.")
    return await anyio.to_thread.run_sync(recorded_text, record["outputs"], limiter=registry.readers)


def _find(journal: Journal, execution_count: int) -> dict[str, Any] | None:
    found = None
    for record in journal.cells():
        if not record.get("remark") and execution_count in (0, record["execution_count"]):
            found = record
    return found
