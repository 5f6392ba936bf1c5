"""The server's end of kernel_host's control protocol (described in `container/README.md`).

Knows lines of JSON on a unix socket and nothing of containers. All that arrives comes from the kernel host, which
holds no session's data, but is read with the same suspicion: bounded, and a bad line ends the connection.

With asyncio's streams, as ZMQ's sockets: a read of anyio's that is cancelled just when something comes fails in the event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from asyncio import IncompleteReadError, LimitOverrunError, StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from kernel_server.errors import HostLost
from kernel_server.tasks import running

logger = logging.getLogger(__name__)

PROTOCOL = 3  # kernel_host's number must be the same
MAX_LINE_BYTES = 4 << 20  # kernel_host sends at most 1 MB
REQUEST_SECONDS = 60.0  # a kernel starts in 0.05 s; a slow, busy machine gets all of this
# The kernel host always answers a ping at once. Where a request takes longer than a pulse, it is asked whether it is there.
PULSE_SECONDS = 2.0
MOST_SILENT = 6  # pulses in a row without a word
# The same of one that has just started, or was left by another server: without an answer, all in it is lost.
HELLO_SECONDS = 20.0
SILENT = (
    "The container has not answered for {seconds:g} s: it is paused, or the machine has too much to do. Nothing is lost, "
    "and its sessions go on when it does; reset starts a fresh one without them."
)
CONNECT_POLL_SECONDS = 0.01
HEAD_BYTES = 64  # of a line that is passed over
_NUMBER = re.compile(rb'\{"id": (\d{1,18})[,}]')


class ControlRefused(Exception):
    """The kernel host refused a request; the message is fit for the model."""


class ControlSaid(ControlRefused):
    """The session itself refused; the message is its own words."""


class ControlFailed(Exception):
    """The kernel host could not do what was asked."""


ERRORS: dict[str, type[Exception]] = {"refused": ControlRefused, "said": ControlSaid}  # by code; others are failures


@dataclass
class _Pending:
    answered: anyio.Event = field(default_factory=anyio.Event)
    answer: dict[str, Any] | None = None


class Control:
    """A connection to a kernel host; `connect_control` makes one.

    Attributes:
        hello: what the kernel host said of itself.
    """

    def __init__(self, reader: StreamReader, writer: StreamWriter, hello: dict[str, Any]) -> None:
        self.hello = hello
        self._reader = reader
        self._writer = writer
        self._pending: dict[int, _Pending] = {}
        self._last_number = 0
        self._heard = 0
        self._closed = False
        self._event_sender, self._events = anyio.create_memory_object_stream[dict[str, Any]](math.inf)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Events as they come; ends with the connection. For one reader."""
        async with self._events:
            async for event in self._events:
                yield event

    async def request(self, op: str, *, seconds: float = REQUEST_SECONDS, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
            ControlRefused: refused, with a reason for the model; ControlSaid if it is the session's.
            ControlFailed: it went wrong inside.
            HostLost: the connection is gone, there was no answer within `seconds`, or no sign of life for some.
        """
        if self._closed:
            raise HostLost("The kernel host is gone.")
        self._last_number += 1
        number, pending = self._last_number, _Pending()
        self._pending[number] = pending
        try:
            await self._send({"id": number, "op": op, **arguments})
            if not await self._wait(pending, math.ceil(seconds / PULSE_SECONDS)):
                raise HostLost(f"The kernel host did not answer {op!r} within {seconds:g} s.")
        finally:
            del self._pending[number]
        answer = pending.answer
        if answer is None:
            raise HostLost(f"The kernel host ended while it was asked to {op}.")
        if failure := answer.get("error"):
            raise ERRORS.get(str(failure.get("code")), ControlFailed)(str(failure.get("message")))
        return dict(answer["result"])

    async def _wait(self, pending: _Pending, pulses: int) -> bool:
        """Counts pulses in place of seconds: of a process that was stopped itself, only one of them has passed.

        Raises:
            HostLost: nothing is heard any more.
        """
        silent = 0
        for _ in range(pulses):
            heard = self._heard
            with anyio.move_on_after(PULSE_SECONDS):
                await pending.answered.wait()
                return True
            silent = silent + 1 if heard == self._heard else 0
            if silent == MOST_SILENT:
                raise HostLost(SILENT.format(seconds=silent * PULSE_SECONDS))
            await self._send({"id": 0, "op": "ping"})
        return pending.answered.is_set()

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            self._writer.write(json.dumps(message).encode() + b"\n")
            with anyio.fail_after(MOST_SILENT * PULSE_SECONDS):
                await self._writer.drain()
        except OSError as error:  # TimeoutError is one
            raise HostLost("The kernel host is gone.") from error

    def close(self) -> None:
        """Ends the stream of events for good."""
        self._event_sender.close()
        self._events.close()

    async def read(self) -> None:
        """Routes answers and events until the connection ends; one task runs it.

        A line that cannot be read is the end of the request that it answers, and of no more.
        """
        try:
            while True:
                try:
                    line = await self._reader.readuntil(b"\n")
                except LimitOverrunError as error:
                    await self._pass_over(error.consumed)
                    continue
                try:
                    self._route(json.loads(line))
                except (ValueError, RecursionError) as error:
                    self._fail(line[:HEAD_BYTES], f"its answer cannot be read ({error})")
        except (IncompleteReadError, OSError):
            logger.debug("control connection closed")
        finally:
            self._closed = True
            self._event_sender.close()
            for pending in self._pending.values():
                pending.answered.set()

    async def _pass_over(self, held: int) -> None:
        """A line that is too long."""
        head = b""
        while True:
            part = await self._reader.readexactly(held)
            head = head or part[:HEAD_BYTES]
            try:
                await self._reader.readuntil(b"\n")
                break
            except LimitOverrunError as error:
                held = error.consumed
        self._fail(head, f"its answer is longer than {MAX_LINE_BYTES >> 20} MB")

    def _fail(self, head: bytes, why: str) -> None:
        """The request fails whose answer begins so: kernel_host writes its number first."""
        self._heard += 1
        logger.error("kernel_host: a line was passed over: %s", why)
        number = _NUMBER.match(head)
        if number and (pending := self._pending.get(int(number[1]))):
            pending.answer = {"error": {"code": "failed", "message": why}}
            pending.answered.set()

    def _route(self, message: Any) -> None:
        if not isinstance(message, dict):
            raise ValueError("no object")  # noqa: TRY004 - as for what is no JSON
        self._heard += 1
        if "event" in message:
            with suppress(anyio.BrokenResourceError):  # nobody listens any more
                self._event_sender.send_nowait(message)
        elif isinstance(number := message.get("id"), int) and (pending := self._pending.get(number)):
            if not isinstance(message.get("error") or message.get("result"), dict):
                raise ValueError("an answer with neither result nor error")
            pending.answer = message
            pending.answered.set()


@asynccontextmanager
async def connect_control(path: Path, token: str, seconds: float, ended: anyio.Event) -> AsyncIterator[Control]:
    """Connects to the control socket as soon as it exists, checks the protocol's version, and shows the token.

    Args:
        ended: set when the process behind it has ended: then nobody will make the socket any more.

    Raises:
        HostLost: no connection within `seconds`, or the other side speaks another version.
    """
    reader, writer = await _connect(path, seconds, ended)
    try:
        try:
            with anyio.fail_after(HELLO_SECONDS):
                hello = json.loads(await reader.readuntil(b"\n"))
            if not isinstance(hello, dict):
                raise ValueError("no object")  # noqa: TRY004 - as for what is no JSON
        except (TimeoutError, IncompleteReadError, LimitOverrunError, OSError, ValueError, RecursionError) as error:
            raise HostLost("The kernel host did not introduce itself; its container may be paused.") from error
        if hello.get("protocol") != PROTOCOL:
            raise HostLost(
                f"The kernel host in the image speaks control protocol {hello.get('protocol')}, this server {PROTOCOL}. "
                "Build the image again with `kernel-server build`."
            )
        control = Control(reader, writer, hello)
        try:
            async with running(control.read):
                await control.request("authenticate", token=token, seconds=seconds)
                yield control
        finally:
            control.close()
    finally:
        writer.close()
        with anyio.CancelScope(shield=True), suppress(OSError):
            await writer.wait_closed()


async def _connect(path: Path, seconds: float, ended: anyio.Event) -> tuple[StreamReader, StreamWriter]:
    with anyio.move_on_after(seconds):
        while not ended.is_set():
            try:
                return await asyncio.open_unix_connection(path, limit=MAX_LINE_BYTES)
            except (FileNotFoundError, ConnectionRefusedError):
                await anyio.sleep(CONNECT_POLL_SECONDS)
        raise HostLost("The kernel host ended while it was starting.")
    raise HostLost(f"The kernel host was not ready within {seconds:g} s.")
