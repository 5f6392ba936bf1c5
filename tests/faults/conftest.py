from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.faults.engines import EngineProxy, engine_proxy
from tests.faults.servers import Servers


@pytest.fixture
async def servers(tmp_path: Path, docker_engine: None, anyio_backend: str) -> AsyncIterator[Servers]:
    """Starts servers that go on with each other's sessions."""
    async with AsyncExitStack() as stack:
        servers = Servers(tmp_path, stack)
        yield servers
    servers.remove_leftovers()


@pytest.fixture
async def engine(tmp_path: Path, anyio_backend: str) -> AsyncIterator[EngineProxy]:
    """Stands in front of the real one, for servers with its address as DOCKER_HOST."""
    async with engine_proxy(tmp_path) as proxy:
        yield proxy
