"""From a port on 127.0.0.1, which sessions may reach, to the unix socket of the server's proxy, which they may not.

Runs in a child of its own, so that nothing of what passes is ever in the memory that all kernels are forked from.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

CHUNK_BYTES = 1 << 16


def run(port: int, path: str) -> None:
    """Serves for ever."""
    asyncio.run(_serve(port, path))


async def _serve(port: int, path: str) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            proxy_reader, proxy_writer = await asyncio.open_unix_connection(path)
        except OSError:  # the server has ended; a later one brings another proxy
            writer.close()
            return
        await asyncio.gather(_copy(reader, proxy_writer), _copy(proxy_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", port)
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    with suppress(OSError):
        writer.close()
