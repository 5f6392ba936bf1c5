"""The control socket: lines of JSON to and from the server."""

from __future__ import annotations

import hashlib
import hmac
import json
import select
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .beneath import Refused
from .loop import Loop, Reply

MAX_LINE_BYTES = 1 << 20  # either way: handles, paths and numbers only; the server takes more, see `control`
GREETING_SECONDS = 10.0  # for the server to show its token
TOO_LONG = "the answer would have {size} bytes, which is more than the {limit} that one may have"


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
            self._listen_to(client, lambda _mask: self._authenticate(client))
            self._send(client, self._hello)

    def _listen_to(self, client: Client, serve: Callable[[int], None]) -> None:
        self._loop.selector.register(client.socket, selectors.EVENT_READ, serve)

    def _authenticate(self, client: Client) -> None:
        """Has a helper read the first request: the token in it must not enter this process, whose memory kernels inherit."""
        self._loop.selector.unregister(client.socket)
        check = partial(_check_token, client.socket, self._owner)

        def finish(message: dict[str, Any]) -> None:
            if client not in self._clients:
                return
            self._listen_to(client, lambda mask: self._serve(client, mask))
            if "error" in message:
                self._drop(client)
                return
            client.known, self.unheld_since = True, None
            self._on_owner()
            self._send(client, {"id": message["result"]["id"], "result": {}})

        self._loop.help(None, check, finish, keep=(client.socket.fileno(),))

    def _serve(self, client: Client, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                self._flush(client)
            if mask & selectors.EVENT_READ:
                self._read(client)
        except (OSError, ValueError, RecursionError):
            self._drop(client)

    def _read(self, client: Client) -> None:
        data = client.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError
        client.received += data
        while b"\n" in client.received:
            line, _, rest = client.received.partition(b"\n")
            client.received = bytearray(rest)
            self._take(client, _object(line))
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
        if client.known and not any(other.known for other in self._clients):
            self.unheld_since = time.monotonic()

    def _send(self, client: Client, message: dict[str, Any]) -> None:
        if client not in self._clients:
            return
        line = json.dumps(message).encode()
        if len(line) > MAX_LINE_BYTES:  # it holds what a session said
            text = TOO_LONG.format(size=len(line), limit=MAX_LINE_BYTES)
            line = json.dumps({"id": message.get("id"), "error": {"code": "failed", "message": text}}).encode()
        client.to_send += line + b"\n"
        with suppress(OSError):  # the read side will notice and drop it
            self._flush(client)

    def _flush(self, client: Client) -> None:
        with suppress(BlockingIOError):
            while client.to_send:
                sent = client.socket.send(client.to_send)
                del client.to_send[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.to_send else 0)
        with suppress(KeyError):  # its token is being looked at
            key = self._loop.selector.get_key(client.socket)
            self._loop.selector.modify(client.socket, events, key.data)


def _object(line: bytes | bytearray) -> dict[str, Any]:
    request = json.loads(line)
    if not isinstance(request, dict):
        raise ValueError("a request is an object")  # noqa: TRY004 - as for what is no JSON
    return request


def _check_token(client: socket.socket, owner: str) -> dict[str, Any]:
    """Takes the first line of a connection, and nothing of what follows it.

    Raises:
        Refused: it does not show the owner's token.
    """
    poll = select.poll()
    poll.register(client, select.POLLIN)
    until = time.monotonic() + GREETING_SECONDS
    line = b""
    while not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1_000):
            break
        seen = client.recv(1 << 12, socket.MSG_PEEK)
        if not seen:
            break
        line += client.recv(seen.find(b"\n") + 1 or len(seen))
    with suppress(ValueError, RecursionError):
        request = _object(line)
        shown = hashlib.sha256(str(request.get("token")).encode()).hexdigest()
        if request.get("op") == "authenticate" and hmac.compare_digest(shown, owner):
            return {"id": request.get("id")}
    raise Refused("this is not the owner")
