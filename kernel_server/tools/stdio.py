"""Serving over stdio for clients of every age.

The SDK lets the first request decide whether a connection speaks 2026-07-28 or an older version. Some clients send
`server/discover` to find out, and then `initialize`: the SDK refuses them. Here `server/discover` is answered without
deciding anything; the first other request decides.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import anyio
import anyio.from_thread
from mcp.server.lowlevel.server import Server
from mcp.server.runner import modern_on_request
from mcp.server.stdio import stdio_server
from mcp.shared._context_streams import ContextReceiveStream, ContextSendStream, create_context_streams
from mcp.shared.message import SessionMessage
from mcp.shared.transport_context import TransportContext
from mcp.types import JSONRPCRequest, JSONRPCResponse

MODERN_VERSION = "2026-07-28"
END_SECONDS = 1.8  # a client waits 2 s before it sends SIGTERM
VERSION_KEY = "io.modelcontextprotocol/protocolVersion"  # SEP-2575: the version that each request names


class _DiscoverContext:
    """What answering `server/discover` needs of the SDK's DispatchContext."""

    message_metadata = None
    can_send_request = False
    transport = TransportContext(kind="stdio", can_send_request=False)

    def __init__(self, request_id: str | int) -> None:
        self.request_id = request_id
        self.cancel_requested = anyio.Event()

    async def notify(self, *_: Any) -> None:
        """Nothing to notify anyone of."""

    async def progress(self, *_: Any) -> None:
        """There is none."""

    async def send_raw_request(self, *_: Any) -> Any:
        """The client is not asked anything."""
        raise RuntimeError("server/discover asks nothing")


class _Wire:
    """What the SDK needs of stdout as a file. What nobody reads any more is dropped: the SDK would stop all that runs.

    Attributes:
        in_use: cancelled with the first byte that nobody reads.
    """

    def __init__(self, descriptor: int) -> None:
        self.in_use = anyio.CancelScope()
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        """Writes all of it; in a worker thread."""
        data = memoryview(text.encode())
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except ConnectionError:
            anyio.from_thread.run_sync(self.in_use.cancel)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""


@contextmanager
def _wire() -> Iterator[_Wire]:
    """The client's end of stdout; meanwhile, what is printed goes to stderr."""
    descriptor = os.dup(1)
    os.dup2(2, 1)
    try:
        yield _Wire(descriptor)
    finally:
        os.dup2(descriptor, 1)


async def serve_stdio(server: Server[Any], on_end: Callable[[], None]) -> None:
    """Serves until stdin ends, or nobody reads stdout any more.

    Args:
        on_end: told when that is so, before calls in flight are cancelled.
    """
    with _wire() as wire:
        async with stdio_server(stdout=anyio.wrap_file(cast("Any", wire))) as (from_client, to_client):
            forward, received = create_context_streams[SessionMessage | Exception](0)

            async def forward_until_the_end() -> None:
                async with forward:
                    with wire.in_use:
                        await _forward(server, from_client, to_client, forward)
                    end_soon(0)
                    on_end()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(forward_until_the_end)
                await server.run(received, to_client, server.create_initialization_options())
                tasks.cancel_scope.cancel()


def end_soon(code: int) -> None:
    """Ends the process after END_SECONDS if it has not ended by then: an engine that does not answer must not keep it."""
    timer = threading.Timer(END_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()


async def _forward(
    server: Server[Any],
    from_client: ContextReceiveStream[SessionMessage | Exception],
    to_client: ContextSendStream[SessionMessage],
    forward: ContextSendStream[SessionMessage | Exception],
) -> None:
    answer = modern_on_request(server, {})
    decided = False
    async for item in from_client:
        request = getattr(item, "message", None)
        if not decided and isinstance(request, JSONRPCRequest):
            if _is_discover(request):
                result = await answer(_DiscoverContext(request.id), request.method, request.params)
                response = JSONRPCResponse(jsonrpc="2.0", id=request.id, result=dict(result))
                await to_client.send(SessionMessage(message=response))
                continue
            decided = True
        await forward.send(item)


def _is_discover(request: JSONRPCRequest) -> bool:
    meta = (request.params or {}).get("_meta") or {}
    return request.method == "server/discover" and meta.get(VERSION_KEY) == MODERN_VERSION
