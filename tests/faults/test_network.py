"""The way to named hosts over the end of a server (issue 6)."""

from __future__ import annotations

import pytest

from tests.faults.servers import Servers
from tests.hosts.test_proxy import PROXY

pytestmark = [pytest.mark.anyio, pytest.mark.docker]


async def test_next_server_brings_another_proxy(servers: Servers, web_port: int) -> None:
    """Ours: the proxy ends with its server, however that ends, and sessions go on with that of the next one."""
    network = f"allow:localhost:{web_port}"
    first = await servers.start(PY_EXEC_NETWORK=network)
    session_id = await first.begin(PROXY)
    assert await first.run(session_id, f"get('localhost', {web_port})[0]") == "200"
    await first.kill()
    second = await servers.start(PY_EXEC_NETWORK=network)
    assert await second.run(session_id, f"get('localhost', {web_port})[0]") == "200"
