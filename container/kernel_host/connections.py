"""The control socket: lines of JSON to and from the server."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .loop import Loop, Reply

MAX_LINE_BYTES = 1 << 20  # ids, paths and numbers only


@dataclass
class Client:
    """A connection of a server."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    to_send: bytearray = field(default_factory=bytearray)


class Connections:
    """Accepts connections, hands requests to `handle`, sends answers and events.

    Attributes:
        unheld_since: since when nobody is connected (monotonic seconds), or None.
    """

    def __init__(self, loop: Loop, hello: dict[str, Any], handle: Callable[[dict[str, Any], Reply], None]) -> None:
        self.unheld_since: float | None = time.monotonic()
        self._loop = loop
        self._hello = hello
        self._handle = handle
        self._clients: list[Client] = []

    def listen(self, listener: socket.socket) -> None:
        """Serves a listening socket."""
        listener.setblocking(False)
        self._loop.selector.register(listener, selectors.EVENT_READ, lambda _mask: self._accept(listener))

    def broadcast(self, event: dict[str, Any]) -> None:
        """Sends an event to every server that is connected."""
        for client in list(self._clients):
            self._send(client, event)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            client = Client(connection)
            self._clients.append(client)
            self.unheld_since = None
            self._loop.selector.register(connection, selectors.EVENT_READ, lambda mask: self._serve(client, mask))
            self._send(client, self._hello)

    def _serve(self, client: Client, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                self._flush(client)
            if mask & selectors.EVENT_READ:
                self._read(client)
        except (OSError, ValueError):
            self._drop(client)

    def _read(self, client: Client) -> None:
        data = client.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError
        client.received += data
        while b"\n" in client.received:
            line, _, rest = client.received.partition(b"\n")
            client.received = bytearray(rest)
            self._take(client, json.loads(line))
        if len(client.received) > MAX_LINE_BYTES:
            raise ValueError("a request is too long")

    def _take(self, client: Client, request: dict[str, Any]) -> None:
        number = request.get("id")
        self._handle(request, lambda answer: self._send(client, {"id": number, **answer}))

    def _drop(self, client: Client) -> None:
        if client not in self._clients:
            return
        self._clients.remove(client)
        self._loop.selector.unregister(client.socket)
        client.socket.close()
        if not self._clients:
            self.unheld_since = time.monotonic()

    def _send(self, client: Client, message: dict[str, Any]) -> None:
        if client not in self._clients:
            return
        client.to_send += json.dumps(message).encode() + b"\n"
        with suppress(OSError):  # the read side will notice and drop it
            self._flush(client)

    def _flush(self, client: Client) -> None:
        with suppress(BlockingIOError):
            while client.to_send:
                sent = client.socket.send(client.to_send)
                del client.to_send[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.to_send else 0)
        key = self._loop.selector.get_key(client.socket)
        self._loop.selector.modify(client.socket, events, key.data)
