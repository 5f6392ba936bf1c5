"""What has finished while no server was there is recorded, whatever the next server is asked to do first (issue 5)."""

from __future__ import annotations

import anyio
import pytest

from kernel_server.transcripts.folder import JournalFolder
from tests.faults.servers import Servers

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

LAST = "import time; time.sleep(0.5)\nopen('finished', 'w').close()"


async def leave_a_finished_cell(servers: Servers) -> str:
    """A session whose last cell has ended after its server."""
    first = await servers.start()
    session_id = await first.begin("x = 1")
    await first.send_cell(session_id, LAST)
    await anyio.sleep(0.2)
    await first.kill()
    await anyio.sleep(1)
    return session_id


def sources(servers: Servers, session_id: str) -> list[str]:
    return [str(cell["source"]) for cell in JournalFolder(servers.state / "journals").journal(session_id).cells()]


async def test_closing_a_session_at_once_loses_no_finished_cell(servers: Servers) -> None:
    """Issue 5: 0 finished cells missing from any journal."""
    session_id = await leave_a_finished_cell(servers)
    second = await servers.start()
    assert "is closed" in await second.text("close_session", session_id=session_id)
    assert sources(servers, session_id) == ["x = 1", LAST]


async def test_reset_at_once_loses_no_finished_cell(servers: Servers) -> None:
    """Issue 5: 0 finished cells missing from any journal."""
    session_id = await leave_a_finished_cell(servers)
    second = await servers.start()
    assert "ended 1 session" in await second.text("reset")
    assert sources(servers, session_id) == ["x = 1", LAST]


async def test_session_is_closed_by_a_server_that_was_there_already(servers: Servers) -> None:
    """Issue 5: a session goes on under its id; it is taken over to be closed, too."""
    first, second = await servers.start(), await servers.start()
    session_id = await first.begin("x = 1")
    await second.begin("y = 1")
    await first.kill()
    assert "is closed" in await second.text("close_session", session_id=session_id)
