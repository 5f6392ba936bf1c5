"""How long a container waits for the next server (issue 5)."""

from __future__ import annotations

import anyio
import pytest

from kernel_server.hosts.controlled import LEASE_SECONDS
from tests.clients.wire import containers_of
from tests.driving import eventually
from tests.faults.servers import Servers

pytestmark = [pytest.mark.anyio, pytest.mark.docker]


async def test_container_with_sessions_waits_for_longer_than_an_empty_one(servers: Servers) -> None:
    """Issue 5: for PY_EXEC_SESSION_TTL. The control: one whose session was closed has ended by then."""
    first, other = await servers.start(), await servers.start()
    session_id = await first.begin("x = 41")
    await other.text("close_session", session_id=await other.begin("y = 1"))
    assert len(containers_of(other.pid)) == 1
    await first.kill()
    await other.kill()
    await anyio.sleep(LEASE_SECONDS + 2)
    await eventually(lambda: not containers_of(other.pid))
    second = await servers.start()
    assert await second.run(session_id, "x + 1") == "42"
