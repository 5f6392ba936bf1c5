"""How kernel_host asks kernels and checkpoints for something, and how they answer: in JSON.

A request goes over a socket, with descriptors. Nothing comes back on it: a session could send a descriptor along, and
whoever drops the last one of a removed file waits while Linux frees it, for seconds if the file is in 100 000 pieces.
Answers come over a pipe, which carries bytes only. What they say is the session's word.

Source: unix(7), SOCK_SEQPACKET and SCM_RIGHTS; shutdown(2).
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

MAX_BYTES = 64 << 10  # of a request
MAX_DESCRIPTORS = 8
CHUNK_BYTES = 64 << 10  # as much as a pipe holds: pipe(7)


class Received(NamedTuple):
    """A request, and the descriptors that came with it."""

    message: dict[str, Any]
    descriptors: list[int]


class Line:
    """One end of a pair of sockets."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    @classmethod
    def pair(cls) -> tuple[Line, Line]:
        """kernel_host's end, which only sends and never waits, and the other one, which only receives."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.shutdown(socket.SHUT_RD)  # who sends from the other end gets EPIPE
        ours.setblocking(False)
        return cls(ours), cls(theirs)

    @classmethod
    def of(cls, descriptor: int) -> Line:
        """The end that a descriptor is."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """Its descriptor."""
        return self.socket.fileno()

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends a request.

        Raises:
            OSError: nobody reads it, BlockingIOError among them.
        """
        socket.send_fds(self.socket, [json.dumps(message).encode() + b"\n"], list(descriptors))

    def receive(self) -> Received | None:
        """The next request; None where there will be none. For a session's process.

        Raises:
            BlockingIOError: there is none yet.
            ValueError: it is not one.
        """
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
        data, ancillary, flags, _ = self.socket.recvmsg(MAX_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        descriptors: list[int] = []
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
        try:
            message = json.loads(data) if data else None
            if (data and not isinstance(message, dict)) or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("not a request")
        except (ValueError, RecursionError) as error:
            close_all(descriptors)
            raise ValueError("not a request") from error
        if message is None:
            close_all(descriptors)
            return None
        return Received(message, descriptors)

    def close(self) -> None:
        """The other end is told."""
        with suppress(OSError):
            self.socket.close()


class Inbox:
    """kernel_host's end of a pipe on which JSON objects come, one a line; perhaps from a session, so it is bounded.

    Attributes:
        descriptor: of the pipe; -1 once it is closed.
        over: nothing more will come: it has ended, or what came was not that, or was too much (`broken`).
    """

    def __init__(self, descriptor: int, limit: int) -> None:
        """Reads nothing yet.

        Args:
            limit: bytes that may come in all.
        """
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.over = self.broken = False
        self._left = limit
        self._received = bytearray()

    @classmethod
    def pipe(cls, limit: int) -> tuple[Inbox, int]:
        """One, and the descriptor of the other end."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        return cls(reader, limit), writer

    def read(self) -> Iterator[dict[str, Any]]:
        """What has come by now; ends early where it is closed between two of them."""
        try:
            data = os.read(self.descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return
        self.over = not data
        self._received += data
        self._left -= len(data)
        try:
            if self._left < 0:
                raise ValueError("too much")
            while self.descriptor >= 0 and b"\n" in self._received:
                line, _, rest = self._received.partition(b"\n")
                self._received = bytearray(rest)
                message = json.loads(line)
                if not isinstance(message, dict):
                    raise ValueError("not an object")  # noqa: TRY004 - as for what is no JSON
                yield message
        except (ValueError, RecursionError):
            self.over = self.broken = True

    def close(self) -> None:
        """The other end is told."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def write_line(descriptor: int, message: dict[str, Any]) -> None:
    """Sends an object to an `Inbox`; waits while its pipe is full.

    Raises:
        OSError: nobody reads it.
    """
    data = memoryview(json.dumps(message).encode() + b"\n")
    while data:
        data = data[os.write(descriptor, data) :]


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
