"""Sockets for the client's end of a kernel's channels, in place of libzmq's: what a hostile kernel sends is bounded.

libzmq takes in whole messages before anybody asks, and bounds neither their parts nor all of them together. Here at most
one message is taken from the kernel before somebody reads it, of that no more than MAX_MESSAGE_BYTES is kept, and the
kernel has to wait. There is no thread either: what comes is parsed where it is read.

They do what jupyter_client and `connection.py` ask of a DEALER or SUB socket that connects to one path, and no more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType

import anyio

from kernel_server.kernels import zmtp
from kernel_server.kernels.descriptors import Closer, Receiver
from kernel_server.kernels.shares import WORK_SECONDS, Pace, Share, Shares

logger = logging.getLogger(__name__)

# Numbers of libzmq (zmq.h), which jupyter_client passes.
SUB, DEALER = 2, 5
SUBSCRIBE = 6

CHUNK_BYTES = 16 << 10  # read at once, so many parts of one byte take about 2 ms
BODY_CHUNK_BYTES = 256 << 10  # the same within a large part, which takes no parsing
DIAL_SECONDS = 0.02  # between attempts while the kernel has too many connections to accept
BODY_WORK_SECONDS = 0.05  # as WORK_SECONDS, within a large part, so that a picture is not put off; a chunk takes 0.1 ms
MAX_PING_BYTES = 16  # of its context, which is sent back (ZMTP 3.1, heartbeating)


class Context(AbstractContextManager["Context"]):
    """Makes sockets, and closes those that are still open in the end. A server has one."""

    def __init__(self) -> None:
        self._sockets: set[Socket] = set()
        self._closer = Closer()
        self._shares = Shares()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for opened in list(self._sockets):
            opened.close()
        self._closer.stop()

    def socket(self, socket_type: int) -> Socket:
        """A socket that is not yet connected; it is closed with this context at the latest.

        Raises:
            OSError: this process has too many files open.
        """
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        opened.setblocking(False)
        made = Socket(socket_type, opened, Receiver(opened, self._closer), Share(self._shares), self._sockets)
        self._sockets.add(made)
        return made


class Socket:
    """One connection; made in the event loop that uses it, and connected once.

    Attributes:
        identity: what the kernel's ROUTER knows us by.
        share: of the event loop's time.
        linger: ignored, as nothing is queued here: what `send_multipart` has returned from is the kernel's.
    """

    def __init__(
        self, socket_type: int, opened: socket.socket, receiver: Receiver, share: Share, siblings: set[Socket]
    ) -> None:
        self.identity = b""
        self.linger = 0
        self.share = share
        self._type = socket_type
        self._socket = opened
        self._receiver = receiver
        self._siblings = siblings
        self._loop = asyncio.get_running_loop()
        self._path = ""
        self._topics: list[bytes] = []
        self._greeting = b""
        self._minor: int | None = None  # version of the peer, once it has greeted
        self._ended = anyio.Event()
        self._ready = anyio.Event()  # the handshake is over, one way or the other
        self._reader = zmtp.Reader()
        self._message: list[bytes] | None = None  # that nobody has asked for yet
        self._asking: asyncio.Future[None] | None = None
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None  # for what is put off
        self._pace = Pace()
        self._resting = False
        self._answered = False  # a PING of what was read at once
        self._sending = anyio.Lock(fast_acquire=True)
        self._writable: asyncio.Future[None] | None = None
        self._half_sent = False

    @property
    def ended(self) -> bool:
        """The kernel has closed the connection, or sent what is no ZMTP, or we have closed it."""
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        """Waits for that."""
        await self._ended.wait()

    def setsockopt(self, option: int, value: bytes) -> None:
        """Subscribes to a topic; there is no other option. Not later than `connect`, or right after it."""
        if option != SUBSCRIBE or self._ready.is_set():
            raise ValueError(option)
        self._topics.append(value)

    def connect(self, endpoint: str) -> None:
        """Connects to `ipc://<path>`, where somebody must be listening; it may accept later.

        Raises:
            OSError: nobody does.
        """
        self._path = endpoint.removeprefix("ipc://")
        try:
            self._dial()
        except OSError:
            self.close()
            raise

    def _dial(self) -> None:
        self._timer = None
        try:
            self._socket.connect(self._path)
        except BlockingIOError:  # unix(7): its backlog is full
            self._timer = self._loop.call_later(DIAL_SECONDS, self._dial_again)
            return
        identity = {"Identity": self.identity} if self._type == DEALER else {}
        kind = b"DEALER" if self._type == DEALER else b"SUB"
        self._write(zmtp.GREETING + zmtp.ready(Socket_Type=kind, **identity))
        self._resume()

    def _dial_again(self) -> None:
        try:
            self._dial()
        except OSError:
            self._end()

    async def connected(self) -> None:
        """Waits until the kernel has accepted the connection and both have greeted each other: for ever, if it does not.

        Raises:
            ConnectionError: the connection has ended.
        """
        if not self._ready.is_set():
            await self._ready.wait()
        if self.ended:
            raise ConnectionError("the connection has ended")

    def close(self, linger: int = 0) -> None:
        """Closes the connection; nothing is left to send."""
        self._end()
        self._siblings.discard(self)

    # -- sending ---------------------------------------------------------------------------------------------------

    async def send_multipart(self, parts: Sequence[bytes]) -> None:
        """Sends a message whole, after those whose sending has begun before; waits until the kernel takes it.

        To be cancelled while a part of it is with the kernel makes the socket useless for sending.

        Raises:
            ConnectionError: the connection has ended, or a message was left half sent.
        """
        data = memoryview(zmtp.message(parts))
        await self.connected()
        async with self._sending:
            if self.ended or self._half_sent:
                raise ConnectionError("the connection has ended, or a message was left half sent")
            whole = len(data)
            try:
                while data:
                    try:
                        data = data[self._socket.send(data) :]
                    except BlockingIOError:
                        await self._wait_writable()
            finally:
                self._half_sent = 0 < len(data) < whole

    async def _wait_writable(self) -> None:
        self._writable = self._loop.create_future()
        self._loop.add_writer(self._socket, self._on_writable)
        try:
            await self._writable
        finally:
            self._writable = None
            if not self.ended:
                self._loop.remove_writer(self._socket)
        if self.ended:
            raise ConnectionError("the connection has ended")

    def _on_writable(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _write(self, data: bytes) -> None:
        """Sends what is of the protocol and small. It finds room, unless the kernel does not read our answers."""
        if self._sending.locked() or self._half_sent:
            return  # a PONG cannot come between
        try:
            if self._socket.send(data) < len(data):
                self._half_sent = True
        except BlockingIOError:
            pass

    # -- receiving -------------------------------------------------------------------------------------------------

    async def recv_multipart(self) -> list[bytes]:
        """The next message; with one at hand it does not yield. For one reader at a time.

        After the end of the connection it gives what has still come, and then waits for ever: that a kernel has ended is
        told by others. In place of parts that were too large there is `zmtp.CUT`, and parts beyond MAX_PARTS are missing.
        """
        while not self._at_hand():
            if self._timer is None:
                self._resume()
            self._asking = self._loop.create_future()
            try:
                await self._asking
            finally:
                self._asking = None
        message, self._message = self._message, None
        assert message is not None
        return message

    def _at_hand(self) -> bool:
        """Whether a message is, of what has been read."""
        try:
            while self._message is None and (found := self._reader.next()) is not None:
                if isinstance(found, bytes):
                    self._take_command(found)
                elif self._ready.is_set():
                    self._message = found
                else:
                    raise zmtp.ProtocolError("a message before the end of the handshake")
        except (zmtp.ProtocolError, OSError) as error:
            logger.debug("a kernel's connection ends: %s", error)
            self._reader = zmtp.Reader()
            self._end()
        return self._message is not None

    def _take_command(self, body: bytes) -> None:
        name, rest = zmtp.split_command(body)
        if name == b"READY" and not self._ready.is_set():
            for topic in self._topics:
                self._write(zmtp.subscribe(topic, self._minor or 0))
            self._ready.set()
        elif name == b"PING" and not self._answered:  # its first two bytes say how long we may keep silent
            self._answered = True  # one is as good as a thousand
            self._write(zmtp.command(b"PONG", rest[2 : 2 + MAX_PING_BYTES]))
        elif name == b"ERROR":
            raise zmtp.ProtocolError("the kernel reports an error")

    def _on_readable(self) -> None:
        if self._at_hand():  # the kernel has to wait until somebody asks for it
            self._pause()
            return
        self._pace.begin()
        self._read()
        self._pace.end()
        within = self._reader.keeping and self._reader.missing >= CHUNK_BYTES
        if self._pace.worked > (BODY_WORK_SECONDS if within else WORK_SECONDS) and self._reading:
            self._rest()

    def _rest(self) -> None:
        self._pause()
        self._resting = True
        seconds = self.share.begin_rest(self._pace.worked)
        self._pace.worked = 0.0
        self._timer = self._loop.call_later(seconds, self._resume)

    def _end_rest(self) -> None:
        if self._resting:
            self._resting = False
            self.share.end_rest()

    def _read(self) -> None:
        missing, self._answered = self._reader.missing, False
        try:
            data = self._receiver.receive(CHUNK_BYTES if missing < CHUNK_BYTES else min(missing, BODY_CHUNK_BYTES))
        except BlockingIOError:
            return
        except OSError as error:
            logger.debug("a kernel's connection ends: %s", error)
            data = b""
        if not data:
            self._end()
            return
        if self._minor is None:
            data = self._greet(data)
        self._reader.feed(data)
        if self._at_hand() and self._asking is not None and not self._asking.done():
            self._asking.set_result(None)

    def _greet(self, data: bytes) -> bytes:
        """Takes in the greeting; returns what follows it."""
        self._greeting += data
        if len(self._greeting) < zmtp.GREETING_BYTES:
            return b""
        data = self._greeting[zmtp.GREETING_BYTES :]
        try:
            self._minor = zmtp.minor_version(self._greeting)
        except zmtp.ProtocolError as error:
            logger.debug("a kernel's connection ends: %s", error)
            self._end()
            return b""
        self._greeting = b""
        return data

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def _resume(self) -> None:
        self._timer = None
        self._end_rest()
        if not self._reading and not self.ended:
            self._reading = True
            self._loop.add_reader(self._socket, self._on_readable)

    def _end(self) -> None:
        """Closes the descriptor; what has been read stays to be received."""
        if self.ended:
            return
        self._ended.set()
        self._ready.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end_rest()
        self._pause()
        if self._writable is not None:
            self._loop.remove_writer(self._socket)
            self._on_writable()
        self._receiver.close()
