"""A server that goes, or meets another one, while it takes over leaves every session to somebody (issue 5)."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from tests.faults.servers import Servers

pytestmark = [pytest.mark.anyio, pytest.mark.docker]


async def test_server_that_ends_while_it_takes_over_leaves_the_sessions_to_the_next(servers: Servers) -> None:
    """Ours: clients start a server and end it again within a moment."""
    first = await servers.start()
    session_id = await first.begin("x = 41")
    await first.kill()
    for seconds in (0.0, 0.02, 0.05, 0.1, 0.2):
        brief = await servers.start()
        await anyio.sleep(seconds)
        await brief.end_of_stdin()
        await brief.wire.wait()
    last = await servers.start()
    assert await last.run(session_id, "x + 1") == "42"


async def test_two_servers_at_once_lose_no_container_of_a_third(servers: Servers) -> None:
    """Issue 5, all or nothing per session: containers that share a folder may go to different servers."""
    first = await servers.start(PY_EXEC_SESSIONS_PER_CONTAINER="1")
    session_ids = [await first.begin(f"x = {n}") for n in range(4)]
    await first.kill()
    both = await asyncio.gather(*(servers.start(PY_EXEC_SESSIONS_PER_CONTAINER="1") for _ in range(2)))
    found = [await server.values_of_x(session_ids) for server in both]
    assert sorted(text for texts in found for text in texts if "Unknown" not in text) == ["0", "1", "2", "3"]
    elsewhere = [text for texts in found for text in texts if "Unknown" in text]
    assert all("Another server of yours that runs now has it" in text for text in elsewhere)


async def test_session_that_is_begun_while_others_are_reset_is_a_session(servers: Servers) -> None:
    """Ours: the container in which it was to be is thrown away while it starts, and it gets another one."""
    server = await servers.start(PY_EXEC_SESSIONS_PER_CONTAINER="1")
    begins = [await server.wire.send("tools/call", {"name": "init", "arguments": {}}) for _ in range(3)]
    await anyio.sleep(0.3)
    assert "The container is new" in await server.text("reset")
    for number in begins:
        assert "session_id: " in str((await server.wire.answer(number))["result"]["content"])
