"""The control socket: lines of JSON to and from the server."""

from __future__ import annotations

import hashlib
import hmac
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
    """A connection; `known` once it has shown the owner's token."""

    socket: socket.socket
    known: bool = False
    received: bytearray = field(default_factory=bytearray)
    to_send: bytearray = field(default_factory=bytearray)


class Connections:
    """Accepts connections; of those that know the owner's token, it hands requests to `handle` and sends answers and events.

    Attributes:
        unheld_since: since when none of these is connected (monotonic seconds), or None.
    """

    def __init__(
        self,
        loop: Loop,
        owner: str,
        hello: dict[str, Any],
        handle: Callable[[dict[str, Any], Reply], None],
        on_owner: Callable[[], None],
    ) -> None:
        """Has no connection yet.

        Args:
            on_owner: told when a server has shown the token.
        """
        self.unheld_since: float | None = time.monotonic()
        self._loop = loop
        self._owner = owner
        self._hello = hello
        self._handle = handle
        self._on_owner = on_owner
        self._clients: list[Client] = []

    def listen(self, listener: socket.socket) -> None:
        """Serves a listening socket."""
        listener.setblocking(False)
        self._loop.selector.register(listener, selectors.EVENT_READ, lambda _mask: self._accept(listener))

    def broadcast(self, event: dict[str, Any]) -> None:
        """Sends an event to every server that is connected."""
        for client in list(self._clients):
            if client.known:
                self._send(client, event)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            client = Client(connection)
            self._clients.append(client)
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
        if client.known:
            self._handle(request, lambda answer: self._send(client, {"id": number, **answer}))
        else:
            self._send(client, {"id": number, "result": self._authenticate(client, request)})

    def _authenticate(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        shown = hashlib.sha256(str(request.get("token")).encode()).hexdigest()
        if request.get("op") != "authenticate" or not hmac.compare_digest(shown, self._owner):
            raise ValueError("this is not the owner")
        client.known, self.unheld_since = True, None
        self._on_owner()
        return {}

    def _drop(self, client: Client) -> None:
        if client not in self._clients:
            return
        self._clients.remove(client)
        self._loop.selector.unregister(client.socket)
        client.socket.close()
        if client.known and not any(other.known for other in self._clients):
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
