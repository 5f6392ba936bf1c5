"""A Docker engine that can go away, come back and hang, without harm to the others who use it: a proxy in front of it."""

from __future__ import annotations

import asyncio
import os
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

CHUNK_BYTES = 1 << 16


class EngineProxy:
    """Passes bytes on between its socket and that of the engine."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix://{path}"
        self._path = path
        self._engine = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
        self._listener: asyncio.Server | None = None
        self._writers: set[StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    async def come(self) -> None:
        """The engine is there."""
        self._listener = await asyncio.start_unix_server(self._serve, self._path)

    async def go(self) -> None:
        """The engine is gone: its connections are closed, and so is its socket."""
        assert self._listener is not None
        self._listener.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._path.unlink()

    def hang(self) -> None:
        """The engine takes connections and requests from now on, and answers nothing."""
        self._flows.clear()

    async def _serve(self, client: StreamReader, to_client: StreamWriter) -> None:
        engine, to_engine = await asyncio.open_unix_connection(self._engine)
        ends = {to_client, to_engine}
        self._writers |= ends
        try:
            with suppress(OSError):
                await asyncio.gather(self._pass_on(client, to_engine), self._pass_on(engine, to_client))
        finally:
            self._writers -= ends
            for writer in ends:
                writer.close()

    async def _pass_on(self, source: StreamReader, target: StreamWriter) -> None:
        while data := await source.read(CHUNK_BYTES):
            await self._flows.wait()
            target.write(data)
            await target.drain()
        with suppress(OSError):
            target.write_eof()


@asynccontextmanager
async def engine_proxy(folder: Path, name: str = "engine.sock") -> AsyncIterator[EngineProxy]:
    """One that is there."""
    proxy = EngineProxy(folder / name)
    await proxy.come()
    try:
        yield proxy
    finally:
        proxy.hang()
        with suppress(FileNotFoundError):
            await proxy.go()
